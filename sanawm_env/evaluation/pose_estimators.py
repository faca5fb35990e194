"""Where the frames of a clip were really taken from: estimators of camera poses, by name.

"render" compares frames with what the ray-caster shows around the poses asked for; it needs the truth. "colmap" is
structure from motion, for clips without truth: poses up to scale (pycolmap, extra `annotate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sanawm_env.errors import ConfigError, nearest
from sanawm_env.evaluation.pose_error import as_matrix
from sanawm_env.evaluation.rooms import pose_offsets
from sanawm_env.evaluation.visibility import enough_seen
from sanawm_env.evaluation.world_clips import Clips


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one clip. frames: numbers [K] of those whose pose was found, the first picture among them. poses: float64
    [K, 4, 4] camera to world. metric: whether their scale is that of the clip."""

    frames: np.ndarray
    poses: np.ndarray
    metric: bool


# Of clips, their frames uint8 [B, T, H, W, 3], truth and the pixels seen in the first picture [B, T, H, W] (None where
# there is none), and the numbers of the frames in question: an estimate a clip, None where none is to be had.
Estimator = Callable[[Clips, Tensor, Tensor | None, Tensor | None, Sequence[int]], list[Estimate | None]]


def estimator(name: str) -> Estimator:
    """The estimator of a name. ConfigError."""
    if name not in ESTIMATORS:
        raise ConfigError(f"poses={name!r} is no estimator; {nearest(name, ESTIMATORS)}")
    return ESTIMATORS[name]


def by_rendering(
    clips: Clips, frames: Tensor, truth: Tensor | None, seen: Tensor | None, numbers: Sequence[int]
) -> list[Estimate | None]:
    """Render-and-compare on what the first picture has shown; frames of which that is less than 0.3 have no pose: what
    a world makes up was taken from nowhere. The first picture is given, and so is its pose."""
    if clips.rooms is None or truth is None or seen is None:
        raise ConfigError(
            "poses='render' needs rooms, which have a truth; use poses='colmap' for other clips, or null."
        )
    later = [number for number in numbers if number > 0]
    asked = clips.poses[:, later]
    offsets = pose_offsets(clips.rooms, frames[:, later], truth[:, later], seen[:, later], asked)
    found = (asked.to(offsets.device) @ as_matrix(offsets)).cpu().numpy()
    enough = enough_seen(seen[:, later]).cpu().numpy()
    return [
        Estimate(
            frames=np.array([0, *np.array(later)[keep]]),
            poses=np.concatenate([clips.poses[row, :1].numpy(), found[row, keep]]),
            metric=True,
        )
        for row, keep in enumerate(enough)
    ]


def by_colmap(
    clips: Clips, frames: Tensor, truth: Tensor | None, seen: Tensor | None, numbers: Sequence[int]
) -> list[Estimate | None]:
    """Structure from motion over all frames of each clip, its camera known; None for a clip without structure."""
    from sanawm_env.annotate.shots import Rejected
    from sanawm_env.annotate.structure import Mapping, reconstruct

    def found(row: int) -> Estimate | None:
        def pictures() -> Iterator[np.ndarray]:
            yield from frames[row].cpu().numpy()

        focal = tuple(float(value) for value in clips.intrinsics[row])
        try:
            told = reconstruct(pictures, frames.shape[1], Mapping(), focal, lambda flow: None, lambda *_: None)
        except Rejected:
            return None
        keep = np.array([k for k in numbers if told.first <= k < told.first + len(told)])
        return Estimate(frames=keep, poses=told.poses[keep - told.first], metric=False)

    return [found(row) for row in range(len(clips))]


ESTIMATORS: dict[str, Estimator] = {"render": by_rendering, "colmap": by_colmap}


def numbers_of(frames: int, every: int) -> list[int]:
    """Frames whose poses are estimated: every k-th of `frames` + 1, the first picture among them."""
    return list(range(0, frames + 1, every))


def device_of(clips: Clips) -> torch.device:
    """Where the truth of clips is rendered, and so where they are measured; the host without one."""
    return torch.device("cpu") if clips.rooms is None else clips.rooms.device
