"""Minari's HDF5 datasets: the folder holds `data/metadata.json` and `data/main_data.hdf5`.

"observations" has T + 1 entries, from the picture of `reset` to the last valid frame: "image", stored as JPEG files
where Minari does so (32x32 pixels or more), and "pose", the upper three rows of the camera's pose, float32. "actions",
"rewards", "terminations" and "truncations" have T: action k is taken at observation k and leads to observation k + 1.
In "infos", T + 1 entries again, "pose" (4x4, float64; camera to world, OpenCV axes, metres) and "intrinsics" (fx, fy,
cx, cy in pixels) are exact. An episode that was stopped while it still went on is truncated, as Minari's own are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium.spaces import Box, Dict
from minari.dataset.minari_storage import MinariStorage, is_image_space

from sanawm_env.datasets.codec import encode
from sanawm_env.datasets.exports.export import Source
from sanawm_env.datasets.trajectory import Trajectory

BYTES = h5py.vlen_dtype(np.uint8)


def write(source: Source, folder: Path, name: str) -> None:
    """Writes every episode of the source into the folder."""
    data = folder / "data"
    image = Box(0, 255, (*source.size, 3), np.uint8)
    observation = Dict({"image": image, "pose": Box(-np.inf, np.inf, (12,), np.float32)})
    action = Box(-np.inf, np.inf, (len(source.info.action_columns),), np.float32)
    # Minari writes its metadata; episodes are written here, since it would hold each of them in memory.
    storage = MinariStorage.new(data, observation, action, data_format="hdf5")
    steps = 0
    with h5py.File(data / "main_data.hdf5", "a", track_order=True) as file:
        for index, trajectory in enumerate(source):
            group = file.create_group(f"episode_{index}")
            group.attrs.update({"id": index, "total_steps": len(trajectory)})
            if trajectory.told["seed"] >= 0:
                group.attrs["seed"] = trajectory.told["seed"]
            _write_episode(group, trajectory, is_image_space(image))
            steps += len(trajectory)
    storage.update_metadata(
        {
            "dataset_id": dataset_id(name),
            "minari_version": version(),
            "total_episodes": len(source.entries),
            "total_steps": steps,
            "dataset_size": storage.get_size(),
            "description": description(source),
            "author": set(),
            "author_email": set(),
            "licences": source.licences,
            "synthetic": source.synthetic,
        }
    )


def _write_episode(group: Any, trajectory: Trajectory, jpeg: bool) -> None:
    observations, infos = group.create_group("observations"), group.create_group("infos")
    _write_pictures(observations, len(trajectory) + 1, trajectory.frames(), jpeg)
    observations["pose"] = trajectory.states
    infos["pose"], infos["intrinsics"] = trajectory.poses, trajectory.intrinsics
    group["actions"], group["rewards"] = trajectory.actions, trajectory.rewards
    group["terminations"], group["truncations"] = trajectory.terminated, trajectory.truncated


def _write_pictures(group: Any, count: int, pictures: Iterator[np.ndarray], jpeg: bool) -> None:
    stored: Any = None
    for k, picture in enumerate(pictures):
        if stored is None:
            shape, kind = ((count,), BYTES) if jpeg else ((count, *picture.shape), np.uint8)
            stored = group.create_dataset("image", shape, kind, chunks=(1, *shape[1:]))
        stored[k] = np.frombuffer(encode(picture), np.uint8) if jpeg else picture


def dataset_id(name: str) -> str:
    """The dataset's name as Minari wants it, with a version: "rooms" becomes "rooms-v0"."""
    plain = re.sub(r"[^-\w]+", "-", name).strip("-") or "sanawm"
    return plain if re.search(r"-v\d+$", plain) else f"{plain}-v0"


def version() -> str:
    """Of the Minari that wrote the metadata."""
    from minari import __version__

    return str(__version__)


def description(source: Source) -> str:
    """One line on the dataset."""
    columns = ", ".join(
        f"{name} ({unit})" if unit else name for name, unit in zip(source.info.action_columns, source.info.action_units)
    )
    return f"Episodes of a camera at {source.info.fps:g} frames/s; actions: {columns}. sanawm.json has the provenance."
