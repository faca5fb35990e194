"""Reads `exports.lerobot`, and LeRobotDatasets v3 of others that have "camera.pose" and "camera.intrinsics".

An export has the frame that each episode's last action led to, behind the others in the video; in a dataset of another
origin that action is dropped.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sanawm_env.datasets.exports.lerobot import CAMERA
from sanawm_env.datasets.imports.load import Found, facts, info_of, numbered
from sanawm_env.datasets.trajectory import Trajectory
from sanawm_env.datasets.video import read_frames
from sanawm_env.errors import StorageError

NEEDED = ("action", "camera.pose", "camera.intrinsics")
TOLD = ("next.reward", "next.done", "next.terminated")


def read(folder: Path, sidecar: Mapping[str, Any] | None, fps: float | None) -> Found:
    """The episodes of a dataset, in their order. fps is not needed: the dataset says it."""
    try:
        told = json.loads((folder / "meta/info.json").read_text())
        version, features = str(told["codebase_version"]), told["features"]
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{folder} is no LeRobotDataset ({error}); give the folder that holds meta/") from error
    if not version.startswith("v3."):
        raise StorageError(f"{folder} is of version {version}, expected v3; LeRobot's own script converts it")
    if missing := [key for key in NEEDED if key not in features]:
        raise StorageError(f"{folder} lacks {missing}; a store needs poses and intrinsics of its camera at every frame")
    if features.get(CAMERA, {}).get("dtype") != "video":
        raise StorageError(f"{folder} has no video {CAMERA!r}, it has {sorted(features)}; rename that of the camera")
    whole = sidecar is not None and len(sidecar["episodes"]) == told["total_episodes"]
    known = sidecar if whole else None
    width = features["action"]["shape"][0]
    names = features["action"].get("names")
    info = info_of(known, told["fps"], names if isinstance(names, list) else numbered(width))
    return Found(info=info, count=told["total_episodes"], trajectories=_trajectories(folder, told, known))


def _trajectories(folder: Path, told: Mapping[str, Any], sidecar: Mapping[str, Any] | None) -> Iterator[Trajectory]:
    path, table = None, pa.table({})
    for episode in _episodes(folder):
        place = {name: episode[f"data/{name}"] for name in ("chunk_index", "file_index")}
        if path != (path := folder / told["data_path"].format(**place)):
            table = pq.read_table(path, columns=["episode_index", *NEEDED, *(k for k in TOLD if k in told["features"])])
        rows = table.filter(pc.equal(table["episode_index"], episode["episode_index"]))
        if len(rows) != episode["length"]:
            raise StorageError(f"{path} has {len(rows)} rows of episode {episode['episode_index']}, not {episode}")
        film = {name: episode[f"videos/{CAMERA}/{name}"] for name in ("chunk_index", "file_index", "from_timestamp")}
        start = film.pop("from_timestamp") - 0.5 / told["fps"]  # times are rounded
        video = folder / told["video_path"].format(video_key=CAMERA, **film)
        yield _trajectory(rows, video, start, facts(sidecar, int(episode["episode_index"])))


def _episodes(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("meta/episodes/*/*.parquet")):
        names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
        yield from pq.read_table(path, columns=names).to_pylist()


def _trajectory(rows: pa.Table, video: Path, start: float, told: Mapping[str, Any]) -> Trajectory:
    count = len(rows)
    poses, lenses = (
        _array(rows, "camera.pose", "float64").reshape(-1, 4, 4),
        _array(rows, "camera.intrinsics", "float32"),
    )
    if told:
        poses = np.concatenate([poses, np.array(told["told"]["last_pose"])[None]])
        lenses = np.concatenate([lenses, np.array(told["told"]["last_intrinsics"], np.float32)[None]])
    steps = len(poses) - 1
    done, terminated = (_array(rows, f"next.{name}", "bool", count).reshape(-1) for name in ("done", "terminated"))
    return Trajectory(
        frames=lambda: itertools.islice(read_frames(video, max(0.0, start)), steps + 1),
        poses=poses,
        intrinsics=lenses,
        actions=_array(rows, "action", "float32")[:steps],
        rewards=_array(rows, "next.reward", "float64", count).reshape(-1)[:steps],
        terminated=terminated[:steps],
        truncated=(done & ~terminated)[:steps],
        **told,
    )


def _array(rows: pa.Table, name: str, kind: str, count: int | None = None) -> np.ndarray:
    """A column [T, D]; zeros [count, 1] where there is none."""
    if name not in rows.column_names and count is not None:
        return np.zeros((count, 1), kind)
    column = rows[name].combine_chunks()
    flat = column.flatten() if pa.types.is_nested(column.type) else column
    return np.array(flat.to_numpy(zero_copy_only=False), kind).reshape(len(rows), -1)
