"""EpisodeTape: what happened in the running episode, as the arrays that an episode store takes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from sanawm_env.errors import ConfigError, LifecycleError


class EpisodeTape(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Keeps frames, poses and actions of the running episode in memory; a reset starts an empty tape.

    `arrays()` gives them row by row as `datasets.schema.TABLE` says, ready for `datasets.writer.EpisodeWriter.add`. The
    environment must be one world with frames="all". Observations, rewards and infos pass through unchanged.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        self._chunks: list[dict[str, np.ndarray]] = []
        self._intrinsics = np.zeros(4, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A reset of the environment, whose picture is the first row."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._intrinsics = np.asarray(info["intrinsics"], np.float32)
        self._chunks = []
        self._keep(info, self._numbers(None, 1), 1)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step of the environment, whose frames are the next rows."""
        if not self._chunks:
            raise LifecycleError("the tape is empty; call reset() before step().")
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._keep(info, self._numbers(action, len(info["poses"])), info["valid_frames"])
        return observation, reward, terminated, truncated, info

    def arrays(self) -> dict[str, np.ndarray]:
        """The T rows of the episode so far: frames, poses, actions (row t leads to frame t + 1), intrinsics, valid.

        The arrays are the caller's own.
        """
        if not self._chunks:
            raise LifecycleError("the tape is empty; call reset() first.")
        rows = {name: np.concatenate([chunk[name] for chunk in self._chunks]) for name in self._chunks[0]}
        # The tape notes each action beside the frame that it led to, a store beside the one that it left.
        rows["actions"] = np.concatenate([rows["actions"][1:], np.zeros_like(rows["actions"][:1])])
        rows["intrinsics"] = np.tile(self._intrinsics, (len(rows["frames"]), 1))
        return rows

    def _keep(self, info: dict[str, Any], actions: np.ndarray, valid: int) -> None:
        frames, poses = info.get("frames"), np.asarray(info["poses"], np.float64)
        if frames is None or len(frames) != len(poses):
            raise ConfigError("EpisodeTape needs all frames in info; build the environment with frames='all'.")
        counted = np.arange(len(poses)) < valid
        self._chunks.append({"frames": np.array(frames), "poses": poses, "actions": actions, "valid": counted})

    def _numbers(self, action: Any, frames: int) -> np.ndarray:
        """The action of each of a chunk's frames within its limits, float32 [frames, A]; zeros for none."""
        action_map = self.env.get_wrapper_attr("action_map")
        if action is None:
            return np.zeros((frames, action_map.size), np.float32)
        given = np.asarray(action_map.read(action), np.float64)
        rows = given.reshape(1, -1, action_map.size)
        inside, _ = action_map.limit(rows)
        return np.broadcast_to(inside[0], (frames, action_map.size)).astype(np.float32)
