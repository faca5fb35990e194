"""An MP4 file and a JSON file an episode: `episode-000000.mp4`, `episode-000000.json`, ...

The video has T + 1 frames, from the picture of `reset` to the last valid one. In the JSON, entry k of "poses" (camera
to world 4x4, OpenCV axes, metres) and "intrinsics" (fx, fy, cx, cy in pixels) belongs to frame k of the video; entry k
of the T "actions", "rewards", "terminated" and "truncated" belongs to the step from frame k to frame k + 1. So an
action stands beside the frame at which it is taken. Numbers are exact; pictures are H.264.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sanawm_env.datasets.exports.export import Source
from sanawm_env.datasets.trajectory import FIELDS
from sanawm_env.datasets.video import Mp4Writer

NAME = "episode-{:06d}"


def write(source: Source, folder: Path, name: str) -> None:
    """Writes every episode of the source into the folder."""
    info = source.info
    store: dict[str, Any] = {"fps": info.fps, "frames_per_step": info.frames_per_step}
    store |= {"action_columns": info.action_columns, "action_units": info.action_units}
    for index, trajectory in enumerate(source):
        with Mp4Writer(folder / f"{NAME.format(index)}.mp4", info.fps, source.size) as video:
            for picture in trajectory.frames():
                video.add(picture)
        arrays = {key: getattr(trajectory, key).tolist() for key in FIELDS}
        told = {**store, **trajectory.told, "provenance": trajectory.source, **arrays}
        (folder / f"{NAME.format(index)}.json").write_text(json.dumps(told, allow_nan=False))
