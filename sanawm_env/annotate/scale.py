"""Metres in one unit of a structure: from a known speed, baseline or length, or from metric depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sanawm_env.annotate.shots import Rejected
from sanawm_env.annotate.structure import Structure
from sanawm_env.errors import ConfigError

# A picture uint8 [H, W, 3] to its depth along z, metres [H, W].
DepthEstimator = Callable[[np.ndarray], np.ndarray]
Pixel = tuple[float, float]
DEPTH_FRAMES = 16  # of a shot whose depth is estimated


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The camera moved `metres` from frame to frame, in a straight line or not. frames: numbers within the video."""

    frames: tuple[int, int]
    metres: float

    def __post_init__(self) -> None:
        _check(self.frames, self.metres, "baseline")


@dataclass(frozen=True, kw_only=True)
class KnownLength:
    """Two points of the scene, `metres` apart, seen in two frames. frames: numbers within the video. first, second:
    (u, v) of both points in each frame, pixels counted from the centre of the upper left one."""

    frames: tuple[int, int]
    first: tuple[Pixel, Pixel]
    second: tuple[Pixel, Pixel]
    metres: float

    def __post_init__(self) -> None:
        _check(self.frames, self.metres, "known_length")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """factor: by which positions are multiplied. metric: whether that makes them metres; if not, one is the median
    depth of the structure's points. source: "speed", "baseline", "known_length", "depth", or "uncalibrated" with the
    reason. figures: quality, by name."""

    factor: float
    metric: bool
    source: str
    figures: dict[str, float] = field(default_factory=dict)


def uncalibrated(structure: Structure, reason: str) -> Scale:
    """The scale of a structure of which nothing is known."""
    depth = float(np.median(np.concatenate([points[:, 2] for points in structure.points])))
    return Scale(factor=1 / depth, metric=False, source=f"uncalibrated ({reason})")


def from_speed(structure: Structure, speed: float, fps: float) -> Scale:
    """The mean speed of the camera is `speed` m/s. The path is measured in quarters of a second, which jitter does not
    lengthen."""
    stride = max(1, round(fps / 4))
    places = structure.poses[[*range(0, len(structure) - 1, stride), len(structure) - 1], :3, 3]
    length = float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum())
    return _known(speed * (len(structure) - 1) / fps, length, "speed")


def from_baseline(structure: Structure, known: Baseline, first: int) -> Scale:
    """first: number of the structure's first frame within the video."""
    rows = _rows(structure, known.frames, first)
    if rows is None:
        return uncalibrated(structure, f"frames {list(known.frames)} are not both in this episode")
    one, other = structure.poses[list(rows), :3, 3]
    return _known(known.metres, float(np.linalg.norm(other - one)), "baseline")


def from_length(structure: Structure, known: KnownLength, first: int) -> Scale:
    """first: number of the structure's first frame within the video."""
    rows = _rows(structure, known.frames, first)
    if rows is None:
        return uncalibrated(structure, f"frames {list(known.frames)} are not both in this episode")
    rays = [structure.rays(np.array(pixels)) for pixels in (known.first, known.second)]
    ends = [_triangulated(structure.poses[list(rows)], [rays[0][k], rays[1][k]]) for k in range(2)]
    return _known(known.metres, float(np.linalg.norm(ends[0] - ends[1])), "known_length")


def from_depth(structure: Structure, frames: Iterator[np.ndarray], estimate: DepthEstimator) -> Scale:
    """The scale at which depths of points fit estimated depth: least squares with weights 1 / depth in each of some
    frames, and of those the median. frames: of the structure, as they were taken."""
    chosen = set(np.linspace(0, len(structure) - 1, min(DEPTH_FRAMES, len(structure))).round().astype(int).tolist())
    found = []
    for number, frame in enumerate(frames):
        points = structure.points[number]
        if number in chosen and len(points):
            found.append(_fitted(points, np.asarray(estimate(frame), np.float64), frame.shape[:2]))
    scales = np.array([scale for scale in found if scale is not None])
    if not len(scales):
        raise Rejected("the depth estimator gave no finite depth above 0 at any point of the structure")
    spread = float(scales.std() / scales.mean())
    figures = {"depth_spread": spread, "depth_frames": float(len(scales))}
    return Scale(factor=float(np.median(scales)), metric=True, source="depth", figures=figures)


def _fitted(points: np.ndarray, depth: np.ndarray, size: tuple[int, ...]) -> float | None:
    if depth.shape != size:
        raise ConfigError(f"the depth estimator gave shape {depth.shape}, expected {size}; resize it to the picture")
    column, row = points[:, :2].round().astype(int).T
    metric = depth[np.clip(row, 0, size[0] - 1), np.clip(column, 0, size[1] - 1)]
    good = np.isfinite(metric) & (metric > 0)
    if not good.any():
        return None
    metric, own = metric[good], points[good, 2]
    return float((own * metric / metric).sum() / (own * own / metric).sum())


def _known(metres: float, length: float, source: str) -> Scale:
    if not length > 1e-6:
        raise Rejected(f"the {source} is known, but the structure has a length of {length:.2g} there")
    return Scale(factor=metres / length, metric=True, source=source)


def _rows(structure: Structure, frames: tuple[int, int], first: int) -> tuple[int, int] | None:
    one, other = (frame - first for frame in frames)
    return (one, other) if min(one, other) >= 0 and max(one, other) < len(structure) else None


def _triangulated(poses: np.ndarray, rays: list[np.ndarray]) -> np.ndarray:
    """The point [3] nearest to two rays (x / z, y / z) from poses [2, 4, 4]."""
    normal, target = np.zeros((3, 3)), np.zeros(3)
    for pose, ray in zip(poses, rays):
        along = pose[:3, :3] @ np.append(ray, 1.0)
        along /= np.linalg.norm(along)
        across: Any = np.eye(3) - np.outer(along, along)
        normal, target = normal + across, target + across @ pose[:3, 3]
    if np.linalg.cond(normal) > 1e8:
        raise Rejected(
            "the known length cannot be measured: its points are seen in the same direction from both frames"
        )
    return np.asarray(np.linalg.solve(normal, target))


def _check(frames: tuple[int, int], metres: float, name: str) -> None:
    if min(frames) < 0 or frames[0] == frames[1] or not (metres > 0 and np.isfinite(metres)):
        raise ConfigError(
            f"{name} has frames {list(frames)} and {metres} metres; give two different frames and a length above 0"
        )
