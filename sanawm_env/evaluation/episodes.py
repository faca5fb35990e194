"""What becomes of a policy: episodes of given seeds, run in a batch of worlds to their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from sanawm_env.errors import ConfigError
from sanawm_env.policies.base import Policy
from sanawm_env.spaces import check_policy
from sanawm_env.vector_env import SanaWMVectorEnv


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """How an episode went.

    seed: of its world. reason: of its end, "success", "collision", "timeout" ..., or "" where it was stopped. steps:
    it took; frames: of them, up to the end. score: sum of rewards. driven: metres that the camera went. distance:
    metres to the goal at the start, NaN without one.
    """

    seed: int
    reason: str
    steps: int
    frames: int
    score: float
    driven: float
    distance: float

    @property
    def success(self) -> bool:
        """Whether it reached what the task asks for."""
        return self.reason == "success"


def run_episodes(
    policy: Policy[Any],
    env: SanaWMVectorEnv,
    seeds: Sequence[int],
    *,
    max_steps: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[EpisodeResult]:
    """An episode of each seed, in the order of the seeds; as many at a time as the environment has worlds.

    max_steps: after which an episode is stopped. `progress` is told how many episodes are done, and of how many.
    SpaceError: a policy made for other spaces. ConfigError: an environment whose worlds begin again by themselves.
    ActionError names the worlds for which the policy gives NaN.
    """
    check_policy(policy, env)
    if env.autoreset_mode is not AutoresetMode.DISABLED:
        raise ConfigError(
            f"autoreset_mode is {env.autoreset_mode.value!r}, and episodes are run one group of seeds after another; "
            "build the environment with 'Disabled'."
        )
    results: list[EpisodeResult] = []
    for first in range(0, len(seeds), env.num_envs):
        group = list(seeds[first : first + env.num_envs])
        padded = group + group[:1] * (env.num_envs - len(group))
        results += _run_group(policy, env, padded, max_steps)[: len(group)]
        progress(len(results), len(seeds))
    return results


def _run_group(policy: Policy[Any], env: SanaWMVectorEnv, seeds: Sequence[int], max_steps: int) -> list[EpisodeResult]:
    worlds = env.num_envs
    observation, info = env.reset(seed=seeds)
    distance = np.array(info.get("distance", np.full(worlds, np.nan)))
    position = info["poses"][:, -1, :3, 3]
    state = policy.initial_state(worlds)
    score, driven, frames, steps = np.zeros(worlds), np.zeros(worlds), np.zeros(worlds, int), np.zeros(worlds, int)
    over, reasons = np.zeros(worlds, bool), np.full(worlds, "", object)
    for _ in range(max_steps):
        actions, state = policy.act(observation, state)
        observation, rewards, terminated, truncated, info = env.step(actions)
        path = np.concatenate([position[:, None], info["poses"][..., :3, 3]], axis=1)
        lengths = np.linalg.norm(np.diff(path, axis=1), axis=2)
        valid = np.arange(lengths.shape[1]) < info["valid_frames"][:, None]  # none once an episode is over
        driven, score, frames = driven + (lengths * valid).sum(1), score + rewards, frames + info["valid_frames"]
        steps, position, over = steps + ~over, path[:, -1], terminated | truncated
        reasons[over] = (info["termination_reason"] + info["truncation_reason"])[over]
        if over.all():
            break
    rows = zip(seeds, reasons, steps, frames, score, driven, distance)
    return [
        EpisodeResult(
            seed=int(seed),
            reason=str(reason),
            steps=int(count),
            frames=int(shown),
            score=float(total),
            driven=float(metres),
            distance=float(away),
        )
        for seed, reason, count, shown, total, metres, away in rows
    ]
