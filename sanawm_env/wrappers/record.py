"""RecordCamera: the episodes of any Gymnasium environment with a camera, in an episode store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from sanawm_env import __version__
from sanawm_env.datasets.provenance import Provenance, StoreInfo
from sanawm_env.errors import ConfigError
from sanawm_env.wrappers.rows import package_commit
from sanawm_env.wrappers.running_episodes import Rows, RunningEpisodes

Camera = Callable[[Any], tuple[np.ndarray, np.ndarray]]
PLAIN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class RecordCamera(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Writes every episode into the store at `path` while the environment runs, one frame a step (F = 1).

    The picture is what `render()` gives (render_mode="rgb_array"), of one size. camera: called with the unwrapped
    environment after each reset and step; returns the pose of the camera that took it, [4, 4] camera to world with
    OpenCV axes (x right, y down, z forward) in metres, and (fx, fy, cx, cy) in pixels, counted from the centre of the
    upper left one. `mujoco_camera` makes one for MuJoCo.

    fps: steps a second, that of the environment's metadata if None. task: in words. action_columns, action_units: of
    the numbers of an action, in order. licences, synthetic, intrinsics_source, extra: of the `Provenance`. codec:
    picture_codec and picture_quality of a `StoreInfo`. durable: as of `EpisodeWriter`.

    An episode that the environment truncates ends with "timeout", one that it terminates with "success" if
    info["is_success"] or info["success"] says so and with "other" if not. The seed is that given to `reset`, -1 where
    none was. Observations, rewards and infos pass through unchanged. `close` when done.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        path: str | Path,
        camera: Camera,
        *,
        fps: float | None = None,
        task: str = "",
        action_columns: Sequence[str] | None = None,
        action_units: Sequence[str] | None = None,
        licences: Sequence[str] = (),
        synthetic: bool = True,
        intrinsics_source: str = "camera callback",
        extra: Mapping[str, Any] | None = None,
        codec: Mapping[str, Any] | None = None,
        durable: bool = True,
    ) -> None:
        told = {"licences": licences, "synthetic": synthetic, "intrinsics_source": intrinsics_source, "extra": extra}
        told |= {"fps": fps, "task": task, "action_columns": action_columns, "action_units": action_units}
        told |= {"path": path, "camera": camera, "codec": codec, "durable": durable}
        gymnasium.utils.RecordConstructorArgs.__init__(self, _disable_deepcopy=True, **told)
        gymnasium.Wrapper.__init__(self, env)
        if not isinstance(env.action_space, PLAIN):
            raise ConfigError(f"actions are {env.action_space}, a store keeps rows of numbers; wrap the action space.")
        self.camera = camera
        count = int(np.asarray(env.action_space.sample()).size)
        columns = tuple(action_columns or (f"action_{k}" for k in range(count)))
        info = StoreInfo(
            fps=_rate(env, fps),
            frames_per_step=1,
            action_columns=columns,
            action_units=tuple(action_units or ("",) * len(columns)),
            **(codec or {}),
        )
        if len(columns) != count:
            raise ConfigError(f"action_columns are {columns}, the actions have {count} numbers; name each.")
        self.source = Provenance(
            action_map=repr(env.action_space),
            task=task or ("" if env.spec is None else env.spec.id),
            intrinsics_source=intrinsics_source,
            units_per_metre=1.0,
            package_version=__version__,
            package_commit=package_commit(),
            licences=tuple(licences),
            synthetic=synthetic,
            extra=dict(extra or {}),
        )
        self.log = RunningEpisodes(path, info, durable=durable)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A reset of the environment, which begins an episode of the store."""
        began = time.perf_counter()
        observation, info = self.env.reset(seed=seed, options=options)
        start = {f"start_{key}": values for key, values in self._look().items()}
        known = -1 if seed is None else seed
        self.log.begin(0, start, time.perf_counter() - began, seed=known, provenance=self.source)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step of the environment, kept unless the episode has ended before."""
        began = time.perf_counter()
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.log.running(0):
            rows: Rows = {key: values[None] for key, values in self._look().items()}
            seconds = time.perf_counter() - began
            rows |= {
                "actions": np.asarray(action, np.float32).reshape(1, -1),
                "rewards": np.array([reward], np.float64),
                "terminated": np.array([terminated]),
                "truncated": np.array([truncated and not terminated]),
                "valid": np.array([True]),
                "step_seconds": np.array([seconds], np.float32),
            }
            self.log.append(0, rows, seconds, _reason(terminated, truncated, info))
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Commits the running episode, closes store and environment."""
        self.log.close()
        super().close()

    def _look(self) -> Rows:
        """The picture of this instant, and the pose and lens of its camera."""
        picture: Any = self.env.render()
        seen = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else repr(picture)
        if not (seen.startswith("uint8") and picture.ndim == 3 and picture.shape[2] == 3):
            raise ConfigError(f"render() gave {seen}, expected uint8 [H, W, 3]; make it with render_mode='rgb_array'.")
        pose, intrinsics = (np.asarray(part, np.float64) for part in self.camera(self.env.unwrapped))
        _check_camera(pose, intrinsics)
        return {"frames": picture.copy(), "poses": pose.copy(), "intrinsics": intrinsics.astype(np.float32)}


def _check_camera(pose: np.ndarray, intrinsics: np.ndarray) -> None:
    import torch

    from sanawm_env.camera import check_intrinsics, check_rigid

    if pose.shape != (4, 4) or intrinsics.shape != (4,):
        raise ConfigError(f"camera gave shapes {pose.shape} and {intrinsics.shape}, expected (4, 4) and (4,).")
    check_rigid(torch.from_numpy(pose), "the camera's pose")
    check_intrinsics(torch.from_numpy(intrinsics)[None])


def _rate(env: gymnasium.Env[Any, Any], fps: float | None) -> float:
    told = env.metadata.get("render_fps") if fps is None else fps
    if told is None:
        raise ConfigError("the environment does not say how many steps a second it makes; pass fps.")
    return float(told)


def _reason(terminated: bool, truncated: bool, info: Mapping[str, Any]) -> str:
    if terminated:
        return "success" if bool(info.get("is_success", info.get("success", False))) else "other"
    return "timeout" if truncated else ""
