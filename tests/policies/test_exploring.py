"""Policies that explore, driven through the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanawm_env.errors import ConfigError, SpaceError
from sanawm_env.generation import Filters, Generate, generate
from sanawm_env.generation.explorers import PolicyExplorer
from sanawm_env.generation.record import STORE
from sanawm_env.policies.exploring import Frontier, Mixture, SmoothWalk, ThereAndBack, mixture
from sanawm_env.spaces import check_policy
from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.world import WorldModel

SEEDS = [3, 4, 5]


def world(tiny_model: WorldModel, seeds: list[int], **options: Any) -> RoomsTruthVectorEnv:
    env = RoomsTruthVectorEnv(
        len(seeds), tiny_model, **{"task": "explore", "observation": "dict", "frames": "none", **options}
    )
    env.reset(seed=seeds)
    return env


def drive(env: RoomsTruthVectorEnv, policy: Any, steps: int, rooms: list[int] | None = None) -> tuple[Any, Any, Any]:
    """Actions [steps, B, ...], poses [steps, B, 12], and the last info of a drive."""
    check_policy(policy, env)
    state = policy.initial_state(env.num_envs)
    if rooms is not None:
        state = policy.enter(state, np.array(rooms))
    observation, info = env.observe()
    actions, poses = [], [observation["pose"]]
    for _ in range(steps):
        action, state = policy.act(observation, state)
        observation, _, _, _, info = env.step(action)
        actions.append(action)
        poses.append(observation["pose"])
    return np.stack(actions), np.stack(poses), info


@pytest.mark.parametrize("mode", ["hold", "per_frame"])
@pytest.mark.parametrize("make", [SmoothWalk, Frontier, mixture])
def test_a_row_depends_on_its_own_observations_alone(tiny_model: WorldModel, make: Any, mode: str) -> None:
    batch = world(tiny_model, SEEDS, action_mode=mode)
    spaces = batch.single_observation_space, batch.single_action_space
    together = drive(batch, make(*spaces, seed=1), 3)[0]
    assert together.shape == (3, 3, *batch.single_action_space.shape) and together.dtype == np.float32
    assert len(np.unique(together, axis=1)) > 1
    for row, seed in enumerate(SEEDS):
        alone = drive(world(tiny_model, [seed], action_mode=mode), make(*spaces, seed=1), 3)[0]
        np.testing.assert_array_equal(alone[:, 0], together[:, row])
    if make is not Frontier:
        assert (drive(world(tiny_model, SEEDS, action_mode=mode), make(*spaces, seed=2), 3)[0] != together).any()


def test_episodes_that_begin_anew_are_driven_like_first_ones(tiny_model: WorldModel) -> None:
    env = world(tiny_model, SEEDS)
    policy = mixture(env.single_observation_space, env.single_action_space)
    observation = env.observe()[0]
    first, state = policy.act(observation, policy.initial_state(3))
    policy.act(env.step(first)[0], state)
    again, _ = policy.act(observation, policy.reset(state, np.array([False, True, True])))
    np.testing.assert_array_equal(again[1:], first[1:])


def test_there_and_back_comes_back(tiny_model: WorldModel) -> None:
    for mode in ("hold", "per_frame"):
        env = world(tiny_model, SEEDS, action_mode=mode)
        walk = SmoothWalk(env.single_observation_space, env.single_action_space)
        poses = drive(env, ThereAndBack(walk, leg=2), 6)[1]
        np.testing.assert_allclose(poses[4], poses[0], atol=1e-5)
        np.testing.assert_allclose(poses[3], poses[1], atol=1e-5)
        assert np.abs(poses[2] - poses[0]).max() > 0.1 and np.abs(poses[6] - poses[2]).max() > 0.01


def test_with_the_floor_plan_more_is_seen_and_nothing_hit(tiny_model: WorldModel) -> None:
    seeds = list(range(8))
    env = world(tiny_model, seeds)
    spaces = env.single_observation_space, env.single_action_space
    told = drive(env, Frontier(*spaces), 20, rooms=seeds)[2]
    assert not (told["termination_reason"] == "collision").any()
    walked = drive(world(tiny_model, seeds), SmoothWalk(*spaces), 20)[2]
    print("coverage: told", told["coverage"].mean(), "walk", walked["coverage"].mean())
    assert told["coverage"].mean() > walked["coverage"].mean() + 0.1


def test_a_mixture_gives_each_part_its_share(tiny_model: WorldModel) -> None:
    env = world(tiny_model, SEEDS)
    spaces = env.single_observation_space, env.single_action_space
    mixed = Mixture([(SmoothWalk(*spaces), 3.0), (ThereAndBack(SmoothWalk(*spaces)), 1.0)])
    poses = np.tile(np.eye(4)[:3].reshape(1, 12), (400, 1)) + np.arange(400)[:, None] / 100
    _, state = mixed.act({"pose": poses.astype(np.float32)}, mixed.initial_state(400))
    assert 0.67 < (state.chosen == 0).mean() < 0.83


def test_wrong_settings_are_errors(tiny_model: WorldModel) -> None:
    env = world(tiny_model, [0])
    spaces = env.single_observation_space, env.single_action_space
    with pytest.raises(SpaceError, match="observation='dict'"):
        Frontier(spaces[0]["image"], spaces[1])
    with pytest.raises(ConfigError, match="lasts is 0"):
        SmoothWalk(*spaces, lasts=0)
    with pytest.raises(ConfigError, match="leg is 0"):
        ThereAndBack(SmoothWalk(*spaces), leg=0)
    with pytest.raises(ConfigError, match=r"shares are \[0\]"):
        Mixture([(SmoothWalk(*spaces), 0)])


def job(out: Path, **options: Any) -> Generate:
    limits = Filters(contrast=None, sharpness=None, drift=None)
    told = {"policy": "sanawm_env.policies.exploring:mixture", "observation": "dict", "filters": limits}
    return Generate(**{"out": out, "episodes": 4, "frames": 16, "batch": 3, **told, **options})


def test_bulk_generation_takes_policies_with_a_state(tiny_model: WorldModel, tmp_path: Path) -> None:
    from sanawm_env.datasets.reader import EpisodeStore

    actions = {}
    for name, batch in (("three", 3), ("one", 1)):
        generate(job(tmp_path / name, batch=batch, policy_options={"seed": 7}), model=tiny_model)
        store = EpisodeStore(tmp_path / name / STORE)
        actions[name] = {store.identity(i): store.read(i, valid_only=False)["actions"] for i in range(len(store))}
    assert len(actions["three"]) == 4 and actions["three"].keys() == actions["one"].keys()
    for number, rows in actions["three"].items():
        np.testing.assert_array_equal(rows, actions["one"][number])
    with pytest.raises(SpaceError, match="observation='dict'"):
        generate(job(tmp_path / "last", observation="last"), model=tiny_model)
    with pytest.raises(ConfigError, match=r"policy_options \{'sed': 1\} do not fit"):
        generate(job(tmp_path / "sed", policy_options={"sed": 1}), model=tiny_model)


def test_slots_that_are_dropped_leave_the_others_their_states() -> None:
    class Counts:
        """Counts the steps of each episode."""

        observation_space = action_space = None

        def initial_state(self, worlds: int) -> np.ndarray:
            return np.zeros(worlds)

        def act(self, observation: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return state + observation, state + 1

        def reset(self, state: np.ndarray, worlds: np.ndarray) -> np.ndarray:
            return np.where(worlds, 0, state)

    explorer = PolicyExplorer(Counts(), 3)
    assert explorer.act(np.array([100, 200, 300]), 3).tolist() == [100, 200, 300]
    explorer.begin([1], [type("Plan", (), {"room": None})()])
    assert explorer.act(np.array([100, 200, 300]), 3).tolist() == [101, 200, 301]
    explorer.select([1, 2])
    assert explorer.act(np.array([200, 300]), 2).tolist() == [201, 302]
