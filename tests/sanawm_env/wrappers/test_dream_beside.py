"""A dream that goes along with the truth: the same worlds, actions and ends; what would part them is refused."""

from __future__ import annotations

import numpy as np
import pytest

from sanawm_env.errors import ActionError, ConfigError, StateError
from sanawm_env.policies.cem import CEM, CEMConfig
from sanawm_env.policies.costs import TaskCost
from sanawm_env.policies.episodes import run_episodes
from sanawm_env.spaces import check_policy
from sanawm_env.testing import assert_same
from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.dream_beside import DreamBeside

SEEDS = [10**9 + 3, 18]


def make(model: WorldModel, worlds: int = 2, **options: str) -> tuple[RoomsTruthVectorEnv, SanaWMVectorEnv]:
    return RoomsTruthVectorEnv(worlds, model, task="goto"), SanaWMVectorEnv(worlds, model, task="goto", **options)


def test_a_planner_dreams_and_acts_in_the_truth(tiny_model: WorldModel) -> None:
    truth, dream = make(tiny_model)
    worlds = DreamBeside(truth, dream)
    planner = CEM(dream, TaskCost(), CEMConfig(horizon=1, candidates=4, iterations=1, elites=2))
    check_policy(planner, worlds)
    observation, info = worlds.reset(seed=SEEDS)
    np.testing.assert_array_equal(dream.observe()[1]["goal"], info["goal"])
    state = planner.initial_state(2)
    for _ in range(2):
        actions, state = planner.act(observation, state)
        observation, reward, *_, info = worlds.step(actions)
        np.testing.assert_allclose(reward, -state.cost)  # the dream promised what the truth gave
    np.testing.assert_array_equal(dream.observe()[1]["poses"][:, -1], info["poses"][:, -1])
    assert_same(observation, truth.observe()[0])
    assert not np.array_equal(observation, dream.observe()[0])
    assert (worlds.fps, worlds.frames_per_step) == (10.0, 8)
    worlds.close()
    assert truth.closed and dream.closed


def test_worlds_reset_by_mask_are_reset_in_both(tiny_model: WorldModel) -> None:
    truth, dream = make(tiny_model)
    worlds = DreamBeside(truth, dream)
    worlds.reset()
    np.testing.assert_array_equal(truth.world.seed, dream.world.seed)
    worlds.step(np.array([[0.3, 0.1]] * 2, np.float32))
    for seed in ([None, 7], None):
        worlds.reset(seed=seed, options={"reset_mask": np.array([False, True])})
        np.testing.assert_array_equal(truth.world.seed, dream.world.seed)
        np.testing.assert_array_equal(truth.world.chunk, dream.world.chunk)
        assert truth.world.chunk.tolist() == [1, 0]
    with pytest.raises(ActionError):
        worlds.step(np.full((2, 2), np.nan))
    worlds.step(np.zeros((2, 2), np.float32))


def test_what_would_part_them_is_refused(tiny_model: WorldModel) -> None:
    truth, dream = make(tiny_model)
    with pytest.raises(ConfigError, match="begin episodes by themselves"):
        DreamBeside(*make(tiny_model, autoreset_mode="NextStep"))
    with pytest.raises(ConfigError, match="the truth and its dream differ"):
        DreamBeside(truth, make(tiny_model, 3)[1])
    with pytest.raises(ConfigError, match="the truth and its dream differ"):
        DreamBeside(truth, make(tiny_model, action_map="holonomic")[1])
    worlds = DreamBeside(truth, dream)
    worlds.reset(seed=SEEDS)
    dream.step(np.full((2, 2), 0.2, np.float32))
    with pytest.raises(StateError, match="one was stepped alone"):
        worlds.step(np.zeros((2, 2), np.float32))


def test_episodes_are_run_through_it_one_seed_after_another(tiny_model: WorldModel) -> None:
    truth, dream = make(tiny_model)
    planner = CEM(dream, TaskCost(), CEMConfig(horizon=2, candidates=12, iterations=1, elites=3))
    seeds = [SEEDS[0], SEEDS[1], SEEDS[0] + 1]
    episodes = list(run_episodes(DreamBeside(truth, dream), planner, seeds))
    assert sorted(episode.seed for episode in episodes) == sorted(seeds)
    assert all(episode.success for episode in episodes)
