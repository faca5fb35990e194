"""A bank of encoded Rooms clips on the training device, a share of it rendered anew at every step."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sanawm_env.camera import relative_poses
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.config import WorldConfig
from sanawm_env.rooms import render, sample_scenes, sample_trajectories

HELD_OUT_SEEDS = 10**9


def plan_paths(seeds: list[int], frames: int, fps: float) -> np.ndarray:
    """Camera-to-world poses [len(seeds), frames + 1, 4, 4] float64 of one trajectory in each scene; runs in worker
    processes.
    """
    torch.set_num_threads(1)
    return sample_trajectories(sample_scenes(seeds), seeds, frames, fps).poses


@dataclass
class Clips:
    """Encoded clips: latents [B, T, channels, h, w] and poses [B, frames + 1, 4, 4] fp32, relative to the first."""

    latents: Tensor
    poses: Tensor


class ClipSource:
    """Freshly rendered clips of scenes that are never repeated and never held out.

    latents: latent frames a clip. batch: clips a call. workers: processes that plan trajectories ahead; 0 plans in
    place.
    """

    def __init__(
        self,
        config: WorldConfig,
        autoencoder: Autoencoder,
        *,
        latents: int,
        batch: int,
        first_seed: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.config, self.autoencoder, self.device = config, autoencoder, device
        self.frames = config.temporal_stride * (latents - 1)
        self.batch = batch
        self.seeds = self._count(first_seed)
        context = multiprocessing.get_context("spawn")
        self.pool: Executor | None = ProcessPoolExecutor(workers, mp_context=context) if workers else None
        self.ahead: deque[tuple[list[int], Future[np.ndarray]]] = deque()
        for _ in range(3 * workers):
            self._plan()

    def _count(self, first: int) -> Iterator[list[int]]:
        while first + self.batch < HELD_OUT_SEEDS:
            yield list(range(first, first + self.batch))
            first += self.batch

    def _plan(self) -> None:
        if self.pool is not None:
            seeds = next(self.seeds)
            self.ahead.append((seeds, self.pool.submit(plan_paths, seeds, self.frames, self.config.fps)))

    def _path(self) -> tuple[list[int], np.ndarray]:
        if self.pool is None:
            seeds = next(self.seeds)
            return seeds, plan_paths(seeds, self.frames, self.config.fps)
        seeds, future = self.ahead.popleft()
        self._plan()
        return seeds, future.result()

    @torch.no_grad()
    def clips(self) -> Clips:
        """The next `batch` clips."""
        seeds, path = self._path()
        poses = torch.from_numpy(path).to(self.device)
        scenes = sample_scenes(seeds, device=self.device)
        intrinsics = torch.tensor(self.config.intrinsics, device=self.device)
        frames = render(scenes, poses.float(), intrinsics, (self.config.height, self.config.width), geometry=False).rgb
        pixels = frames.permute(0, 4, 1, 2, 3) / 127.5 - 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            latents = self.autoencoder.encode(pixels.float())
        return Clips(latents.bfloat16(), relative_poses(poses[:, 0], poses).float())

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)


class ClipBank:
    """A fixed number of clips from which batches are drawn; `refresh` replaces the oldest."""

    def __init__(self, source: ClipSource, size: int) -> None:
        self.source = source
        first = source.clips()
        self.latents = first.latents.new_empty(size, *first.latents.shape[1:])
        self.poses = first.poses.new_empty(size, *first.poses.shape[1:])
        self.oldest = 0
        for start in range(0, size, source.batch):
            self._put(first if start == 0 else source.clips())

    def _put(self, clips: Clips) -> None:
        count, size = clips.latents.shape[0], self.latents.shape[0]
        slots = torch.arange(self.oldest, self.oldest + count, device=self.latents.device) % size
        self.latents[slots], self.poses[slots] = clips.latents, clips.poses
        self.oldest = (self.oldest + count) % size

    def refresh(self) -> None:
        self._put(self.source.clips())

    def draw(self, batch: int) -> Clips:
        rows = torch.randint(self.latents.shape[0], (batch,), device=self.latents.device)
        return Clips(self.latents[rows].float(), self.poses[rows])
