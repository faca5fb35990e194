"""What is measured of an episode, and which of it is beyond its limit: one small function a measure.

Sums of grey levels are whole numbers, so that a measure depends on its own pictures alone, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sanawm_env.drift_guard import DriftGuard, rows_of, signals
from sanawm_env.evaluation.pictures import contrast, sharpness
from sanawm_env.generation.config import Filters
from sanawm_env.model.config import WorldConfig


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a step of B worlds shows: contrast, sharpness [B, T] of its frames, statistics of its latents [B, C, 2]."""

    contrast: np.ndarray
    sharpness: np.ndarray
    latents: np.ndarray

    def of(self, worlds: slice) -> Measured:
        """Of these worlds alone."""
        return Measured(contrast=self.contrast[worlds], sharpness=self.sharpness[worlds], latents=self.latents[worlds])


def latent_statistics(latents: Tensor) -> Tensor:
    """Mean and standard deviation of every channel of latents [B, n, C, h, w]: float64 [B, C, 2]."""
    values = latents.double().movedim(2, 1).flatten(2)
    return torch.stack([values.mean(-1), values.std(-1, correction=0)], dim=-1)


def drift(first: np.ndarray, now: np.ndarray) -> float:
    """How far the statistics [C, 2] of a chunk are from those of the episode's first one: the mean over channels of
    their change in standard deviations of the first, and of the logarithm of how these changed."""
    spread, later = np.maximum(first[:, 1], 1e-6), np.maximum(now[:, 1], 1e-6)
    shifted, widened = np.abs(now[:, 0] - first[:, 0]) / spread, np.abs(np.log(later / spread))
    return float((shifted + widened).mean())


def pose_offsets(
    room: int, frames: np.ndarray, poses: np.ndarray, start_pose: np.ndarray, config: WorldConfig
) -> tuple[float, float] | None:
    """Median degrees and metres between the poses [T, 4, 4] and what frames uint8 [T, H, W, 3] show of a room.

    None where no frame shows enough of what the first picture showed: what a world makes up has no true pose.
    """
    from sanawm_env.evaluation import rooms
    from sanawm_env.evaluation.held_out import HeldOut
    from sanawm_env.evaluation.pose_error import magnitude
    from sanawm_env.evaluation.visibility import enough_seen, visible

    asked = torch.from_numpy(np.concatenate([start_pose[None], poses]))[None]
    scene = HeldOut(seeds=(room,), poses=asked, config=config, device=torch.device("cpu"))
    truth = scene.truth(asked)
    seen = visible(truth.depth[:, 1:], asked[:, 1:], truth.depth[:, 0], asked[:, 0], scene.intrinsics())
    enough = enough_seen(seen)[0]
    if not enough.any():
        return None
    shown = torch.from_numpy(frames)[None, enough]
    offsets = rooms.pose_offsets(scene, shown, truth.rgb[:, 1:][:, enough], seen[:, enough], asked[:, 1:][:, enough])
    degrees, metres = magnitude(offsets)
    return float(degrees.median()), float(metres.median())


def measures(frames: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """What is measured of a batch at every step, on the device where it lies: contrast and sharpness of frames
    [B, T, H, W, 3] as float64 [2, B, T], statistics of latents [B, n, C, h, w] as float64 [B, C, 2]."""
    return torch.stack([contrast(frames), sharpness(frames)]), latent_statistics(latents)


def measure(frames: Tensor, latents: Tensor) -> Measured:
    """`measures`, on the host."""
    shown, told = (values.cpu().numpy() for values in measures(frames, latents))
    return Measured(contrast=shown[0], sharpness=shown[1], latents=told)


def reasons(scores: Mapping[str, float | None], limits: Filters) -> list[str]:
    """Names of the scores that are beyond their limits, as `Filters` has them; a score that is None is not."""
    least = [name for name in ("contrast", "sharpness", "confidence") if _is_beyond(scores, limits, name, -1)]
    return least + [name for name in ("drift", "degrees", "metres") if _is_beyond(scores, limits, name, 1)]


def _is_beyond(scores: Mapping[str, float | None], limits: Filters, name: str, sign: int) -> bool:
    score, limit = scores.get(name), getattr(limits, name)
    return score is not None and limit is not None and sign * score > sign * limit


class Scores:
    """The measures of one episode while it runs. start_pose: [4, 4], of its first picture. guard: of its confidence,
    None where nobody asks for it."""

    def __init__(self, limits: Filters, start_pose: np.ndarray, guard: DriftGuard | None = None) -> None:
        self.limits, self.start_pose, self.guard = limits, start_pose, guard
        self.contrast, self.sharpness, self.drift, self.confidence = np.inf, np.inf, 0.0, np.inf
        self.frames = self._chunks = 0
        self._first: np.ndarray | None = None
        self._first_row: np.ndarray | None = None
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []  # frames and poses to compare with the truth

    def add(self, measured: Measured, world: int, frames: np.ndarray, poses: np.ndarray) -> None:
        """A step of the episode in row `world`. frames, poses: the valid ones, [T, H, W, 3] and [T, 4, 4]."""
        count = len(frames)
        if count:
            self.contrast = min(self.contrast, float(measured.contrast[world, :count].min()))
            self.sharpness = min(self.sharpness, float(measured.sharpness[world, :count].mean()))
        self._first = measured.latents[world].copy() if self._first is None else self._first
        self.drift = max(self.drift, drift(self._first, measured.latents[world]))
        if self.guard is not None:
            row = rows_of(measured.of(slice(world, world + 1)))
            self._first_row = row if self._first_row is None else self._first_row
            told = self.guard.confidence(signals(self._first_row, row, [self._chunks]))
            self.confidence = min(self.confidence, float(told[0]))
        self._chunks += 1
        if self.limits.poses:
            due = [k for k in range(count) if (self.frames + k + 1) % self.limits.pose_every == 0]
            self._kept += [(frames[k].copy(), poses[k].copy()) for k in due]
        self.frames += count

    def result(self, room: int, config: WorldConfig) -> dict[str, float | None]:
        """The episode's scores by name."""
        told: dict[str, float | None] = {"contrast": self.contrast, "sharpness": self.sharpness, "drift": self.drift}
        if self.guard is not None:
            told["confidence"] = self.confidence
        if self.limits.poses and self._kept:
            frames, poses = (np.stack(rows) for rows in zip(*self._kept))
            found = pose_offsets(room, frames, poses, self.start_pose, config)
            told |= {"degrees": None, "metres": None} if found is None else {"degrees": found[0], "metres": found[1]}
        return {name: None if x is None or not np.isfinite(x) else round(x, 6) for name, x in told.items()}
