"""Episodes without a world, for the tests of stores; the same number always gives the same episode."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np

from sanawm_env.datasets.provenance import Provenance, StoreInfo
from sanawm_env.datasets.writer import EpisodeWriter

FRAMES, HEIGHT, WIDTH = 4, 24, 32
INFO = StoreInfo(
    fps=10.0, frames_per_step=FRAMES, action_columns=("v", "w"), action_units=("m/s", "rad/s"), picture_codec="jpeg"
)
LOSSY = ("frames", "start_frames", "truth_frames", "start_truth_frames")


def episode(steps: int, seed: int = 0, *, truth: bool = True) -> dict[str, np.ndarray]:
    """Arrays as `EpisodeWriter.add` takes them; the last step ends after its second frame."""
    rng, rows = np.random.default_rng(seed), steps * FRAMES
    ramp = np.linspace(0, 200, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
    shade = 0.5 + 0.5 * (np.arange(rows + 1) + seed % 13) / (rows + 13)
    frames = (ramp * shade[:, None, None, None] * [1.0, 0.8, 0.6]).astype(np.uint8)
    poses = np.tile(np.eye(4), (rows + 1, 1, 1))
    poses[:, :3, 3] = rng.normal(size=(rows + 1, 3))
    lens = np.tile(np.float32([20, 20, 15.5, 11.5]), (rows + 1, 1))
    last = np.arange(rows) == rows - 3
    arrays = {
        "frames": frames[1:],
        "poses": poses[1:],
        "intrinsics": lens[1:],
        "actions": rng.normal(size=(rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=rows),
        "terminated": last,
        "truncated": np.zeros(rows, bool),
        "valid": np.arange(rows) <= rows - 3,
        "start_frames": frames[0],
        "start_poses": poses[0],
        "start_intrinsics": lens[0],
    }
    if truth:
        depth = rng.uniform(0.2, 5, size=(rows + 1, HEIGHT, WIDTH)).astype(np.float32)
        arrays |= {"truth_frames": frames[1:], "start_truth_frames": frames[0]}
        arrays |= {"truth_depth": depth[1:], "start_truth_depth": depth[0]}
    return arrays


def number(seed: int) -> bytes:
    """The id of made-up episode `seed`."""
    return seed.to_bytes(16, "big")


def add(writer: EpisodeWriter, seed: int, *, truth: bool = False) -> int:
    """Writes made-up episode `seed`, of one to three steps."""
    source = Provenance(task=f"task {seed % 3}", extra={"tenth": seed // 10})
    arrays = episode(1 + seed % 3, seed, truth=truth)
    return writer.add(arrays, seed=seed, reason="success", seconds=0.5, identity=number(seed), provenance=source)


def as_stored(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a store gives back: pictures have been through JPEG."""
    return {key: _coded(values) if key in LOSSY else values for key, values in arrays.items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two episodes have the same arrays, bit for bit."""
    return set(one) == set(other) and all(
        one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]) for key in one
    )


def python(code: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, with this folder on its path."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def _coded(pictures: np.ndarray) -> np.ndarray:
    if pictures.ndim == 4:
        return np.stack([_coded(picture) for picture in pictures])
    return np.asarray(imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(pictures, level=95, subsampling="444")))
