"""Speed of episode stores, `sanawm bench store`: writing, frames in order and at random, windows, a training loop."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import zarr
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sanawm_env.benchmarks.machine import append_line, machine
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.torch_data import WindowStream
from sanawm_env.datasets.windows import Windows, WindowSpec
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import ConfigError, StorageError

ROOMS, PICTURES = 4, 16  # different pictures: an episode goes through those of a room to and fro
FPS = 10.0
AT_ONCE = 256  # frames asked for in one call
CHECKED = 64  # frames compared with Zarr's before anything is timed


@dataclass(frozen=True, kw_only=True)
class BenchStore:
    """What to measure, on pictures of the ray-caster. height, width: of a frame. episodes, steps: written with the
    first codec and with AV1, an eighth of the episodes with the others, F = frames_per_step frames a step. threads:
    that decode random frames, a measurement each; workers: of a data loader, likewise (0: the training process reads
    itself). history, actions, batch: of the windows. seconds: that a measurement takes. scratch: folder for the stores,
    None for the system's. out: file that gets one JSON line a run.
    """

    height: int = 128
    width: int = 160
    frames_per_step: int = 8
    episodes: int = 16
    steps: int = 32
    codecs: tuple[Literal["jpeg", "webp", "jpegxl", "av1"], ...] = ("jpeg", "webp", "jpegxl", "av1")
    quality: int = 95
    threads: tuple[int, ...] = (1, 2)
    workers: tuple[int, ...] = (0, 1, 2)
    history: int = 16
    actions: int = 8
    batch: int = 16
    seconds: float = 4.0
    scratch: Path | None = None
    out: Path = Path("outputs/bench/store.jsonl")

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("episodes", "steps", "frames_per_step", "batch")}
        if min(counts.values()) < 1 or min(self.threads, default=0) < 1 or not self.seconds > 0 or not self.codecs:
            raise ConfigError(
                f"{counts}, threads {self.threads}, seconds {self.seconds}, codecs {self.codecs}: expected 1 or more "
                "of each, and seconds above 0"
            )


def run(config: BenchStore, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures everything, appends one JSON line to `config.out` and returns it. `progress` gets a line of text a
    measurement. StorageError if a store does not read as Zarr reads it: no timing then."""
    report: dict[str, Any] = {"benchmark": "store", **machine(torch.device("cpu"))}
    # Figures of a machine that others use at the same time say little: load is that of the minute before.
    report |= {"load": os.getloadavg()[0], "frame": [config.height, config.width]}
    report |= {kind: [] for kind in ("writing", "in_order", "frames", "windows", "training")}

    def keep(kind: str, row: dict[str, Any]) -> None:
        report[kind].append(row)
        progress(f"{kind}: " + ", ".join(f"{name} {value}" for name, value in row.items()))

    pictures = draw(config)
    with tempfile.TemporaryDirectory(dir=config.scratch) as folder:
        for codec in config.codecs:
            path = Path(folder, f"{codec}.zarr")
            for durable in (True, False) if codec == config.codecs[0] else (False,):
                keep("writing", write(config, path.with_suffix(f".{durable}.zarr"), codec, pictures, durable=durable))
            path = path.with_suffix(".False.zarr")
            check(path)
            keep("frames", {"codec": codec, "reader": "zarr", **rate(zarr_frames(path), config.seconds)})
            keep("in_order", {"codec": codec, **rate(frames_in_order(path), config.seconds)})
            for threads in config.threads:
                ours = rate(random_frames(path, threads), config.seconds)
                keep("frames", {"codec": codec, "reader": "sanawm_env", "threads": threads, **ours})
        path = Path(folder, f"{config.codecs[0]}.False.zarr")
        for workers in config.workers:
            told = {"codec": config.codecs[0], "workers": workers, "history": config.history, "batch": config.batch}
            keep("windows", told | rate(windows(config, path, workers), config.seconds, "windows"))
            keep("training", told | train(config, path, workers))
    append_line(config.out, report)
    return report


def draw(config: BenchStore) -> np.ndarray:
    """Pictures [ROOMS, PICTURES, H, W, 3], seen while turning."""
    from sanawm_env.benchmarks.rooms import EYE_HEIGHT
    from sanawm_env.benchmarks.streaming import turning_path
    from sanawm_env.rooms import render, sample_scenes

    poses = turning_path(ROOMS, PICTURES, FPS).clone()
    poses[:, :, 1, 3] = -EYE_HEIGHT
    lens = torch.tensor([config.width / 2, config.width / 2, (config.width - 1) / 2, (config.height - 1) / 2])
    size = config.height, config.width
    return render(sample_scenes(range(ROOMS)), poses, lens.expand(ROOMS, 4), size, geometry=False).rgb.numpy()


