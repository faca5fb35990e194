"""The layout of an episode store, one table that writer, reader and validator share.

A store is a Zarr v3 group: `data/<array>` holds every episode back to back along time, `meta/episode_ends` says where
each one ends and is written last, so that a crash leaves unreferenced rows and never half an episode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from sanawm_env.errors import StorageError

NAME = "sanawm-episodes"
VERSION = 1
ENDS = "meta/episode_ends"
SEEDS = "meta/episode_seeds"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """One array of the store: `axes` name its dimensions (a number is a fixed length), time first and alone chunked.

    chunk: rows a chunk. shard: rows a file. codec: "jpeg" keeps pictures one by one, "zstd" is lossless.
    """

    name: str
    dtype: str
    axes: tuple[str | int, ...]
    unit: str
    codec: Literal["jpeg", "zstd"] = "zstd"
    chunk: int = 256
    shard: int | None = None
    required: bool = True
    meaning: str = ""


TABLE: tuple[Array, ...] = (
    Array(
        name="frames",
        dtype="uint8",
        axes=("time", "height", "width", 3),
        unit="grey level",
        codec="jpeg",
        chunk=1,
        shard=64,
        meaning="what the camera saw",
    ),
    Array(
        name="poses",
        dtype="float64",
        axes=("time", 4, 4),
        unit="m",
        meaning="camera to world, OpenCV axes, of the same row of frames",
    ),
    Array(
        name="actions",
        dtype="float32",
        axes=("time", "action"),
        unit="see attribute action_units",
        meaning="row t leads from frame t to frame t + 1; the last row of an episode is zero",
    ),
    Array(name="intrinsics", dtype="float32", axes=("time", 4), unit="pixel", meaning="fx, fy, cx, cy"),
    Array(
        name="valid",
        dtype="bool",
        axes=("time",),
        unit="",
        meaning="false for frames after the end of the task within the last chunk",
    ),
    Array(
        name="truth_frames",
        dtype="uint8",
        axes=("time", "height", "width", 3),
        unit="grey level",
        codec="jpeg",
        chunk=1,
        shard=64,
        required=False,
        meaning="what a camera of the ground truth sees from the same pose",
    ),
    Array(
        name="truth_depth",
        dtype="float32",
        axes=("time", "height", "width"),
        unit="m",
        chunk=8,
        shard=64,
        required=False,
        meaning="distance along the optical axis in the ground truth",
    ),
)
BY_NAME: Mapping[str, Array] = {array.name: array for array in TABLE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Attributes of a whole store. fps: frames a second of world time. action_*: columns of `actions`, in order."""

    fps: float
    action_map: str
    action_columns: tuple[str, ...]
    action_units: tuple[str, ...]
    bundle_sha256: str
    package_version: str
    units_per_metre: float | None = 1.0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_episode(arrays: Mapping[str, np.ndarray], info: StoreInfo) -> int:
    """Number of frames of an episode whose arrays fit the table; StorageError says which does not, and how."""
    missing = [array.name for array in TABLE if array.required and array.name not in arrays]
    unknown = [name for name in arrays if name not in BY_NAME]
    if missing or unknown:
        raise StorageError(f"episode lacks arrays {missing} and has unknown arrays {unknown}; known: {list(BY_NAME)}")
    sizes: dict[str, int] = {"action": len(info.action_columns)}
    for name, values in arrays.items():
        _check_array(BY_NAME[name], values, sizes)
    if sizes["time"] < 1:
        raise StorageError("episode has no frames; record at least the first one")
    return sizes["time"]


def _check_array(array: Array, values: np.ndarray, sizes: dict[str, int]) -> None:
    if values.dtype != np.dtype(array.dtype) or values.ndim != len(array.axes):
        raise StorageError(
            f"array {array.name} is {values.dtype} {values.shape}, expected {array.dtype} with axes {array.axes}"
        )
    for axis, length in zip(array.axes, values.shape):
        expected = axis if isinstance(axis, int) else sizes.setdefault(axis, length)
        if length != expected:
            raise StorageError(
                f"array {array.name} has length {length} on axis {axis}, expected {expected} as the others"
            )
