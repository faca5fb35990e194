"""What figures from a few scenes are worth: intervals of rates and means, and rank correlation, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sanawm_env.errors import ConfigError

DRAWS = 2000
_Z = 1.959963984540054  # of a normal distribution, 95 % lie within


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate. ConfigError unless 0 <= hits <= count and count >= 1."""
    if not 0 <= hits <= count or count < 1:
        raise ConfigError(f"{hits} of {count} is no rate; count one case or more.")
    rate, share = hits / count, _Z**2 / count
    middle = (rate + share / 2) / (1 + share)
    half = _Z / (1 + share) * math.sqrt(rate * (1 - rate) / count + share / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(
    count: int, figure: Callable[[np.ndarray], float], *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of a figure of `count` scenes, between percentiles of what it is for scenes drawn anew.

    figure: from rows int64 [count], drawn with replacement, to a number, NaN where they give none; such draws are left
    out. None where more than half are.
    """
    rng = np.random.default_rng(seed)
    found = np.array([figure(rng.integers(0, count, size=count)) for _ in range(draws)])
    found = found[np.isfinite(found)]
    if len(found) < draws / 2:
        return None
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """The bootstrap interval of a mean of values [n], all draws at once; None where there are none."""
    if not len(values):
        return None
    rows = np.random.default_rng(0).integers(0, len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [n] from 1 up; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: np.ndarray = (last - (counts - 1) / 2)[place]
    return mean


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two lists [n] with ties; NaN for fewer than two, or where all of one are equal."""
    if len(one) < 2:
        return math.nan
    first, second = (ranks(values) - (len(values) + 1) / 2 for values in (one, other))
    spread = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / spread) if spread else math.nan
