"""LeRobotDataset v3: Parquet rows, MP4 files that hold many episodes, and `meta/`, as `lerobot` lays them out.

Row k of an episode is frame k, the first one the picture of `reset`, and "action" of row k is taken at frame k and
leads to frame k + 1; so are "next.reward", "next.done" and "next.terminated" those of that step. An episode of T
actions has T rows; frame T follows the others in the video, outside of the episode's time, and its pose is in
`sanawm.json`. "next.done" is true in the last row of every episode, "next.terminated" only where the task ended it.

"observation.state" is what policies take: the upper three rows of the camera's pose, float32. "camera.pose" (4x4, row
by row) and "camera.intrinsics" (fx, fy, cx, cy in pixels) are exact. Poses are camera to world, OpenCV axes, metres.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sanawm_env.datasets.exports.export import Source
from sanawm_env.datasets.exports.rolling import RollingTable, RollingVideo
from sanawm_env.datasets.exports.statistics import PictureSample, Statistics, Totals, of_values
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.trajectory import Trajectory
from sanawm_env.errors import StorageError

CODEBASE, CHUNK_FILES = "v3.0", 1000
CAMERA = "observation.images.camera"
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA, VIDEO = f"data/{FILE}.parquet", f"videos/{{video_key}}/{FILE}.mp4"
EPISODES, TASKS = f"meta/episodes/{FILE}.parquet", "meta/tasks.parquet"
BATCH = 100  # episodes whose metadata are written together
AXES = ("x", "y", "z")


def write(source: Source, folder: Path, name: str, *, data_megabytes: int = 100, video_megabytes: int = 200) -> None:
    """Writes every episode of the source into the folder. The sizes are those at which another file is begun.

    StorageError where the frame rate is not a whole number, as LeRobot counts it.
    """
    fps = source.info.fps
    if fps != int(fps):
        raise StorageError(f"the store has {fps} frames/s, LeRobot takes whole numbers only; export to mp4")
    dataset = _Dataset(folder, source, data_megabytes, video_megabytes)
    with dataset:
        for trajectory in source:
            dataset.add(trajectory)
    _write_tasks(folder / TASKS, list(dataset.tasks))
    (folder / "meta/info.json").write_text(json.dumps(dataset.info(), indent=4))
    (folder / "meta/stats.json").write_text(json.dumps(dataset.totals.plain(), indent=4))
    (folder / "README.md").write_text(_card(source, name))


class _Dataset(contextlib.ExitStack):
    """The files that grow with every episode; complete when the `with` block ends."""

    def __init__(self, folder: Path, source: Source, data_megabytes: float, video_megabytes: float) -> None:
        super().__init__()
        self.fps, self.size = source.info.fps, source.size
        self.features = _features(source.info, source.size)
        self.totals, self.tasks, self.frames = Totals(), dict[str, int](), 0
        self._limits = {"data_files_size_in_mb": data_megabytes, "video_files_size_in_mb": video_megabytes}
        film = VIDEO.replace("{video_key}", CAMERA)
        self._rows = self.enter_context(RollingTable(folder, DATA, data_megabytes, CHUNK_FILES))
        self._videos = self.enter_context(RollingVideo(folder, film, video_megabytes, CHUNK_FILES, self.fps))
        self._episodes = self.enter_context(_EpisodeTable(RollingTable(folder, EPISODES, data_megabytes, CHUNK_FILES)))

    def add(self, trajectory: Trajectory) -> None:
        """Appends an episode."""
        index, count, task = self._episodes.count, len(trajectory), str(trajectory.source.get("task", "")) or "unnamed"
        columns = _columns(trajectory, index, self.frames, self.tasks.setdefault(task, len(self.tasks)), self.fps)
        chunk, file = self._rows.write(_table(columns, self.features))
        sample = PictureSample(count)
        film = self._videos.write(sample.look(trajectory.frames()), self.size)
        statistics = {CAMERA: sample.statistics(), **{key: of_values(values) for key, values in columns.items()}}
        self.totals.add(statistics)
        row = {
            "episode_index": index,
            "tasks": [task],
            "length": count,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + count,
            f"videos/{CAMERA}/chunk_index": film.place[0],
            f"videos/{CAMERA}/file_index": film.place[1],
            f"videos/{CAMERA}/from_timestamp": film.start / self.fps,
            f"videos/{CAMERA}/to_timestamp": (film.start + count) / self.fps,
        }
        self._episodes.add(row, statistics)
        self.frames += count

    def info(self) -> dict[str, Any]:
        """`meta/info.json`, once the files are complete."""
        camera = {**self.features[CAMERA], "info": self._videos.told()}
        return {
            "codebase_version": CODEBASE,
            "robot_type": None,
            "total_episodes": self._episodes.count,
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_FILES,
            **self._limits,
            "fps": int(self.fps),
            "splits": {"train": f"0:{self._episodes.count}"},
            "data_path": DATA,
            "video_path": VIDEO,
            "features": {**self.features, CAMERA: camera},
        }


def _features(info: StoreInfo, size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """dtype, shape and names of each feature, as `meta/info.json` has them."""
    state = [f"{part}{row}" for row in AXES for part in ("right_", "down_", "forward_", "")]
    pose = [f"pose_{row}{column}" for row in range(4) for column in range(4)]
    vectors = {
        "observation.state": ("float32", state),
        "camera.pose": ("float64", pose),
        "camera.intrinsics": ("float32", ["fx", "fy", "cx", "cy"]),
        "action": ("float32", list(info.action_columns)),
    }
    numbers = {"next.reward": "float32", "next.done": "bool", "next.terminated": "bool", "timestamp": "float32"}
    numbers |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
    return {
        CAMERA: {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channels"]},
        **{key: {"dtype": kind, "shape": [len(names)], "names": names} for key, (kind, names) in vectors.items()},
        **{key: {"dtype": kind, "shape": [1], "names": None} for key, kind in numbers.items()},
    }


def _columns(trajectory: Trajectory, index: int, first: int, task: int, fps: float) -> dict[str, np.ndarray]:
    """Everything but pictures, [T, D] each."""
    steps = len(trajectory)
    number = np.arange(steps)
    columns = {
        "observation.state": trajectory.states[:steps],
        "camera.pose": trajectory.poses[:steps].reshape(steps, 16),
        "camera.intrinsics": trajectory.intrinsics[:steps],
        "action": trajectory.actions,
        "next.reward": trajectory.rewards.astype(np.float32),
        "next.done": number == steps - 1,
        "next.terminated": trajectory.terminated,
        "timestamp": (number / fps).astype(np.float32),
        "frame_index": number,
        "episode_index": np.full(steps, index),
        "index": first + number,
        "task_index": np.full(steps, task),
    }
    return {key: values.reshape(steps, -1) for key, values in columns.items()}


def _table(columns: dict[str, np.ndarray], features: dict[str, dict[str, Any]]) -> pa.Table:
    """One row a frame; a feature of one number is a plain column, others are lists of fixed size."""
    arrays = {}
    for key, values in columns.items():
        flat = pa.array(values.reshape(-1), type=pa.type_for_alias(features[key]["dtype"]))
        width = features[key]["shape"][0]
        arrays[key] = flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.table(arrays)


class _EpisodeTable:
    """`meta/episodes`: one row an episode, with its statistics, some of them written together."""

    def __init__(self, table: RollingTable) -> None:
        self._table, self._waiting = table, list[dict[str, Any]]()
        self.count = 0

    def __enter__(self) -> Self:
        self._table.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is None:
            self._flush()
        self._table.__exit__(kind, *rest)

    def add(self, row: dict[str, Any], statistics: dict[str, Statistics]) -> None:
        told = {f"stats/{key}/{name}": v.tolist() for key, one in statistics.items() for name, v in one.items()}
        self._waiting.append({**row, **told})
        self.count += 1
        if len(self._waiting) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        chunk, file = self._table.place()
        own = {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        self._table.write(pa.Table.from_pylist([{**row, **own} for row in self._waiting]))
        self._waiting = []


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """The table of tasks as pandas reads it: the tasks are its index, their numbers a column."""
    index = "__index_level_0__"
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(tasks, pa.string())})
    columns: list[dict[str, str | None]] = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object"},
    ]
    told = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [dict(column, metadata=None) for column in columns],
        "pandas_version": "2.0.0",
    }
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(told)}), path)


def _card(source: Source, name: str) -> str:
    """The dataset card, whose head the Hub reads."""
    licences = source.licences
    licence = licences[0].lower() if len(licences) == 1 else "other"
    head = f"---\nlicense: {licence}\ntask_categories:\n- robotics\ntags:\n- LeRobot\n---\n"
    kind = "Every picture is synthetic." if source.synthetic else "Not every picture is synthetic."
    told = f"Licences: {', '.join(licences) or 'not stated'}. {kind} `sanawm.json` has the provenance of each episode."
    return f"{head}# {name}\n\n{len(source.entries)} episodes exported by sanawm-env. {told}\n"
