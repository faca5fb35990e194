"""PerFrame: one frame a call, for code that expects an environment to move by one picture at a time."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from sanawm_env.errors import ConfigError, LifecycleError
from sanawm_env.snapshot import Snapshot


class PerFrame(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Plays the F frames of a chunk over F calls of `step`, with the reward of each frame and the end where it
    happened.

    The world moves by whole chunks, so it takes an action at every F-th call only and holds it for the frames that
    follow: `info["action_used"]` says at which. Needs observation="last" and frames="all". With render_mode="rgb_array"
    Gymnasium's own RecordVideo around this wrapper records every frame at the right rate.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        shape = env.observation_space.shape
        if shape is None or len(shape) != 3:
            raise ConfigError("PerFrame shows single frames; build the environment with observation='last'.")
        self.metadata = {**env.metadata, "render_fps": env.get_wrapper_attr("fps")}
        self._chunk: dict[str, Any] = {}
        self._index = 0
        self._left = 0
        self._frame: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; frames of the last chunk that were not shown are dropped."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._left = 0
        self._frame = observation.copy()
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The next frame. `info` has "pose" [4, 4], "frame" and "action_used", and what the chunk's step said."""
        used = self._left == 0
        if used:
            self._take(action)
        chunk, index = self._chunk, self._index
        self._index, self._left = index + 1, self._left - 1
        info: dict[str, Any] = chunk["info"]
        self._frame = np.array(info["frames"][index])
        ended = index == info["end_index"] or info["valid_frames"] == 0
        if ended:
            self._left = 0
        told = {name: value for name, value in info.items() if name not in ("frames", "poses", "rewards")}
        told |= {"pose": np.array(info["poses"][index]), "action_used": used}
        told["frame"] = info["frame"] - len(info["frames"]) + index + 1
        terminated, truncated = chunk["terminated"] and ended, chunk["truncated"] and ended
        return self._frame.copy(), float(info["rewards"][index]), terminated, truncated, told

    def get_state(self) -> Snapshot:
        """The world's state; LifecycleError while frames of a chunk wait to be shown, which no snapshot holds."""
        if self._left:
            raise LifecycleError(
                f"{self._left} frames of the chunk are still to be shown, and the world is past them already; take the "
                "snapshot where the next action is used."
            )
        state: Snapshot = self.env.get_wrapper_attr("get_state")()
        return state

    def set_state(self, state: Snapshot) -> None:
        """Continues from a snapshot with a new chunk; frames that waited to be shown are dropped."""
        self.env.get_wrapper_attr("set_state")(state)
        self._left = 0
        shown = self.env.get_wrapper_attr("observe")()[0]
        self._frame = None if shown is None else shown.copy()

    def render(self) -> Any:
        """The frame shown last, uint8 [H, W, 3]."""
        if self._frame is None:
            raise LifecycleError("there is no frame yet; call reset() first.")
        return self._frame.copy()

    def _take(self, action: Any) -> None:
        """Steps the world by a chunk, whose frames wait to be shown."""
        _, _, terminated, truncated, info = self.env.step(action)
        if "frames" not in info or len(info["frames"]) != len(info["poses"]):
            raise ConfigError("PerFrame needs all frames in info; build the environment with frames='all'.")
        self._chunk = {"info": info, "terminated": terminated, "truncated": truncated}
        self._index, self._left = 0, len(info["frames"])
