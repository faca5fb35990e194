"""Reads `exports.diffusion_policy`, and other replay buffers with "img", "action", "camera_pose", "intrinsics".

A buffer with a group `last` has the frame that each episode's last action led to; without one, that action is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from sanawm_env.datasets.imports.load import Found, facts, info_of, numbered
from sanawm_env.datasets.trajectory import Trajectory
from sanawm_env.errors import StorageError

NEEDED = ("img", "action", "camera_pose", "intrinsics")
PIECE = 16  # pictures in memory


def read(folder: Path, sidecar: Mapping[str, Any] | None, fps: float | None) -> Found:
    """The episodes of a replay buffer. "img" must be uint8 [N, H, W, 3]."""
    try:
        root: Any = zarr.open_group(folder, mode="r", zarr_format=2)
        ends = np.asarray(root["meta/episode_ends"][:])
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise StorageError(f"{folder} is no replay buffer of Zarr format 2 ({error}); give its folder") from error
    there = sorted(name for name, _ in root["data"].arrays())
    if missing := sorted({*NEEDED} - {*there}):
        raise StorageError(f"{folder} lacks data/{missing}, it has {there}; a store needs camera poses and intrinsics")
    picture = root["data/img"]
    if picture.dtype != np.uint8 or picture.ndim != 4 or picture.shape[-1] != 3:
        raise StorageError(f"data/img is {picture.dtype} {picture.shape}, expected uint8 [N, H, W, 3]; convert it")
    columns = list(root.attrs.get("action_columns", ())) or numbered(root["data/action"].shape[1])
    info = info_of(sidecar, root.attrs.get("fps", fps), columns)
    episodes = (_trajectory(root, ends, index, facts(sidecar, index)) for index in range(len(ends)))
    return Found(info=info, count=len(ends), trajectories=episodes)


def _trajectory(root: Any, ends: np.ndarray, index: int, told: Mapping[str, Any]) -> Trajectory:
    rows, whole = slice(int(ends[index - 1]) if index else 0, int(ends[index])), "last" in root
    steps = rows.stop - rows.start - (not whole)

    def observed(key: str, kind: str) -> np.ndarray:
        values = np.asarray(root[f"data/{key}"][rows], kind)
        return np.concatenate([values, np.asarray(root[f"last/{key}"][index : index + 1], kind)]) if whole else values

    def of_step(key: str, kind: str) -> np.ndarray:
        stored = root["data"].get(key)
        return np.zeros(steps, kind) if stored is None else np.asarray(stored[rows], kind)[:steps]

    return Trajectory(
        frames=_pictures(root, rows, index if whole else None),
        poses=observed("camera_pose", "float64").reshape(-1, 4, 4),
        intrinsics=observed("intrinsics", "float32"),
        actions=of_step("action", "float32"),
        rewards=of_step("reward", "float64"),
        terminated=of_step("terminated", "bool"),
        truncated=of_step("truncated", "bool"),
        **told,
    )


def _pictures(root: Any, rows: slice, last: int | None) -> Callable[[], Iterator[np.ndarray]]:
    def give() -> Iterator[np.ndarray]:
        for start in range(rows.start, rows.stop, PIECE):
            yield from np.asarray(root["data/img"][start : min(start + PIECE, rows.stop)])
        if last is not None:
            yield np.asarray(root["last/img"][last])

    return give
