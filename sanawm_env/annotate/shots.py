"""Shots of a video: where it is cut, and whether a shot is worth the work (ranges of spec training.md 6.4)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from sanawm_env.errors import ConfigError

Range = tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The range of each figure in which a shot is kept, None for any; means over the frames of a shot.

    motion, saturation, blur: of `Footage.measure`. flow: median displacement of matched points in half a second,
    pixels. view: horizontal and vertical field of view, degrees. skew: |fx - fy| over their mean. depth_spread:
    coefficient of variation of the scale that single frames ask for, where the scale comes from depth.
    """

    motion: Range = (0.5, 50.0)
    flow: Range = (3.0, 80.0)
    saturation: Range = (0.0, 180.0)
    blur: Range = None
    view: Range = (25.0, 120.0)
    skew: Range = (0.0, 0.2)
    depth_spread: Range = (0.0, 2.0)

    def __post_init__(self) -> None:
        for one in fields(self):
            kept: Range = getattr(self, one.name)
            if kept is not None and not kept[0] <= kept[1]:
                raise ConfigError(
                    f"filters.{one.name} is {kept}; give the smallest and the largest value kept, or null"
                )

    def check(self, figures: Mapping[str, float]) -> None:
        """Raises `Rejected` at the first figure out of its range; figures without a range pass."""
        for name, value in figures.items():
            kept: Range = getattr(self, name.removesuffix("_x").removesuffix("_y"), None)
            if kept is not None and not kept[0] <= value <= kept[1]:
                raise Rejected(f"{name} is {value:.3g}, kept is {kept[0]:g} to {kept[1]:g}")


class Rejected(Exception):
    """A shot that becomes no episode; the message is the reason."""


@dataclass(frozen=True)
class Shot:
    """Frames first .. first + count - 1 of a footage, and their mean figures."""

    first: int
    count: int
    figures: Mapping[str, float]


def find_shots(measured: Sequence[Mapping[str, float]], cut: float, longest: int) -> list[Shot]:
    """The shots between cuts, those that are too long in pieces of nearly equal length.

    measured: of every frame. cut: score from which a frame begins a new shot. longest: frames.
    """
    # A score compares a change with the one before it, which frame 1 does not have.
    starts = [0, *(k for k, told in enumerate(measured) if k > 1 and told["cut"] >= cut), len(measured)]
    edges = []
    for first, last in itertools.pairwise(starts):
        pieces = max(1, math.ceil((last - first) / longest))
        edges += np.linspace(first, last, pieces + 1).round().astype(int)[:-1].tolist()
    edges.append(len(measured))
    return [_shot(measured, first, last) for first, last in itertools.pairwise(edges) if last > first]


def _shot(measured: Sequence[Mapping[str, float]], first: int, last: int) -> Shot:
    inside = measured[first + 1 : last] or measured[first:last]  # the first frame of a shot differs from another one's
    told = {name: np.array([one[name] for one in inside]) for name in measured[first] if name != "cut"}
    means = {name: float(np.nanmean(values)) for name, values in told.items() if np.isfinite(values).any()}
    return Shot(first, last - first, means)
