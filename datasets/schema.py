"""The layout of an episode store, one table that writer, reader and validator share.

A store is a Zarr v3 group. `data/<array>` holds every episode back to back along time, F frames (rows) a step of the
world; `start/<array>` and `meta/<array>` hold one row an episode: what `reset` returned, and what is known of it. Row t
of `data` is frame t + 1 of its episode, so an episode of k steps has k F rows and no file holds two episodes.
`meta/episode_ends` says where each episode ends and is published last: rows beyond it do not exist for a reader.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from sanawm_env.errors import StorageError

NAME = "sanawm-episodes"
VERSION = 2
ENDS = "meta/episode_ends"
BLOCK = 2**20  # bytes of a saved state in a row
ROWS = 512  # rows a file of the arrays whose last file is written anew as they grow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """One array of the store. `axes` name its dimensions, a number is a fixed length; only the first one grows.

    axes[0]: "time" (a row a frame), "step" (a row a step of F frames), "episode", or "block" (of a saved state). codec:
    "picture" is the store's picture codec, "zstd" is lossless. chunk: rows decoded together; of pictures, that is the
    codec's affair (`layout.rows_per_chunk`). written: "once", a file holds a step, an episode or a block and is never
    touched again; "growing", a file is a chunk of rows, the last one replaced as episodes come.
    """

    name: str
    dtype: str
    axes: tuple[str | int, ...]
    unit: str
    codec: Literal["picture", "zstd"] = "zstd"
    chunk: int = ROWS
    written: Literal["once", "growing"] = "growing"
    required: bool = True
    meaning: str = ""

    @property
    def key(self) -> str:
        """Its name among the arrays of an episode: `data/frames` is "frames", `start/frames` is "start_frames"."""
        group, name = self.name.split("/")
        return name if group == "data" else f"{group}_{name}"

    def rows_per_file(self, frames_per_step: int) -> int:
        """Rows that a file holds."""
        if self.written == "growing":
            return self.chunk
        return frames_per_step if self.axes[0] == "time" else 1


def _pictures(name: str, meaning: str, *, required: bool = True) -> Array:
    return Array(
        name=name,
        dtype="uint8",
        axes=("time" if name.startswith("data/") else "episode", "height", "width", 3),
        unit="grey level",
        codec="picture",
        chunk=1,
        written="once",
        required=required,
        meaning=meaning,
    )


def _planes(name: str, dtype: str, unit: str, meaning: str) -> Array:
    return Array(
        name=name,
        dtype=dtype,
        axes=("time" if name.startswith("data/") else "episode", "height", "width"),
        unit=unit,
        chunk=1,
        written="once",
        required=False,
        meaning=meaning,
    )


POSE = "camera to world, OpenCV axes (x right, y down, z forward)"
TABLE: tuple[Array, ...] = (
    _pictures("data/frames", "what the camera saw; left out where latents are kept instead", required=False),
    Array(
        name="data/frame_digests",
        dtype="int64",
        axes=("time",),
        unit="",
        required=False,
        meaning="first 8 bytes of the SHA-256 of a frame's pixels before the picture codec",
    ),
    Array(name="data/poses", dtype="float64", axes=("time", 4, 4), unit="m", meaning=f"{POSE}, where a frame is seen"),
    Array(name="data/intrinsics", dtype="float32", axes=("time", 4), unit="pixel", meaning="fx, fy, cx, cy"),
    Array(
        name="data/actions",
        dtype="float32",
        axes=("time", "action"),
        unit="see attribute action_units",
        meaning="the action, within its limits, that led to the frame of the same row",
    ),
    Array(
        name="data/expert_actions",
        dtype="float32",
        axes=("time", "action"),
        unit="see attribute action_units",
        required=False,
        meaning="what an expert would do, for a step, at the instant from which the action of the same row leads on",
    ),
    Array(name="data/rewards", dtype="float64", axes=("time",), unit="", meaning="of the task, zero after the end"),
    Array(name="data/terminated", dtype="bool", axes=("time",), unit="", meaning="true where the task ended it"),
    Array(name="data/truncated", dtype="bool", axes=("time",), unit="", meaning="true where something else ended it"),
    Array(name="data/valid", dtype="bool", axes=("time",), unit="", meaning="false after the end within the last step"),
    Array(
        name="data/step_seconds",
        dtype="float32",
        axes=("time",),
        unit="s",
        required=False,
        meaning="spent on computing the step that the frame belongs to",
    ),
    Array(
        name="data/latents",
        dtype="float32",
        axes=("step", "latent", "channel", "latent_height", "latent_width"),
        unit="",
        chunk=1,
        written="once",
        required=False,
        meaning="of the step, those that its frames were decoded from",
    ),
    _pictures("data/truth_frames", "the ground truth seen from the same pose", required=False),
    _planes("data/truth_depth", "float32", "m", "of the truth, along the optical axis"),
    _planes("data/truth_instances", "int16", "", "number of the truth's object at each pixel"),
    Array(
        name="data/states",
        dtype="uint8",
        axes=("block", BLOCK),
        unit="byte",
        chunk=1,
        written="once",
        meaning="saved states of the world: length in 8 bytes, content, zeros up to the end of the block",
    ),
    Array(
        name="data/state_steps",
        dtype="int64",
        axes=("block",),
        unit="step",
        meaning="steps of the episode before the state to which the block belongs",
    ),
    _pictures("start/frames", "the picture that reset returned"),
    Array(
        name="start/frame_digests",
        dtype="int64",
        axes=("episode",),
        unit="",
        required=False,
        meaning="as data/frame_digests, of start/frames",
    ),
    Array(name="start/poses", dtype="float64", axes=("episode", 4, 4), unit="m", meaning=f"{POSE}, of start/frames"),
    Array(name="start/intrinsics", dtype="float32", axes=("episode", 4), unit="pixel", meaning="fx, fy, cx, cy"),
    Array(
        name="start/goals",
        dtype="float64",
        axes=("episode", 3),
        unit="m",
        required=False,
        meaning="where the task's goal lies, in the frame of the poses",
    ),
    Array(
        name="start/latents",
        dtype="float32",
        axes=("episode", "channel", "latent_height", "latent_width"),
        unit="",
        chunk=1,
        written="once",
        required=False,
        meaning="those that start/frames was decoded from",
    ),
    _pictures("start/truth_frames", "the ground truth seen from the start pose", required=False),
    _planes("start/truth_depth", "float32", "m", "of the truth, along the optical axis"),
    _planes("start/truth_instances", "int16", "", "number of the truth's object at each pixel"),
    Array(name=ENDS, dtype="int64", axes=("episode",), unit="row", meaning="rows of data up to the episode's end"),
    Array(name="meta/episode_seeds", dtype="int64", axes=("episode",), unit="", meaning="seed of the world"),
    Array(
        name="meta/episode_rooms", dtype="int64", axes=("episode",), unit="", meaning="seed of its room, -1 for none"
    ),
    Array(
        name="meta/episode_blocks", dtype="int64", axes=("episode",), unit="row", meaning="rows of data/states so far"
    ),
    Array(name="meta/episode_reasons", dtype="uint8", axes=("episode",), unit="", meaning="index into end_reasons"),
    Array(name="meta/episode_sources", dtype="int32", axes=("episode",), unit="", meaning="index into sources"),
    Array(name="meta/episode_ids", dtype="uint8", axes=("episode", 16), unit="", meaning="unique number of an episode"),
    Array(name="meta/episode_seconds", dtype="float64", axes=("episode",), unit="s", meaning="spent on computing it"),
)
BY_NAME: Mapping[str, Array] = {array.name: array for array in TABLE}
BY_KEY: Mapping[str, Array] = {array.key: array for array in TABLE if not array.name.startswith("meta/")}
STATES = ("states", "state_steps")  # in every store, with as many rows as there are states to keep
EPISODE: Mapping[str, Array] = {key: array for key, array in BY_KEY.items() if key not in STATES}
META: tuple[Array, ...] = tuple(array for array in TABLE if array.name.startswith("meta/"))
END_REASONS = ("", "success", "collision", "horizon", "timeout", "model_fault", "other", "drift")
# "": stopped while it still went on. "other": an end of an environment that is not ours.
Sizes = dict[str, int]


def markdown() -> str:
    """The table as a page shows it (examples/data.md)."""
    heads = ("array", "dtype", "axes", "unit", "codec", "rows a file", "needed", "what it is")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for array in TABLE:
        count = str(array.chunk) if array.written == "growing" else {"time": "F"}.get(str(array.axes[0]), "1")
        axes = ", ".join(map(str, array.axes))
        cells = (f"`{array.name}`", array.dtype, axes, array.unit or "-", array.codec, count)
        rows.append(f"| {' | '.join(cells)} | {'yes' if array.required else ''} | {array.meaning} |")
    return "\n".join(rows)


def check_names(keys: set[str], known: set[str] | None) -> None:
    """StorageError unless `keys` are the arrays of an episode: every required one, frames or latents or both, nothing
    unknown, and exactly those of the store (`known`, None for a new one)."""
    missing = sorted(array.key for array in EPISODE.values() if array.required and array.key not in keys)
    missing += [] if {"frames", "latents"} & keys else ["frames"]
    unknown = sorted(keys - set(EPISODE))
    if missing or unknown:
        raise StorageError(f"episode lacks arrays {missing} and has unknown arrays {unknown}; known: {list(EPISODE)}")
    for key in keys:
        partner = f"start_{key}"
        if partner in BY_KEY and partner not in keys:
            raise StorageError(f"episode has {key} but no {partner}; give both, or neither")
    if known is not None and keys != known:
        raise StorageError(
            f"episode has arrays {sorted(keys)}, the store {sorted(known)}; give the same, or use another store"
        )


def check_rows(arrays: Mapping[str, np.ndarray], sizes: Sizes) -> int:
    """Number of steps in these arrays of `data`, whose dtype and axes are as in the table.

    sizes: length of each named axis, "frames_per_step" among them; lengths seen for the first time are added. Raises
    StorageError and then adds nothing.
    """
    seen = {**sizes}
    steps = {key: _check_array(BY_KEY[key], np.asarray(values), seen) for key, values in arrays.items()}
    if len(set(steps.values())) != 1 or min(steps.values()) < 1:
        raise StorageError(f"arrays hold these numbers of steps: {steps}; expected the same, 1 or more")
    sizes |= seen
    return next(iter(steps.values()))


def check_start(arrays: Mapping[str, np.ndarray], sizes: Sizes) -> None:
    """Checks the arrays of `start`, without their axis "episode", like `check_rows`."""
    seen = {**sizes}
    allowed = [key for key in BY_KEY if key.startswith("start_")]
    if unknown := sorted(set(arrays) - set(allowed)):
        raise StorageError(f"the start of an episode has unknown arrays {unknown}; known: {allowed}")
    for key, values in arrays.items():
        _check_array(BY_KEY[key], np.asarray(values)[None], seen)
    sizes |= seen


def _check_array(array: Array, values: np.ndarray, sizes: Sizes) -> int:
    """Steps or episodes that the values hold."""
    if values.dtype != np.dtype(array.dtype) or values.ndim != len(array.axes):
        raise StorageError(
            f"array {array.key} is {values.dtype} {values.shape}, expected {array.dtype} with axes {array.axes}"
        )
    for axis, length in zip(array.axes[1:], values.shape[1:]):
        expected = axis if isinstance(axis, int) else sizes.setdefault(axis, length)
        if length != expected:
            raise StorageError(f"array {array.key} has length {length} on axis {axis}, expected {expected}")
    if array.axes[0] != "time":
        return len(values)
    steps, rest = divmod(len(values), sizes["frames_per_step"])
    if rest:
        raise StorageError(
            f"array {array.key} has length {len(values)} on axis time, expected a multiple of "
            f"{sizes['frames_per_step']}, the frames of a step; the picture of reset belongs to start_frames"
        )
    return steps


def check_valid(valid: np.ndarray) -> None:
    """StorageError unless frames stop being valid once at most: after its end an episode does not go on."""
    if (np.diff(valid.astype(np.int8)) > 0).any():
        raise StorageError("valid turns true again after it was false; frames after an episode's end stay invalid")
