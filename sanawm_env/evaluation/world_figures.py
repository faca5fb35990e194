"""What the clips of `sanawm eval world` come to: means with intervals, and worlds compared on the same clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sanawm_env.evaluation.intervals import mean_interval

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A score by its key in lines: what it is called, digits after the point, factor for showing, and whether more is
    better (1), less (-1), or nearer to one or to zero (`ideal`)."""

    key: str
    label: str
    digits: int
    better: int = 1
    factor: float = 1.0
    ideal: float | None = None

    def loss(self, values: np.ndarray) -> np.ndarray:
        """Values as something of which less is better."""
        if self.ideal is not None:
            return np.abs(values - self.ideal)
        return -self.better * values


MEASURES = (
    Measure("rot_err", "RotErr, degrees", 2, -1),
    Measure("trans_err", "TransErr, m", 3, -1),
    Measure("cam_mc", "CamMC", 3, -1),
    Measure("trans_share_rigid", "TransErr, rigid alignment, % of path", 2, -1, factor=100),
    Measure("rot_err_first", "RotErr, first pose only, degrees", 2, -1),
    Measure("trans_share_first", "TransErr, first pose only, % of path", 2, -1, factor=100),
    Measure("psnr", "PSNR, visible pixels, dB", 2),
    Measure("psnr_last", "  in the last tenth, dB", 2),
    Measure("psnr_all", "PSNR, all pixels, dB", 2),
    Measure("ssim", "SSIM, visible pixels", 3),
    Measure("lpips", "LPIPS", 3, -1),
    Measure("quality", "CLIP-IQA", 3),
    Measure("sharpness", "sharpness over the truth's", 3, ideal=1.0),
    Measure("sharpness_seen", "  where frame 0 has seen", 3, ideal=1.0),
    Measure("sharpness_unseen", "  where it has not", 3, ideal=1.0),
    Measure("delta_iq", "delta-IQ (first less last tenth)", 3, ideal=0.0),
    Measure("revisit", "revisit PSNR, dB", 2),
    Measure("revisit_truth", "  of the truth, dB", 2),
    Measure("flicker", "flicker over the truth's", 3, ideal=1.0),
    Measure("seam", "flicker at chunk seams over within", 3, ideal=1.0),
    Measure("visible_share", "visible share", 2),
)
# Facts of the clips, not of the worlds: nothing to compare.
FACTS = ("revisit_truth", "visible_share")


@dataclass(frozen=True)
class Mean:
    """Over `count` clips, NaN without any; its 95 % interval, None where there is no telling; missing: why there is
    none, in words, where the lines say."""

    value: float
    interval: tuple[float, float] | None
    count: int
    missing: str = ""


@dataclass(frozen=True)
class Difference:
    """Mean of a world's scores less those of the first one, on the `count` clips that both have; verdict: "better",
    "worse", or "" where the interval does not say."""

    mean: Mean
    verdict: str


def mean_of(lines: Sequence[Line], measure: Measure) -> Mean:
    """Of all clips that have the score, in the measure's unit."""
    told = [line["scores"].get(measure.key) for line in lines]
    words = [value for value in told if isinstance(value, str)]
    if words:
        return Mean(math.nan, None, 0, words[0])
    return _mean(measure.factor * np.array([value for value in told if value is not None], float))


def difference(first: Sequence[Line], other: Sequence[Line], measure: Measure) -> Difference:
    """`other` less `first`, paired by clip; the verdict is on what is better, not on what is more."""
    before, after = ({line["clip"]: line["scores"].get(measure.key) for line in lines} for lines in (first, other))
    both = [k for k in before if _is_number(before[k]) and _is_number(after.get(k))]
    one, two = (measure.factor * np.array([scores[k] for k in both], float) for scores in (before, after))
    mean = _mean(two - one)
    scale = Measure("", "", 0, measure.better, ideal=None if measure.ideal is None else measure.factor * measure.ideal)
    worse = mean_interval(scale.loss(two) - scale.loss(one)) if len(both) > 1 else None
    verdict = "" if worse is None or worse[0] <= 0 <= worse[1] else "worse" if worse[0] > 0 else "better"
    return Difference(mean, verdict)


def curve(lines: Sequence[Line], key: str) -> np.ndarray:
    """A score over time, mean over clips [parts], NaN where no clip has one; empty where it was not measured."""
    told = [line["scores"][key] for line in lines if line["scores"].get(key)]
    if not told:
        return np.array([])
    rows = np.array([[math.nan if x is None else x for x in row] for row in told], float)
    counted = np.isfinite(rows)
    return np.where(counted, rows, 0).sum(0) / np.where(counted.any(0), counted.sum(0), np.nan)


def throughput(lines: Sequence[Line]) -> float:
    """Frames a second, all clips of a batch together; of the fastest batch, since the first one warms up."""
    return float(max(line["cost"]["made"] / line["cost"]["seconds"] for line in lines))


def _mean(values: np.ndarray) -> Mean:
    if not len(values):
        return Mean(math.nan, None, 0)
    return Mean(float(values.mean()), mean_interval(values) if len(values) > 1 else None, len(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
