"""EpisodeTape: what happened in the running episode, in memory, as the arrays that an episode store takes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from sanawm_env.errors import LifecycleError
from sanawm_env.wrappers.recorded import recorded
from sanawm_env.wrappers.rows import Rows, start_rows, step_rows, used_actions


class EpisodeTape(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Keeps the running episode in memory; a reset starts an empty tape. `StoreEpisodes` writes to a store instead.

    The environment must be one world with frames="all". Observations, rewards and infos pass through unchanged.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        self._start: Rows = {}
        self._steps: list[Rows] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A reset of the environment, whose picture is the start."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._start, self._steps = start_rows(info), []
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step of the environment, whose frames are the next F rows."""
        if not self._start:
            raise LifecycleError("the tape is empty; call reset() before step().")
        observation, reward, terminated, truncated, info = self.env.step(action)
        world: Any = self.env.unwrapped
        before = self._steps[-1]["poses"][-1] if self._steps else self._start["start_poses"]
        actions = used_actions(recorded(world), np.asarray(action)[None], before[None])[0]
        seconds = world.last_timing["step_seconds"]
        self._steps.append(step_rows(info, actions, self._start["start_intrinsics"], seconds))
        return observation, reward, terminated, truncated, info

    def arrays(self) -> Rows:
        """The episode so far, as `datasets.writer.EpisodeWriter.add` takes it: F rows a step, and the start's arrays.

        The arrays are the caller's own.
        """
        if not self._steps:
            raise LifecycleError("the tape has no step; call reset() and step() first.")
        rows = {name: np.concatenate([step[name] for step in self._steps]) for name in self._steps[0]}
        return rows | {name: values.copy() for name, values in self._start.items()}
