"""What `sanawm eval world` measures of one clip: the camera, the pixels, and what becomes of them over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sanawm_env.errors import PoseError
from sanawm_env.evaluation.camera_error import Alignment, camera_error
from sanawm_env.evaluation.metrics import mean_where_finite, psnr, ssim
from sanawm_env.evaluation.perceptual import NOT_AVAILABLE, Perceptual
from sanawm_env.evaluation.pictures import sharpness
from sanawm_env.evaluation.pose_estimators import Estimate

PARTS = 10  # of a clip, over time
LEARNED_EVERY = 8  # frames between two that networks look at
ALIGNMENTS: dict[Alignment, str] = {"similarity": "", "rigid": "_rigid", "first": "_first"}
Scores = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A clip as a world made it. frames: uint8 [1 + T, H, W, 3], the first the given picture as the world shows it.
    truth: likewise, and seen: bool [1 + T, H, W], what of it the first picture shows; both None without a truth.
    picture: uint8 [H, W, 3], the given one. pairs: frames at which the camera is back. chunk: frames of a step."""

    frames: Tensor
    truth: Tensor | None
    seen: Tensor | None
    picture: Tensor
    pairs: Sequence[tuple[int, int]]
    chunk: int


def score(clip: Shown, estimate: Estimate | None, asked: Tensor, perceptual: Perceptual) -> Scores:
    """All scores of a clip by name, as JSON holds them: numbers, None where there is nothing to measure, or that a
    network is not available. asked: the poses [1 + T, 4, 4] that the world was told."""
    found = pixel_scores(clip) | camera_scores(estimate, asked) | learned_scores(clip, perceptual)
    return {name: _plain(value) for name, value in found.items()}


def camera_scores(estimate: Estimate | None, asked: Tensor) -> Scores:
    """RotErr (degrees), TransErr (metres, and as a share of the path) and CamMC, in three alignments: by a similarity,
    as the paper has them; _rigid, without scale, which turns the path alike; _first, of the first pose alone. The last
    two are None where the estimate has a scale of its own; all are where it has fewer than three poses."""
    told: Scores = {"pose_frames": 0 if estimate is None else len(estimate.frames)}
    for alignment, suffix in ALIGNMENTS.items():
        error = None
        if estimate is not None and len(estimate.frames) >= 3 and (estimate.metric or alignment == "similarity"):
            truth = asked[torch.from_numpy(estimate.frames)].double().cpu().numpy()
            try:
                error = camera_error(estimate.poses, truth, alignment=alignment)
            except PoseError:  # camera centres on one line
                error = None
        told[f"rot_err{suffix}"] = None if error is None else error.rotation
        told[f"trans_err{suffix}"] = None if error is None else error.translation
        told[f"trans_share{suffix}"] = None if error is None else error.relative
        told[f"cam_mc{suffix}"] = None if error is None else error.matrix
    return told


def pixel_scores(clip: Shown) -> Scores:
    """Against the truth, where there is one: PSNR and SSIM on the pixels that the first picture shows, sharpness over
    the truth's there and elsewhere, flicker and chunk seams over the truth's; without one, the sharpness is over the
    given picture's and flicker is in grey levels. delta_iq is the sharpness of the first tenth less that of the last,
    revisit the PSNR (dB) between frames at which the camera is back. Curves are over tenths of the clip."""
    frames = clip.frames[1:]
    told: Scores = {"revisit": _revisit(clip.frames, clip.pairs), "revisit_pairs": len(clip.pairs)}
    flicker = _jitter(clip.frames)
    whole = sharpness(frames)
    if clip.truth is None or clip.seen is None:
        ratio = _parts(whole / sharpness(clip.picture))
        told |= {"flicker": float(flicker.mean()), "seam": _seam(flicker, clip.chunk)}
        return told | {"sharpness": _mean(ratio), "delta_iq": ratio[0] - ratio[-1], "sharpness_curve": ratio}
    truth, seen = clip.truth[1:], clip.seen[1:]
    levels = psnr(frames, truth, seen)
    true_flicker = _jitter(clip.truth)
    pairs = {"seen": seen, "unseen": ~seen}
    for name, mask in pairs.items():
        told[f"sharpness_{name}"] = _quotient(sharpness(frames, mask), sharpness(truth, mask))
    ratio = [_quotient(*pair) for pair in zip(_chunks(whole), _chunks(sharpness(truth)), strict=True)]
    return told | {
        "psnr": mean_where_finite(levels),
        "psnr_last": _mean(levels[-max(1, len(levels) // PARTS) :].tolist()),
        "psnr_all": float(psnr(frames, truth).mean()),
        "ssim": mean_where_finite(ssim(frames, truth, seen)),
        "visible_share": float(seen.double().mean()),
        "sharpness": _quotient(whole, sharpness(truth)),
        "delta_iq": ratio[0] - ratio[-1],
        "revisit_truth": _revisit(clip.truth, clip.pairs),
        "flicker": float(flicker.mean() / true_flicker.mean()),
        "seam": _seam(flicker, clip.chunk) / _seam(true_flicker, clip.chunk),
        "psnr_curve": _parts(levels),
        "sharpness_curve": ratio,
    }


def learned_scores(clip: Shown, perceptual: Perceptual) -> Scores:
    """LPIPS against the truth and CLIP-IQA, means over every eighth frame; NOT_AVAILABLE without their weights."""
    told: Scores = {"lpips": NOT_AVAILABLE, "quality": NOT_AVAILABLE}
    frames = clip.frames[1::LEARNED_EVERY]
    if perceptual.lpips is not None:
        truth = None if clip.truth is None else clip.truth[1::LEARNED_EVERY]
        told["lpips"] = None if truth is None else float(perceptual.lpips(frames, truth).mean())
    if perceptual.quality is not None:
        told["quality"] = float(perceptual.quality(frames).mean())
    return told


def _jitter(frames: Tensor) -> Tensor:
    """How far each frame is from the middle of its neighbours, mean over pixels in grey levels: [frames - 2].

    Smooth motion leaves little, flicker all of it.
    """
    grey = frames.float().mean(-1)
    return (grey[:-2] - 2 * grey[1:-1] + grey[2:]).abs().mean((-2, -1)).double() / 2


def _seam(jitter: Tensor, chunk: int) -> float:
    """Flicker at the first and last frames of chunks over that within them; NaN for less than two chunks."""
    number = torch.arange(1, len(jitter) + 1, device=jitter.device) % chunk
    seam = number <= 1  # frame 0 stands alone: chunks end at multiples of their length, and begin one later
    if seam.all() or len(jitter) < chunk + 1:
        return math.nan
    return float(jitter[seam].mean() / jitter[~seam].mean())


def _revisit(frames: Tensor, pairs: Sequence[tuple[int, int]]) -> float:
    if not pairs:
        return math.nan
    one, other = (frames[list(numbers)] for numbers in zip(*pairs))
    return float(psnr(one, other).mean())


def _chunks(values: Tensor) -> list[Tensor]:
    return list(values.tensor_split(PARTS)) if len(values) >= PARTS else list(values.split(1))


def _parts(values: Tensor) -> list[float]:
    return [mean_where_finite(part) for part in _chunks(values)]


def _quotient(values: Tensor, others: Tensor) -> float:
    """Of the sums over frames that have both; NaN where none has."""
    both = values.isfinite() & others.isfinite()
    return float(values[both].sum() / others[both].sum())


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
