"""What the results of the transfer benchmark come to: rates and means with intervals, ratios, rank correlation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sanawm_env.evaluation.intervals import bootstrap, mean_interval, spearman, wilson

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Figure:
    """A number of `count` cases, NaN where there are none, and its 95 % interval, None where there is no telling."""

    value: float
    interval: Interval
    count: int


@dataclass(frozen=True)
class Ran:
    """A policy's episodes in one place, in the order of the scenes. shortest: metres [n], of the ways there; hard: bool
    [n], scenes in which driving straight fails, None where nobody has tried."""

    line: Mapping[str, Any]
    shortest: np.ndarray
    hard: np.ndarray | None

    @cached_property
    def success(self) -> np.ndarray:
        """Bool [n]."""
        return self._ended("success")

    @property
    def efficiency(self) -> np.ndarray:
        """Shortest way over the way driven, at most 1, and 0 without success (SPL, Anderson et al., 2018) [n]."""
        driven = np.maximum(np.array(self.line["metres"]), self.shortest)
        return np.where(self.success, self.shortest / np.maximum(driven, 1e-9), 0.0)

    def rate(self, reason: str) -> Figure:
        """Share of the episodes that ended for a reason."""
        return _rate(self._ended(reason))

    def hard_success(self) -> Figure:
        """Success in the hard scenes."""
        return _rate(self.success[self.hard if self.hard is not None else np.zeros(len(self.success), bool)])

    def path_efficiency(self) -> Figure:
        """Mean over the scenes that have a way on the grid."""
        return _mean(self.efficiency[self.shortest > 0])

    def seconds(self) -> Figure:
        """Mean seconds of world time to the goal, over successes."""
        return _mean(np.array(self.line["seconds"])[self.success])

    def _ended(self, reason: str) -> np.ndarray:
        return np.array([one == reason for one in self.line["reasons"]], bool)


@dataclass(frozen=True)
class Pair:
    """A policy in both places."""

    name: str
    dream: Ran
    truth: Ran

    @property
    def identity(self) -> Mapping[str, Any]:
        told: Mapping[str, Any] = self.truth.line["identity"]
        return told

    @property
    def sees(self) -> str:
        """What it goes by, in words."""
        knows = self.truth.line["knows"]
        told = [
            word for word, key in (("pictures", "pictures"), ("goal", "goal"), ("floor plan", "plan")) if knows[key]
        ]
        return ", ".join(told) or "nothing"

    @property
    def pictures(self) -> bool:
        return bool(self.truth.line["knows"]["pictures"])


def pairs(setup: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Policies judged in both places, those with most success in the truth first."""
    by_key = {(one["policy"], one["where"]): one for one in lines}
    shortest = np.array(setup["found"]["shortest"])
    hard = _hard(by_key)
    names = dict.fromkeys(one["policy"] for one in lines)
    both = [name for name in names if (name, "dream") in by_key and (name, "truth") in by_key]
    made = [Pair(name, *(Ran(by_key[name, where], shortest, hard) for where in ("dream", "truth"))) for name in both]
    return sorted(made, key=lambda pair: -pair.truth.success.mean())


def reference(lines: Mapping[tuple[str, str], Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The line of the policy that drives straight, without noise, in the truth; None where there is none."""
    for (_, where), line in lines.items():
        if where == "truth" and line["identity"]["kind"] == "straight" and not line["identity"]["noise"]:
            return line
    return None


def ratios(found: Sequence[Pair]) -> list[tuple[Pair, Pair, Figure, Figure]]:
    """Policies of one method and noise, trained in the dream and in the truth, and the ratio of their success in the
    truth: over all scenes, and over the hard ones."""
    made = []
    for one in found:
        for other in found:
            trained = one.identity["trained"], other.identity["trained"]
            alike = all(one.identity[key] == other.identity[key] for key in ("method", "noise"))
            if trained == ("dream", "truth") and alike:
                hard = one.truth.hard if one.truth.hard is not None else np.zeros(len(one.truth.success), bool)
                both = one.truth.success, other.truth.success
                made.append((one, other, _ratio(*both), _ratio(*(success[hard] for success in both))))
    return made


def correlation(found: Sequence[Pair]) -> Figure:
    """Spearman's between policies' success in the dream and in the truth; bootstrap over scenes, the same for all."""
    if len(found) < 2:
        return Figure(math.nan, None, len(found))
    dream, truth = (np.stack([getattr(pair, place).success for pair in found]) for place in ("dream", "truth"))

    def figure(rows: np.ndarray) -> float:
        return spearman(dream[:, rows].mean(axis=1), truth[:, rows].mean(axis=1))

    count = dream.shape[1]
    return Figure(figure(np.arange(count)), bootstrap(count, figure), len(found))


def agreement(pair: Pair) -> Figure:
    """Share of scenes that end alike in both places, success or not."""
    return _rate(pair.dream.success == pair.truth.success)


def _hard(lines: Mapping[tuple[str, str], Mapping[str, Any]]) -> np.ndarray | None:
    straight = reference(lines)
    return None if straight is None else np.array([reason != "success" for reason in straight["reasons"]], bool)


def _rate(values: np.ndarray) -> Figure:
    if not len(values):
        return Figure(math.nan, None, 0)
    return Figure(float(values.mean()), wilson(int(values.sum()), len(values)), len(values))


def _mean(values: np.ndarray) -> Figure:
    return Figure(float(values.mean()) if len(values) else math.nan, mean_interval(values), len(values))


def _ratio(one: np.ndarray, other: np.ndarray) -> Figure:
    """Of rates over the same scenes [n]; paired bootstrap."""

    def figure(rows: np.ndarray) -> float:
        below = other[rows].mean() if len(rows) else 0.0
        return float(one[rows].mean() / below) if below else math.nan

    count = len(one)
    return Figure(figure(np.arange(count)), bootstrap(count, figure) if count else None, count)
