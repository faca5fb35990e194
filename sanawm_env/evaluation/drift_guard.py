"""Calibrates the drift guard of a bundle on rooms, where the truth is known: `sanawm eval drift-guard`.

Without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.evaluation.drift_guard scenes=16 ...`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sanawm_env.bare import run_bare
from sanawm_env.bundle import folder_of, load
from sanawm_env.drift_guard import FILE, SIGNALS, DriftGuard, fit, rows_of, signals
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.held_out import HeldOut, held_out
from sanawm_env.evaluation.intervals import ranks
from sanawm_env.evaluation.metrics import psnr
from sanawm_env.evaluation.pose_error import magnitude
from sanawm_env.evaluation.rollout import Progress
from sanawm_env.evaluation.rooms import BUDGETS, pose_offsets
from sanawm_env.evaluation.visibility import enough_seen, visible
from sanawm_env.generation.filters import measure
from sanawm_env.placement import Precision
from sanawm_env.rollout import rollout
from sanawm_env.world import WorldModel, initial

BINS = 5


@dataclass(frozen=True, kw_only=True)
class EvalDriftGuard:
    """bundle, device, precision: of `bundle.load`. scenes: rooms, driven `frames` frames each along the default paths.
    seed: of the set, another one than `eval rooms` reports on. bad_psnr: a chunk whose last frame is below it, in dB on
    the pixels that the first picture shows, is bad. bad_degrees, bad_metres: so is one whose pose is farther off; null
    leaves out the search for poses, which costs more than the rest. tested: share of the scenes that the fit does not
    see and that it is judged on. out: file; the bundle's own if null.
    """

    bundle: str = "rooms"
    device: str | None = None
    precision: Precision = "auto"
    scenes: int = 48
    frames: int = 128
    seed: int = 1
    bad_psnr: float = 27.0
    bad_degrees: float | None = None
    bad_metres: float | None = None
    tested: float = 0.33
    out: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.tested < 1 or self.scenes < 4 or self.frames < 1:
            raise ConfigError(
                f"tested is {self.tested}, scenes {self.scenes}, frames {self.frames}; allowed are a share between 0 "
                "and 1, 4 scenes or more, and 1 frame or more."
            )


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Of many chunks: scene [N] of each, signals [N, 6], PSNR in dB [N], degrees and metres [N] (NaN where not
    searched for). Chunks that show too little of what the first picture showed are not among them."""

    scene: np.ndarray
    signals: np.ndarray
    psnr: np.ndarray
    degrees: np.ndarray
    metres: np.ndarray

    def good(self, config: EvalDriftGuard) -> np.ndarray:
        """Bool [N]."""
        limits = ((self.degrees, config.bad_degrees), (self.metres, config.bad_metres))
        bad = self.psnr < config.bad_psnr
        for values, limit in limits:
            bad |= values > (np.inf if limit is None else limit)
        return ~bad


def run(config: EvalDriftGuard) -> dict[str, Any]:
    """Calibrates, writes the guard, and tells how good it is on scenes that the fit has not seen."""
    model = load(config.bundle, device=config.device, precision=config.precision)
    guard = calibrate(model, config)
    path = folder_of(config.bundle) / FILE if config.out is None else config.out
    guard.write(path)
    return {"guard": str(path), **guard.told}


def calibrate(model: WorldModel, config: EvalDriftGuard) -> DriftGuard:
    """The guard of a model; `told` has the AUC (chance that a good chunk has more confidence than a bad one), the Brier
    score beside that of always saying the same, the observed share of good chunks by confidence, and the AUC of each
    signal alone."""
    chunks = judged_chunks(model, config)
    good = chunks.good(config)
    test = chunks.scene >= config.scenes - max(1, round(config.tested * config.scenes))
    guard = fit(chunks.signals[~test], good[~test], world=model.fingerprint)
    likely, was = guard.confidence(chunks.signals[test]), good[test]
    share = float(good[~test].mean())
    told = {
        "scenes": config.scenes,
        "frames": config.frames,
        "seed": config.seed,
        "bad": {"psnr_db": config.bad_psnr, "degrees": config.bad_degrees, "metres": config.bad_metres},
        "execution": model.execution,
        "chunks": {"fitted": int((~test).sum()), "tested": int(test.sum())},
        "good_share": {"fitted": round(share, 4), "tested": round(float(was.mean()), 4)},
        "auc": _rounded(auc(likely, was)),
        "brier": round(float(((likely - was) ** 2).mean()), 4),
        "brier_constant": round(float(((share - was) ** 2).mean()), 4),
        "reliability": _reliability(likely, was),
        "auc_alone": {
            name: _rounded(auc(column, was)) for name, column in zip(SIGNALS, chunks.signals[test].T, strict=True)
        },
    }
    return dataclasses.replace(guard, told=told)


