"""The replay buffer of diffusion_policy: a Zarr group of format 2 that its `ReplayBuffer` opens.

`data/<key>` holds the T rows of every episode back to back, `meta/episode_ends` where each ends. Row k of an episode is
frame k, the first one the picture of `reset`, and "action" of row k is taken at frame k and leads to frame k + 1; so
are "reward", "terminated" and "truncated" those of that step. Frame T, which has no action, lies in `last/`, a row an
episode, where `ReplayBuffer` does not look. Pictures are stored without loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

from sanawm_env.datasets.exports.export import Source
from sanawm_env.datasets.trajectory import Trajectory

CHUNK_BYTES = 2_000_000  # about what the library's own buffers have
COMPRESSOR = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)


def write(source: Source, folder: Path, name: str) -> None:
    """Writes every episode of the source into the folder, which becomes the group."""
    info = source.info
    root = zarr.open_group(folder, mode="w", zarr_format=2)
    for group in ("data", "last", "meta"):
        root.create_group(group)
    root.attrs.update(
        {
            "fps": info.fps,
            "action_columns": list(info.action_columns),
            "action_units": list(info.action_units),
            "camera_pose": "camera to world, OpenCV axes (x right, y down, z forward), metres",
            "intrinsics": "fx, fy, cx, cy in pixels",
            "licences": source.licences,
            "synthetic": source.synthetic,
        }
    )
    columns: dict[str, _Column] = {}
    ends: list[int] = []
    for trajectory in source:
        ends.append((ends[-1] if ends else 0) + len(trajectory))
        for key, rows in _rows(trajectory):
            if key not in columns:
                columns[key] = _Column(root, key, rows)
            columns[key].append(rows)
    for column in columns.values():
        column.flush()
    root.create_array("meta/episode_ends", data=np.array(ends, np.int64), chunks=(max(len(ends), 1),), compressors=None)


def _rows(trajectory: Trajectory) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of an episode by array."""
    steps = len(trajectory)
    observed = {"state": trajectory.states, "camera_pose": trajectory.poses, "intrinsics": trajectory.intrinsics}
    for key, values in observed.items():
        yield f"data/{key}", values[:steps]
        yield f"last/{key}", values[steps:]
    yield "data/action", trajectory.actions
    yield "data/reward", trajectory.rewards
    yield "data/terminated", trajectory.terminated
    yield "data/truncated", trajectory.truncated
    for k, picture in enumerate(trajectory.frames()):
        yield ("data/img" if k < steps else "last/img"), picture[None]


class _Column:
    """An array that grows along time; rows wait until they fill a chunk, so that no chunk is written twice."""

    def __init__(self, group: Any, name: str, like: np.ndarray) -> None:
        self._chunk = max(1, CHUNK_BYTES // max(1, like[:1].nbytes))
        self._waiting: list[np.ndarray] = []
        self._count = 0
        self._array = group.create_array(
            name,
            shape=(0, *like.shape[1:]),
            chunks=(self._chunk, *like.shape[1:]),
            dtype=like.dtype,
            compressors=COMPRESSOR,
            fill_value=0,
            config={"write_empty_chunks": True},  # else zeros are left out and cannot be told from a lost file
        )

    def append(self, rows: np.ndarray) -> None:
        self._waiting.append(rows)
        self._count += len(rows)
        while self._count >= self._chunk:
            joined = np.concatenate(self._waiting)
            self._write(joined[: self._chunk])
            self._waiting, self._count = [joined[self._chunk :]], len(joined) - self._chunk

    def flush(self) -> None:
        if self._count:
            self._write(np.concatenate(self._waiting))

    def _write(self, rows: np.ndarray) -> None:
        start = self._array.shape[0]
        self._array.resize((start + len(rows), *self._array.shape[1:]))
        self._array[start:] = rows