def write(config: BenchStore, path: Path, codec: str, pictures: np.ndarray, *, durable: bool) -> dict[str, Any]:
    """Writes a store; says how fast, how large and how true to the pictures (psnr None: without loss)."""
    info = StoreInfo(
        fps=FPS,
        frames_per_step=config.frames_per_step,
        action_columns=("v", "w"),
        action_units=("m/s", "rad/s"),
        picture_codec=codec,
        picture_quality=config.quality,
    )
    count = config.steps * config.frames_per_step
    rows: dict[str, np.ndarray] = {
        "poses": np.tile(np.eye(4), (count, 1, 1)),
        "intrinsics": np.ones((count, 4), np.float32),
        "actions": np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32),
        "rewards": np.zeros(count),
        "terminated": np.zeros(count, bool),
        "truncated": np.arange(count) == count - 1,
        "valid": np.ones(count, bool),
    }
    rows |= {"start_poses": np.eye(4), "start_intrinsics": np.ones(4, np.float32)}
    many = codec in (config.codecs[0], "av1")  # of AV1 more than a reader keeps decoded
    episodes = config.episodes if many else -(-config.episodes // 8)
    began = time.perf_counter()
    with EpisodeWriter(path, info, durable=durable) as writer:
        for episode in range(episodes):
            way = np.arange(count + 1) % (2 * PICTURES - 2)
            frames = pictures[episode % ROOMS, np.minimum(way, 2 * PICTURES - 2 - way)]
            writer.add({**rows, "frames": frames[1:], "start_frames": frames[0]}, seed=episode)
    seconds = time.perf_counter() - began
    size = sum(file.stat().st_size for file in (path / "data" / "frames").iterdir())
    error = np.mean((EpisodeStore(path).stored("frames", episodes - 1).astype(np.float32) - frames[1:]) ** 2)
    return {
        "codec": codec,
        "durable": durable,
        "frames_per_second": round(episodes * count / seconds, 1),
        "bytes_per_frame": round(size / (episodes * count), 1),
        "psnr": round(10 * float(np.log10(255**2 / error)), 2) if error else None,  # dB, of the last episode
        "episodes_per_second": round(episodes / seconds, 2),
    }


def check(path: Path) -> None:
    """StorageError unless frames at random are those that Zarr gives."""
    store, plain = EpisodeStore(path), zarr.open_group(path, mode="r")["data/frames"]
    rows = np.random.default_rng(0).choice(store.frames, min(CHECKED, store.frames), replace=False)
    for row, frame in zip(rows.tolist(), store.rows_at("frames", rows)):
        if not np.array_equal(frame, np.asarray(plain[row])):
            raise StorageError(f"frame {row} of {path} is not what Zarr reads; nothing was timed, run the tests first")


def frames_in_order(path: Path) -> Iterator[int]:
    """Reads the frames of one episode after the other, in one thread."""
    store = EpisodeStore(path, threads=1)
    for index in itertools.cycle(range(len(store))):
        yield len(store.stored("frames", index))


def random_frames(path: Path, threads: int) -> Iterator[int]:
    """Reads frames at random, a call each time it is asked for the next number of frames."""
    store, rng = EpisodeStore(path, threads=threads), np.random.default_rng(1)
    while True:
        yield len(store.rows_at("frames", rng.integers(store.frames, size=AT_ONCE)))


def zarr_frames(path: Path) -> Iterator[int]:
    """The same by Zarr itself, which takes one frame a call."""
    frames, rng = zarr.open_group(path, mode="r")["data/frames"], np.random.default_rng(1)
    while True:
        yield len([frames[int(row)] for row in rng.integers(frames.shape[0], size=16)])  # type: ignore


def windows(config: BenchStore, path: Path, workers: int) -> Iterator[int]:
    """Reads batches of windows through a data loader."""
    for batch in loader(config, path, workers):
        yield len(batch["frames"])


def loader(config: BenchStore, path: Path, workers: int) -> DataLoader[dict[str, Tensor]]:
    spec = WindowSpec(history=config.history, actions=config.actions)
    stream = WindowStream(Windows(path, spec), config.batch)
    return DataLoader(stream, batch_size=None, num_workers=workers)


def rate(work: Iterator[int], seconds: float, unit: str = "frames") -> dict[str, Any]:
    """How many a second, once the first call has opened the files."""
    next(work)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += next(work)
    return {f"{unit}_per_second": round(done / (time.perf_counter() - began), 1)}


class Policy(nn.Module):
    """Frames [B, T, H, W, 3] uint8 to a chunk of actions [B, A, 2]: a small convolutional network over each frame."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 2)]
        self.look = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 64))
        self.act = nn.Sequential(nn.ReLU(), nn.Linear(64, 2 * actions), nn.Unflatten(1, (actions, 2)))

    def forward(self, frames: Tensor) -> Tensor:
        seen = self.look(frames.flatten(0, 1).movedim(-1, 1).float() / 255)
        chunk: Tensor = self.act(seen.unflatten(0, frames.shape[:2]).mean(dim=1))
        return chunk


def train(config: BenchStore, path: Path, workers: int) -> dict[str, Any]:
    """Trains the policy on windows: steps a second, and the share of time in which it waits for them."""
    policy = Policy(config.actions)
    optimiser = torch.optim.Adam(policy.parameters())
    batches, waited, steps, began = iter(loader(config, path, workers)), 0.0, 0, 0.0
    for step in itertools.count():
        asked = time.perf_counter()
        batch = next(batches)
        if step == 1:  # the first one has opened the files and warmed up
            began, waited, steps = asked, 0.0, 0
        waited += time.perf_counter() - asked
        error = ((policy(batch["frames"]) - batch["actions"]) ** 2).mean(dim=-1)
        loss = error[batch["actions_valid"]].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
        if step and time.perf_counter() - began >= config.seconds:
            break
    seconds = time.perf_counter() - began
    return {"steps_per_second": round(steps / seconds, 2), "waiting": round(waited / seconds, 4)}
