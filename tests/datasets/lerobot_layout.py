"""The layout of LeRobotDataset v3, as lerobot 0.4.4 writes and reads it; its own reader pins an old torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

LEROBOT_EPISODE = {
    "episode_index": "int64",
    "tasks": "list<element: string>",
    "length": "int64",
    "data/chunk_index": "int64",
    "data/file_index": "int64",
    "dataset_from_index": "int64",
    "dataset_to_index": "int64",
    "videos/observation.images.camera/chunk_index": "int64",
    "videos/observation.images.camera/file_index": "int64",
    "videos/observation.images.camera/from_timestamp": "double",
    "videos/observation.images.camera/to_timestamp": "double",
    "meta/episodes/chunk_index": "int64",
    "meta/episodes/file_index": "int64",
}
LEROBOT_INFO = {
    "codebase_version": "v3.0",
    "robot_type": None,
    "total_episodes": 5,
    "total_frames": 26,
    "total_tasks": 2,
    "chunks_size": 1000,
    "data_files_size_in_mb": 100,
    "video_files_size_in_mb": 200,
    "fps": 10,
    "splits": {"train": "0:5"},
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
LEROBOT_OWN = {  # what every dataset has, beside the features of its robot
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
ARROW = {"float32": "float", "float64": "double", "int64": "int64", "bool": "bool"}
STATISTICS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


def check_lerobot(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The layout of a LeRobotDataset v3 as its version 0.4 writes it; returns its info and its episodes."""
    import pyarrow.parquet as pq

    info = json.loads((folder / "meta/info.json").read_text())
    assert set(info) == {*LEROBOT_INFO, "features"}
    features = info["features"]
    for name, kind in LEROBOT_OWN.items():
        assert features[name] == {"dtype": kind, "shape": [1], "names": None}
    assert all(set(feature) >= {"dtype", "shape", "names"} and "/" not in name for name, feature in features.items())
    videos = [name for name, feature in features.items() if feature["dtype"] == "video"]
    rows = []
    for path in sorted(folder.glob("data/*/*.parquet")):
        for name, field in zip(pq.read_schema(path).names, pq.read_schema(path)):
            shape, kind = features[name]["shape"], ARROW[features[name]["dtype"]]
            expected = kind if shape == [1] else f"fixed_size_list<element: {kind}>[{shape[0]}]"
            assert str(field.type) == expected, name
        rows += pq.read_table(path).to_pylist()
    assert set(rows[0]) == set(features) - set(videos) and [row["index"] for row in rows] == list(range(len(rows)))
    tables = [pq.read_table(path) for path in sorted(folder.glob("meta/episodes/*/*.parquet"))]
    episodes = [row for table in tables for row in table.to_pylist()]
    plain = {field.name: str(field.type) for field in tables[0].schema if not field.name.startswith("stats/")}
    assert plain == LEROBOT_EPISODE
    statistics = {name for name in tables[0].schema.names if name.startswith("stats/")}
    assert statistics == {f"stats/{name}/{one}" for name in features for one in STATISTICS}
    assert [row["episode_index"] for row in episodes] == list(range(info["total_episodes"]))
    tasks = pq.read_table(folder / "meta/tasks.parquet")
    told = json.loads(tasks.schema.metadata[b"pandas"])
    assert told["index_columns"] == ["__index_level_0__"] and tasks.column_names[0] == "task_index"
    names = dict(zip(tasks["task_index"].to_pylist(), tasks["__index_level_0__"].to_pylist()))
    for row in episodes:
        own = rows[row["dataset_from_index"] : row["dataset_to_index"]]
        assert len(own) == row["length"] and {one["episode_index"] for one in own} == {row["episode_index"]}
        assert [one["frame_index"] for one in own] == list(range(len(own)))
        assert np.allclose([one["timestamp"] for one in own], np.arange(len(own)) / info["fps"], atol=1e-6)
        assert [names[one["task_index"]] for one in own] == row["tasks"] * len(own)
        for video in videos:
            place = {name: row[f"videos/{video}/{name}"] for name in ("chunk_index", "file_index")}
            assert (folder / info["video_path"].format(video_key=video, **place)).exists()
            start, stop = (row[f"videos/{video}/{end}_timestamp"] for end in ("from", "to"))
            assert stop - start == pytest.approx(len(own) / info["fps"])
        row["rows"] = own
    overall = json.loads((folder / "meta/stats.json").read_text())
    assert set(overall) == set(features) and all(set(one) == STATISTICS for one in overall.values())
    assert all(np.shape(overall[video]["mean"]) == (3, 1, 1) for video in videos)
    return info, episodes
