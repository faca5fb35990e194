"""The scripted expert: it arrives, hits nothing, and drives every world as if it were alone."""

from __future__ import annotations

import numpy as np
import pytest
from tests.policies.drives import Undrawn, rooms

from sanawm_env.errors import ActionError, ConfigError, SpaceError
from sanawm_env.policies.episodes import run_episodes
from sanawm_env.policies.expert import Expert, ExpertConfig
from sanawm_env.policies.floor_grid import CELL, SIDE, cell_of, cells, gaps, next_cells
from sanawm_env.rooms import sample_scenes
from sanawm_env.rooms.collision import FloorPlan

HELD_OUT = 10**9


@pytest.fixture(scope="module")
def driven() -> list:  # type: ignore[type-arg]
    env = rooms(4, Undrawn)
    return list(run_episodes(env, Expert(env), range(HELD_OUT, HELD_OUT + 10)))


def test_it_reaches_every_goal(driven: list) -> None:  # type: ignore[type-arg]
    assert sorted(one.seed for one in driven) == list(range(HELD_OUT, HELD_OUT + 10))
    assert {one.reason for one in driven} == {"success"}
    for one in driven:
        assert one.distance <= 0.5 < one.start_distance
        assert one.start_distance - 0.5 - 1e-6 <= one.metres
        assert one.metres <= 0.7 * one.seconds + 1e-6


def test_what_it_does_does_not_depend_on_its_neighbours(driven: list) -> None:  # type: ignore[type-arg]
    env = rooms(1, Undrawn)
    alone = list(run_episodes(env, Expert(env), [HELD_OUT + 7, HELD_OUT + 2]))
    assert alone == [one for seed in (HELD_OUT + 7, HELD_OUT + 2) for one in driven if one.seed == seed]


def test_ways_go_round_furniture() -> None:
    plan = FloorPlan.of(sample_scenes([HELD_OUT + 3, HELD_OUT + 4]))
    gap = gaps(plan)
    x, z = cells()
    goal = np.zeros(gap.shape, bool)
    goal[:, gap.argmax(axis=1)[0]] = True
    onward = next_cells(gap, goal, 0.2, 0.4)
    for row in range(2):
        if gap[row, gap.argmax(axis=1)[0]] < 0.2:
            continue
        rng = np.random.default_rng(row)
        for cell in rng.choice(np.flatnonzero(gap[row] >= 0.2), 20):
            steps = 0
            while onward[row, cell] != cell:
                cell, steps = onward[row, cell], steps + 1
                assert gap[row, cell] >= 0.2
                assert steps < SIDE * SIDE, "the way goes in a circle"
    assert (cell_of(x, z) == np.arange(SIDE * SIDE)).all()
    assert np.isclose(np.diff(np.unique(x)), CELL).all()


def test_it_says_what_it_cannot_drive() -> None:
    with pytest.raises(SpaceError, match="drives 'diff_drive' without lag"):
        Expert(rooms(1, Undrawn, action_map="holonomic"))
    with pytest.raises(SpaceError, match="without lag"):
        Expert(rooms(1, Undrawn, action_mode="per_frame"))
    with pytest.raises(SpaceError, match="observation='dict'"):
        Expert(rooms(1, Undrawn, observation="last"))
    with pytest.raises(ConfigError, match="speed of the expert is 0"):
        ExpertConfig(speed=0)
    with pytest.raises(ConfigError, match="rising numbers"):
        ExpertConfig(closest=0.5)


def test_a_policy_of_nan_is_named_by_world_and_seed() -> None:
    env = rooms(2, Undrawn)
    expert = Expert(env)
    act = expert.act

    def broken(observation, state):  # type: ignore[no-untyped-def]
        actions, state = act(observation, state)
        actions[1] = np.nan
        return actions, state

    expert.act = broken  # type: ignore[method-assign]
    with pytest.raises(ActionError, match=r"gave \[nan, nan\] in world 1 \(seed 4, step 0\)"):
        list(run_episodes(env, expert, [3, 4]))
