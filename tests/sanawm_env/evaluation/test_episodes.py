"""Episodes that a policy is judged by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.episodes import run_episodes
from sanawm_env.truth import RoomsTruthEnv, RoomsTruthVectorEnv
from sanawm_env.world import WorldModel


class Ahead:
    """Drives straight ahead, a little faster with every step: its state is the number of them."""

    def __init__(self, env: RoomsTruthVectorEnv) -> None:
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space

    def initial_state(self, worlds: int) -> int:
        return 0

    def act(self, observation: Any, state: int) -> tuple[np.ndarray, int]:
        return np.tile(np.float32([0.4 + 0.1 * state, 0.0]), (len(observation), 1)), state + 1

    def reset(self, state: int, worlds: np.ndarray) -> int:
        return state


def test_results_are_those_of_single_episodes(tiny_model: WorldModel) -> None:
    env = RoomsTruthVectorEnv(2, tiny_model, frames="none", device="cpu")
    seeds = [0, 18, 10**9 + 3]  # an odd one out: the second group has a world to spare
    told: list[tuple[int, int]] = []
    results = run_episodes(Ahead(env), env, seeds, max_steps=4, progress=lambda *x: told.append(x))
    assert told == [(2, 3), (3, 3)]
    single = RoomsTruthEnv(tiny_model, frames="none", device="cpu")
    for seed, result in zip(seeds, results):
        _, info = single.reset(seed=seed)
        score = driven = 0.0
        frames, start, reason = 0, info["distance"], ""
        for step in range(4):
            _, reward, terminated, truncated, info = single.step([0.4 + 0.1 * step, 0.0])
            score, frames = score + reward, frames + info["valid_frames"]
            driven += (0.4 + 0.1 * step) * info["valid_frames"] / single.fps
            if terminated or truncated:
                reason = info["termination_reason"] or info["truncation_reason"]
                break
        assert (result.seed, result.reason, result.steps, result.frames) == (seed, reason, step + 1, frames)
        assert (result.score, result.driven) == (pytest.approx(score), pytest.approx(driven))
        assert result.distance == start and result.success == (reason == "success")
    assert {result.reason for result in results} == {"", "success"}, "one is stopped, one ends before"


def test_worlds_that_begin_again_by_themselves_are_refused(tiny_model: WorldModel) -> None:
    env = RoomsTruthVectorEnv(2, tiny_model, autoreset_mode="SameStep", device="cpu")
    with pytest.raises(ConfigError, match="autoreset_mode is 'SameStep'"):
        run_episodes(Ahead(env), env, [0], max_steps=1)
