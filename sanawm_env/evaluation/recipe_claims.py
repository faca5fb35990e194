"""Claims of SANA-WM's paper, each decided by the intervals of what ablations measured at the size of Rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sanawm_env.evaluation.form_scores import MEASURES
from sanawm_env.evaluation.world_figures import Difference, Measure, difference

Clips = Sequence[Mapping[str, Any]]
BY_KEY = {measure.key: measure for measure in MEASURES}
NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That `other` is worse than `base` in some of the measures; or, with a margin, no more than that much worse in
    any of them; `of`: "training" for forms, "bundle" for rows.
    """

    what: str
    of: str
    base: str
    other: str
    measures: tuple[str, ...]
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A claim in one measure. found: `other` less `base`, None where one of them is not measured."""

    claim: Claim
    measure: Measure
    found: Difference | None
    verdict: str


CLAIMS = (
    Claim(
        what="the delta rule is better than linear attention with decay",
        of="training",
        base="gdn",
        other="linear",
        measures=("psnr_32", "psnr_64", "back"),
    ),
    Claim(
        what="recurrent and softmax blocks together are better than softmax alone",
        of="training",
        base="gdn",
        other="softmax",
        measures=("psnr_32", "psnr_64", "back"),
    ),
    Claim(
        what="and better than recurrent blocks alone",
        of="training",
        base="gdn",
        other="no_softmax",
        measures=("psnr_32", "psnr_64", "back"),
    ),
    Claim(
        what="the ray branch (UCPE) makes the camera right",
        of="training",
        base="gdn",
        other="no_ucpe",
        measures=("rot_err_first", "trans_err_first", "psnr_32"),
    ),
    Claim(
        what="Pluecker rays beside it make it better still",
        of="training",
        base="gdn",
        other="no_plucker",
        measures=("rot_err_first", "trans_err_first", "psnr_32"),
    ),
    Claim(
        what="the first chunk as a sink keeps long rollouts right",
        of="training",
        base="gdn",
        other="no_sink",
        measures=("psnr_64", "back"),
    ),
    Claim(
        what="the recurrent state is the memory of a rollout",
        of="bundle",
        base="as it is",
        other="forgetful",
        measures=("psnr_64", "back"),
    ),
    Claim(
        what="the distilled student is within 0.5 dB of its teacher",
        of="bundle",
        base="teacher",
        other="distilled",
        measures=("psnr_8", "psnr_32", "psnr_64"),
        margin=0.5,
    ),
    Claim(
        what="and its unseen areas are sharper",
        of="bundle",
        base="distilled",
        other="teacher",
        measures=("sharpness_unseen",),
    ),
    Claim(
        what="a few steps make unseen areas sharper than one",
        of="bundle",
        base="steps 4",
        other="steps 1",
        measures=("sharpness_unseen",),
    ),
    Claim(
        what="the refiner makes unseen areas sharper",
        of="bundle",
        base="refiner",
        other="fp32",
        measures=("sharpness_unseen",),
    ),
    Claim(
        what="and loses less than 0.1 degree of the camera",
        of="bundle",
        base="fp32",
        other="refiner",
        measures=("rot_err_first",),
        margin=0.1,
    ),
    Claim(
        what="4-bit weights (NVFP4) cost less than 0.5 dB",
        of="bundle",
        base="fp32",
        other="nvfp4",
        measures=("psnr_8", "psnr_32", "psnr_64"),
        margin=0.5,
    ),
)


def decide(claim: Claim, rows: Mapping[str, Clips]) -> list[Decision]:
    """The claim in each of its measures, from the clips of rows by name."""
    decisions = []
    for key in claim.measures:
        measure, found = BY_KEY[key], None
        if rows.get(claim.base) and rows.get(claim.other):
            told = difference(rows[claim.base], rows[claim.other], measure)
            found = told if told.mean.count else None
        verdict = NOT_MEASURED if found is None else _verdict(claim, measure, found)
        decisions.append(Decision(claim=claim, measure=measure, found=found, verdict=verdict))
    return decisions


def _verdict(claim: Claim, measure: Measure, found: Difference) -> str:
    if claim.margin is None:
        return {"worse": "holds", "better": "does not hold: the other way", "": "not seen"}[found.verdict]
    if found.mean.interval is None:
        return "too few scenes to tell"
    best, worst = sorted((measure.better * end for end in found.mean.interval), reverse=True)
    if worst >= -claim.margin:
        return "holds"
    return "does not hold" if best < -claim.margin else "not decided"


def broken(form: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """What became of a form that is claimed not to train, in words."""
    found = [line for line in lines if line["form"] == form]
    if not found:
        return NOT_MEASURED
    steps = [line["diverged"] for line in found if line["diverged"] is not None]
    if steps:
        return f"holds: the loss is no number at step {min(steps)}"
    return f"does not hold: sound for {max(line['steps'] for line in found)} steps"
