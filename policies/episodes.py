"""Runs a policy through episodes of a vector environment, one a seed, and says how each went."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sanawm_env.errors import ActionError, ConfigError
from sanawm_env.policies.base import Policy
from sanawm_env.spaces import check_policy

Perturb = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
_NOISE = 11  # purpose of the numbers drawn here among those of a seed


@dataclass(frozen=True, kw_only=True)
class Episode:
    """How an episode went. reason: why it ended, as `info` of its last step has it. seconds of world time, metres
    driven up to the end; metres to the goal at the start and after the last step, within which the end may lie, NaN
    where the task has none."""

    seed: int
    reason: str
    seconds: float
    metres: float
    start_distance: float
    distance: float

    @property
    def success(self) -> bool:
        return self.reason == "success"


class Watcher(Protocol):
    """Is told of all that happens."""

    def began(self, env: Any, info: dict[str, Any], worlds: Sequence[int]) -> None:
        """A reset of these worlds; info with a row a world."""

    def stepped(self, env: Any, info: dict[str, Any], taken: np.ndarray, wanted: np.ndarray, state: Any) -> None:
        """A step of all worlds, those that had ended too. taken, wanted: actions [B, ...], as they were executed and as
        the policy gave them; state: that of the policy then."""


def run_episodes(
    env: Any,
    policy: Policy[Any],
    seeds: Sequence[int],
    *,
    perturb: Perturb | None = None,
    watcher: Watcher | None = None,
) -> Iterator[Episode]:
    """Episodes in the order in which they end. A world whose episode has ended takes the next seed.

    env: of `SanaWMVectorEnv`'s kind with autoreset "Disabled", its tasks with a time limit or horizon; all its worlds
    are reset. perturb: (actions [B, ...], seeds [B], steps [B]) to the actions that are executed. SpaceError: the
    policy was made for another environment. ActionError: it gave a number that is not finite.
    """
    check_policy(policy, env)
    if not seeds:
        raise ConfigError("seeds is empty, allowed are one or more; pass those of the episodes to run.")
    yield from _Runs(env, policy, list(seeds), perturb, watcher).run()


def action_noise(space: Any, deviation: Any) -> Perturb | None:
    """Adds normal noise to actions [B, A], for the length of a step and within a Box; each row's is a function of its
    seed and step. deviation: one, or one a column; None is returned where all are 0."""
    spread = np.broadcast_to(np.asarray(deviation, np.float64), space.shape)

    def perturb(actions: np.ndarray, seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
        generators = [np.random.default_rng([max(seed, 0), step, _NOISE]) for seed, step in zip(seeds, steps)]
        drawn = np.array([generator.normal(size=space.shape) for generator in generators])
        noisy: np.ndarray = np.clip(actions + drawn * spread, space.low, space.high).astype(np.float32)
        return noisy

    return perturb if spread.any() else None


class _Runs:
    """The worlds of an environment on their way through a list of seeds; slots without a seed have nothing to do."""

    def __init__(
        self, env: Any, policy: Policy[Any], seeds: list[int], perturb: Perturb | None, watcher: Watcher | None
    ) -> None:
        self.env, self.policy, self.perturb, self.watcher = env, policy, perturb, watcher
        self.waiting = seeds
        count = env.num_envs
        self.seed, self.step = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        self.metres, self.first = np.zeros(count), np.full(count, np.nan)
        self.place = np.zeros((count, 3))
        self.state = policy.initial_state(count)

    def run(self) -> Iterator[Episode]:
        observation = self._begin(np.ones(self.env.num_envs, bool))
        while (self.seed >= 0).any():
            wanted, self.state = self.policy.act(observation, self.state)
            self._check(wanted)
            taken = wanted if self.perturb is None else self.perturb(wanted, self.seed, self.step)
            observation, _, terminated, truncated, info = self.env.step(taken)
            if self.watcher is not None:
                self.watcher.stepped(self.env, info, taken, wanted, self.state)
            self.step += 1
            self._measure(info)
            over = (terminated | truncated) & (self.seed >= 0)
            yield from [self._told(info, int(world)) for world in np.flatnonzero(over)]
            self.seed[over] = -1
            if over.any() and self.waiting:
                observation = self._begin(over)

    def _begin(self, free: np.ndarray) -> Any:
        """New episodes in free worlds, as far as seeds go; the very first reset begins all worlds."""
        whole = bool(free.all())
        worlds = np.flatnonzero(free)[: len(self.waiting)].tolist()
        mask = np.zeros(len(free), bool)
        mask[worlds] = True
        self.seed[worlds] = [self.waiting.pop(0) for _ in worlds]
        given = [int(self.seed[world]) if mask[world] else int(self.seed[worlds[0]]) for world in range(len(free))]
        options = {} if whole else {"reset_mask": mask}
        observation, info = self.env.reset(seed=given, options=options)
        self.state = self.policy.reset(self.state, free if whole else mask)
        self.step[mask], self.metres[mask] = 0, 0.0
        self.place[mask] = info["poses"][mask, -1, :3, 3]
        self.first[mask] = info["distance"][mask] if "distance" in info else np.nan
        if self.watcher is not None:
            self.watcher.began(self.env, info, worlds)
        return observation

    def _check(self, actions: np.ndarray) -> None:
        wrong = ~np.isfinite(actions.reshape(len(actions), -1)).all(axis=1) & (self.seed >= 0)
        if wrong.any():
            world = int(np.flatnonzero(wrong)[0])
            raise ActionError(
                f"the policy gave {actions[world].tolist()} in world {world} (seed {self.seed[world]}, step "
                f"{self.step[world]}), allowed are finite numbers; look for NaN in its weights."
            )

    def _measure(self, info: dict[str, Any]) -> None:
        path = np.concatenate([self.place[:, None], info["poses"][..., :3, 3]], axis=1)
        lengths = np.linalg.norm(np.diff(path, axis=1), axis=-1)
        valid = np.arange(lengths.shape[1]) < info["valid_frames"][:, None]
        self.metres += np.where(valid, lengths, 0.0).sum(axis=1)
        self.place = path[:, -1]

    def _told(self, info: dict[str, Any], world: int) -> Episode:
        frames = (self.step[world] - 1) * self.env.frames_per_step + info["valid_frames"][world]
        return Episode(
            seed=int(self.seed[world]),
            reason=str(info["termination_reason"][world] or info["truncation_reason"][world]),
            seconds=float(frames / self.env.fps),
            metres=float(self.metres[world]),
            start_distance=float(self.first[world]),
            distance=float(info["distance"][world]) if "distance" in info else float("nan"),
        )
