"""A bank of short Rooms clips as pixels on the training device, the oldest of them rendered anew as training goes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sanawm_env.rooms import render, sample_scenes
from sanawm_env.training.latents import HELD_OUT_SEEDS, plan_paths


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the camera gives: height and width in pixels, (fx, fy, cx, cy) in pixels, frames a second."""

    height: int
    width: int
    intrinsics: tuple[float, float, float, float]
    fps: float


def rendered(picture: Picture, seeds: list[int], path: np.ndarray, device: torch.device) -> Tensor:
    """Frames uint8 [B, T, H, W, 3] seen in the rooms of `seeds` along camera-to-world poses [B, T, 4, 4]."""
    scenes = sample_scenes(seeds, device=device)
    poses = torch.from_numpy(path).to(device, torch.float32)
    size = (picture.height, picture.width)
    return render(scenes, poses, picture.intrinsics, size, geometry=False).rgb


class FrameSource:
    """Clips of scenes that are never repeated and never held out, planned ahead by worker processes.

    scenes: rooms a call. clip_frames: frames a clip. clips_a_path: clips cut from one trajectory, each starting at the
    frame where the one before ends. workers: processes that plan trajectories; 0 plans in place.
    """

    def __init__(
        self,
        picture: Picture,
        *,
        scenes: int,
        clip_frames: int,
        clips_a_path: int,
        first_seed: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.picture, self.device = picture, device
        self.scenes, self.clip_frames, self.clips_a_path = scenes, clip_frames, clips_a_path
        self.next_seed = first_seed
        # spawn: a forked child of a process that uses CUDA or threads cannot be trusted.
        context = multiprocessing.get_context("spawn")
        self.pool: Executor | None = ProcessPoolExecutor(workers, mp_context=context) if workers else None
        self.ahead: deque[tuple[list[int], Future[np.ndarray]]] = deque()
        for _ in range(3 * workers):
            self._plan()

    @property
    def clips_a_call(self) -> int:
        return self.scenes * self.clips_a_path

    def _take_seeds(self) -> list[int]:
        seeds = list(range(self.next_seed, self.next_seed + self.scenes))
        if seeds[-1] >= HELD_OUT_SEEDS:
            raise ValueError(f"training seed {seeds[-1]} would be held out; start below {HELD_OUT_SEEDS}")
        self.next_seed += self.scenes
        return seeds

    def _steps(self) -> int:
        return (self.clip_frames - 1) * self.clips_a_path

    def _plan(self) -> None:
        if self.pool is not None:
            seeds = self._take_seeds()
            self.ahead.append((seeds, self.pool.submit(plan_paths, seeds, self._steps(), self.picture.fps)))

    def _path(self) -> tuple[list[int], np.ndarray]:
        if self.pool is None:
            seeds = self._take_seeds()
            return seeds, plan_paths(seeds, self._steps(), self.picture.fps)
        seeds, future = self.ahead.popleft()
        self._plan()
        return seeds, future.result()

    @torch.no_grad()
    def clips(self) -> Tensor:
        """The next clips, uint8 [scenes * clips_a_path, clip_frames, H, W, 3]."""
        seeds, path = self._path()
        frames = rendered(self.picture, seeds, path, self.device)
        return cut(frames, self.clip_frames)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)


def cut(frames: Tensor, clip_frames: int) -> Tensor:
    """Clips [B * k, clip_frames, ...] of frames [B, 1 + k (clip_frames - 1), ...]; neighbours share one frame."""
    step = clip_frames - 1
    starts = range(0, frames.shape[1] - step, step)
    return torch.stack([frames[:, i : i + clip_frames] for i in starts], dim=1).flatten(0, 1)


class FrameBank:
    """A fixed number of clips from which batches are drawn."""

    def __init__(self, source: FrameSource, size: int) -> None:
        self.source = source
        calls = -(-size // source.clips_a_call)
        self.clips = torch.cat([source.clips() for _ in range(calls)])
        self.oldest = 0

    def refresh(self) -> None:
        """Replaces the oldest clips by new ones."""
        count = self.source.clips_a_call
        self.clips[self.oldest : self.oldest + count] = self.source.clips()
        self.oldest = (self.oldest + count) % self.clips.shape[0]

    def draw(self, batch: int) -> Tensor:
        """Random clips as pixels [batch, 3, T, H, W] in [-1, 1]."""
        rows = torch.randint(self.clips.shape[0], (batch,), device=self.clips.device)
        return to_pixels(self.clips[rows])


def to_pixels(frames: Tensor) -> Tensor:
    """Float pixels [B, 3, T, H, W] in [-1, 1] of uint8 [B, T, H, W, 3]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