def auc(scores: np.ndarray, good: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a good one [N] scores more than a bad one; NaN without both."""
    count = int(good.sum())
    if count in (0, len(good)):
        return float("nan")
    return float((ranks(scores)[good].sum() - count * (count + 1) / 2) / (count * (len(good) - count)))


def judged_chunks(model: WorldModel, config: EvalDriftGuard) -> Chunks:
    """What worlds show of rooms, chunk by chunk, and how it compares with the truth."""
    step = model.config.frames_per_chunk
    frames = -(-config.frames // step) * step
    drives = held_out(model.config, config.scenes, config.seed, frames, model.device)
    searched = not (config.bad_degrees is None and config.bad_metres is None)
    parts: list[dict[str, np.ndarray]] = []
    with tqdm(total=config.scenes * frames, unit="frame", desc="eval drift-guard", disable=None) as bar:
        groups = drives.groups(BUDGETS[model.device.type].group)
        parts.extend(_judged(model, group, searched, bar.update) for group in groups)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    joined["scene"] -= drives.seeds[0]
    return Chunks(**joined)


def _judged(model: WorldModel, group: HeldOut, searched: bool, progress: Progress) -> dict[str, np.ndarray]:
    step = model.config.frames_per_chunk
    ends = list(range(0, group.poses.shape[1], step))
    poses = group.poses[:, ends]
    truth = group.truth(poses)
    seen = visible(truth.depth[:, 1:], poses[:, 1:], truth.depth[:, 0], poses[:, 0], group.intrinsics())
    told, shown = _driven(model, group, truth.rgb[:, 0], progress)
    target, shown = truth.rgb[:, 1:], shown.to(truth.rgb.device)
    values = {"psnr": psnr(shown, target, seen).cpu().numpy()}
    nothing = np.full(values["psnr"].shape, np.nan)
    values |= {"degrees": nothing, "metres": nothing}
    if searched:
        offsets = pose_offsets(group, shown, target, seen, poses[:, 1:])
        values |= {name: x.cpu().numpy() for name, x in zip(("degrees", "metres"), magnitude(offsets))}
    enough = enough_seen(seen).cpu().numpy()
    scene = np.repeat(np.array(group.seeds)[:, None], len(ends) - 1, axis=1)
    return {name: x[enough] for name, x in ({"scene": scene, "signals": told} | values).items()}


def _driven(model: WorldModel, group: HeldOut, first: Tensor, progress: Progress) -> tuple[np.ndarray, Tensor]:
    """Signals [B, chunks, 6] and the last frame of every chunk, uint8 [B, chunks, H, W, 3]."""
    state, _ = initial(model, first, seeds=group.seeds, poses=group.poses[:, 0])
    rows: list[np.ndarray] = []
    told, last = [], []
    for _, shown in rollout(model, state, group.poses[:, 1:]):
        assert shown.frames is not None
        rows.append(rows_of(measure(shown.frames, shown.latents)))
        told.append(signals(rows[0], rows[-1], [len(rows) - 1] * len(group)))
        last.append(shown.frames[:, -1])
        progress(shown.frames.shape[1] * len(group))
    return np.stack(told, axis=1), torch.stack(last, dim=1)


def _reliability(likely: np.ndarray, good: np.ndarray) -> list[dict[str, float]]:
    """Mean confidence and share of good chunks, by fifths of the chunks in the order of their confidence."""
    parts = np.array_split(np.argsort(likely, kind="stable"), BINS)
    return [
        {"confidence": round(float(likely[rows].mean()), 4), "good": round(float(good[rows].mean()), 4)}
        for rows in parts
        if len(rows)
    ]


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def main(arguments: Sequence[str]) -> int:
    """Calibrates as `key=value` arguments describe; see `run_bare`."""
    return run_bare(EvalDriftGuard, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
