"""Statistics of a feature as LeRobotDataset keeps them: of an episode, and of all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Statistics = dict[str, np.ndarray]
PICTURES, SIDE = 100, 150  # at most, of an episode: pictures that are looked at, pixels along a side of each


def of_values(values: np.ndarray) -> Statistics:
    """Of rows [T, D]: minimum, maximum, mean, standard deviation and quantiles [D], and "count" [1]."""
    rows = values.astype(np.float64)
    told = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    told |= dict(zip(QUANTILES, np.quantile(rows, list(QUANTILES.values()), axis=0)))
    return {**told, "count": np.array([len(rows)])}


class PictureSample:
    """Some pixels of some of the first `count` pictures of an episode, for its statistics."""

    def __init__(self, count: int) -> None:
        self._count, self._every = count, -(-count // PICTURES)
        self._kept: list[np.ndarray] = []

    def look(self, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Passes pictures uint8 [H, W, 3] through."""
        for k, picture in enumerate(pictures):
            if k < self._count and k % self._every == 0:
                stride = -(-max(picture.shape[:2]) // SIDE)
                self._kept.append(picture[::stride, ::stride].copy())
            yield picture

    def statistics(self) -> Statistics:
        """Of each colour [3, 1, 1], white being 1; the count is that of the pictures looked at."""
        told = of_values(np.stack(self._kept).reshape(-1, 3) / 255)
        shaped = {key: values.reshape(3, 1, 1) for key, values in told.items() if key != "count"}
        return {**shaped, "count": np.array([len(self._kept)])}


class Totals:
    """Statistics of all episodes from those of each. Quantiles are means of the episodes', as LeRobot's own are."""

    def __init__(self) -> None:
        self._totals: dict[str, Statistics] = {}

    def add(self, episode: Mapping[str, Statistics]) -> None:
        """Takes the statistics of an episode, by feature."""
        for name, told in episode.items():
            self._totals[name] = _joined(self._totals[name], told) if name in self._totals else dict(told)

    def plain(self) -> dict[str, dict[str, list[float]]]:
        """All of them as JSON has them."""
        return {name: {key: values.tolist() for key, values in told.items()} for name, told in self._totals.items()}


def _joined(one: Statistics, other: Statistics) -> Statistics:
    n, m = int(one["count"][0]), int(other["count"][0])
    share = m / (n + m)
    told = {key: one[key] + (other[key] - one[key]) * share for key in ("mean", *QUANTILES)}
    spread = one["std"] ** 2 * (1 - share) + other["std"] ** 2 * share
    spread += (other["mean"] - one["mean"]) ** 2 * share * (1 - share)
    return {
        **told,
        "min": np.minimum(one["min"], other["min"]),
        "max": np.maximum(one["max"], other["max"]),
        "std": np.sqrt(spread),
        "count": np.array([n + m]),
    }
