"""A bank of short Rooms clips as pixels on the training device, the oldest of them rendered anew as training goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sanawm_env.rooms import render, sample_scenes
from sanawm_env.training.paths import PathPlanner


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the camera gives: height and width in pixels, (fx, fy, cx, cy) in pixels, frames a second."""

    height: int
    width: int
    intrinsics: tuple[float, float, float, float]
    fps: float


def rendered(
    picture: Picture, seeds: list[int], path: np.ndarray, device: torch.device, *, style: str = "day"
) -> Tensor:
    """Frames uint8 [B, T, H, W, 3] seen in the rooms of `seeds` along camera-to-world poses [B, T, 4, 4]. style: of
    `sample_scenes`.
    """
    scenes = sample_scenes(seeds, device=device, style=style)
    poses = torch.from_numpy(path).to(device, torch.float32)
    size = (picture.height, picture.width)
    return render(scenes, poses, picture.intrinsics, size, geometry=False).rgb


class FrameSource:
    """Clips cut from the trajectories of `planner`.

    clip_frames: frames a clip; each clip of a trajectory starts at the frame where the one before ends.
    """

    def __init__(self, picture: Picture, planner: PathPlanner, clip_frames: int, device: torch.device) -> None:
        self.picture, self.planner, self.clip_frames, self.device = picture, planner, clip_frames, device

    @property
    def clips_a_call(self) -> int:
        return self.planner.batch * (self.planner.frames // (self.clip_frames - 1))

    @torch.no_grad()
    def clips(self) -> Tensor:
        """The next clips, uint8 [clips_a_call, clip_frames, H, W, 3]."""
        seeds, path = self.planner.next()
        return cut(rendered(self.picture, seeds, path, self.device), self.clip_frames)


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
