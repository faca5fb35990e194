"""Reads `exports.mp4`: every JSON file with an MP4 file of its name beside it is an episode."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.datasets.exports.export import SIDECAR
from sanawm_env.datasets.imports.load import Found, info_of, numbered
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.trajectory import FIELDS, Trajectory
from sanawm_env.datasets.video import read_frames
from sanawm_env.errors import StorageError

NEEDED = ("poses", "intrinsics", "actions")
KNOWN = ("id", "seed", "room", "reason", "seconds")


def read(folder: Path, sidecar: Mapping[str, Any] | None, fps: float | None) -> Found:
    """The episodes of a folder, in the order of their names. Needed of the JSON: fps, poses, intrinsics, actions."""
    files = [path for path in sorted(folder.glob("*.json")) if path.name != SIDECAR]
    if not files:
        raise StorageError(f"{folder} has no episode-*.json; give the folder that holds them")
    return Found(info=_info(_json(files[0]), sidecar, fps), count=len(files), trajectories=map(_trajectory, files))


def _info(told: Mapping[str, Any], sidecar: Mapping[str, Any] | None, fps: float | None) -> StoreInfo:
    width = np.shape(told["actions"])[-1]
    return info_of(sidecar, told.get("fps", fps), told.get("action_columns") or numbered(width))


def _trajectory(path: Path) -> Trajectory:
    told = _json(path)
    try:
        arrays = {key: np.array(told[key], FIELDS[key]) for key in NEEDED}
    except ValueError as error:
        raise StorageError(f"{path} holds rows of different lengths ({error}); give numbers only") from error
    steps = len(arrays["actions"])
    if arrays["intrinsics"].shape == (4,):
        arrays["intrinsics"] = np.tile(arrays["intrinsics"], (steps + 1, 1))
    zeros = {key: np.zeros(steps, kind) for key, kind in FIELDS.items() if key not in NEEDED}
    arrays |= {key: np.array(told.get(key, zero), zero.dtype) for key, zero in zeros.items()}
    facts: dict[str, Any] = {key: told[key] for key in KNOWN if key in told}
    source = dict(told.get("provenance", {}))
    if source:
        source["extra"] = {**source.get("extra", {}), "imported_from": "mp4"}
    frames = functools.partial(read_frames, path.with_suffix(".mp4"))
    return Trajectory(frames=frames, told=facts, source=source, **arrays)


def _json(path: Path) -> dict[str, Any]:
    try:
        told = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"{path} is not an episode in JSON ({error}); restore it, or take it away") from error
    if missing := [key for key in NEEDED if key not in told]:
        raise StorageError(f"{path} lacks {missing}; examples/formats.md says what an episode must have")
    return told
