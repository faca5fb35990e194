"""What a low precision costs: the same worlds, snapshot and noise in two precisions: `sanawm eval precision-parity`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sanawm_env.bundle_choice import BundleChoice
from sanawm_env.errors import ConfigError, StateError
from sanawm_env.evaluation.held_out import HeldOut, held_out
from sanawm_env.evaluation.metrics import mean_where_finite, psnr
from sanawm_env.evaluation.pose_error import magnitude
from sanawm_env.evaluation.rooms import pose_offsets
from sanawm_env.evaluation.visibility import visible
from sanawm_env.model.quantised import LayerList, LowPrecision, Quantisation, weight_bytes
from sanawm_env.quantise import quantised
from sanawm_env.rollout import rollout
from sanawm_env.state import WorldState
from sanawm_env.world import WorldModel, initial

# Decibels by which a low precision may be worse than the high one.
LIMIT_DB = 0.3
# Degrees or metres: the search for a pose resolves no less.
FINEST = 1e-3
MEASURES = {"psnr": "psnr_db", "degrees": "pose_error_degrees", "metres": "pose_error_metres"}


@dataclass(frozen=True, kw_only=True)
class EvalPrecisionParity(BundleChoice):
    """bundle, variant, refiner: see `BundleChoice`, of plain weights. device: CUDA if there is one, by default.
    precision, layers, simulate: of `bundle.load`. calibrate: of `quantise.Quantize`. scenes: held-out rooms, at least
    2. chunks: how far each is driven. seed: of the held-out set.
    """

    device: str | None = None
    precision: LowPrecision = "nvfp4"
    layers: LayerList = "default"
    calibrate: int = 0
    simulate: bool = False
    scenes: int = 8
    chunks: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ConfigError(f"chunks is {self.chunks}, allowed is 1 or more.")


def run(config: EvalPrecisionParity) -> dict[str, Any]:
    """Loads the bundle in both precisions, the high one bf16 where the device has it and fp32 elsewhere, and compares
    them; the report of `parity`.
    """
    high = config.load(device=config.device)
    if config.calibrate:
        chosen = Quantisation(precision=config.precision, layers=config.layers, simulated=config.simulate)
        chosen.check_runs(high.device)
        low = quantised(high, chosen, config.calibrate)
    else:
        low = config.load(
            device=config.device,
            precision=config.precision,
            layers=config.layers,
            simulate=config.simulate,
        )
    return parity(high, low, scenes=config.scenes, chunks=config.chunks, seed=config.seed)


def parity(high: WorldModel, low: WorldModel, *, scenes: int = 8, chunks: int = 4, seed: int = 0) -> dict[str, Any]:
    """Two models of the same weights on held-out rooms, as a mapping that JSON can hold.

    Both go on from one snapshot, taken at the first picture, with the same noise along the same path. A row a chunk,
    over scenes: latent_error, the norm of the difference of the chunk's latents over that of the high ones, mean; of
    its last frame against the truth, psnr_db on the pixels that the first frame shows, mean, and pose_error_degrees and
    pose_error_metres, the distance of the frame's best-fitting pose from the one asked for, medians.
    gap_db: by how much "low" is worse over all chunks, errors of poses as 20 log10 of their quotient; passed: whether
    none exceeds 0.3. StateError when the models are not of the same weights.
    """
    if high.fingerprint != low.fingerprint:
        raise StateError(
            f"the models are of bundles {high.fingerprint[:12]!r} and {low.fingerprint[:12]!r}; compare one bundle "
            "in two precisions."
        )
    if high.denoiser.quantisation is not None:
        raise ConfigError(
            f"the high precision is {high.execution}, allowed are bf16 and fp32; give the bundle that this one was "
            "made from."
        )
    frames = chunks * high.config.frames_per_chunk
    drives = held_out(high.config, scenes, seed, frames, high.device)
    rows: list[list[dict[str, Tensor]]] = []
    with tqdm(total=scenes * chunks, unit="chunk", desc="eval precision-parity") as bar:
        for group in drives.groups(1):
            rows.append(_compared(high, low, group))
            bar.update(chunks)
    joined = [{name: torch.cat([each[name] for each in chunk]) for name in chunk[0]} for chunk in zip(*rows)]
    gaps = _gaps(joined)
    return _headline(high, low, scenes, seed) | {
        "chunks": [_row(values) for values in joined],
        "gap_db": {name: round(gap, 4) for name, gap in gaps.items()},
        "limit_db": LIMIT_DB,
        "passed": all(gap <= LIMIT_DB for gap in gaps.values()),
    }


def _headline(high: WorldModel, low: WorldModel, scenes: int, seed: int) -> dict[str, Any]:
    chosen, shape = low.denoiser.quantisation, low.config.denoiser
    return {
        "bundle": high.config.name,
        "bundle_sha256": high.fingerprint,
        "device": high.device.type,
        "high": high.execution,
        "low": low.execution,
        "layers": None if chosen is None else chosen.layers,
        "share_of_bf16": round(weight_bytes(shape, chosen) / weight_bytes(shape), 4),
        "scenes": scenes,
        "seed": seed,
    }


def _compared(high: WorldModel, low: WorldModel, drive: HeldOut) -> list[dict[str, Tensor]]:
    """Values of one scene [1], a mapping a chunk."""
    chunk = high.config.frames_per_chunk
    ends = list(range(0, drive.poses.shape[1], chunk))
    poses = drive.poses[:, ends]
    truth = drive.truth(poses)
    seen = visible(truth.depth[:, 1:], poses[:, 1:], truth.depth[:, 0], poses[:, 0], drive.intrinsics())
    start, _ = initial(high, truth.rgb[:, 0], seeds=drive.seeds, poses=drive.poses[:, 0])
    shown = {name: _driven(model, start.clone(), drive) for name, model in (("high", high), ("low", low))}
    values: dict[str, Tensor] = {"latent_error": _latent_error(shown["low"][0], shown["high"][0])}
    for name, (_, pictures) in shown.items():
        pictures = pictures.to(truth.rgb.device)
        offsets = pose_offsets(drive, pictures, truth.rgb[:, 1:], seen, poses[:, 1:])
        degrees, metres = magnitude(offsets)
        measured = {"psnr": psnr(pictures, truth.rgb[:, 1:], seen), "degrees": degrees, "metres": metres}
        values |= {f"{name}_{measure}": x for measure, x in measured.items()}
    return [{name: x[:, k].double().cpu() for name, x in values.items()} for k in range(len(ends) - 1)]


def _driven(model: WorldModel, state: WorldState, drive: HeldOut) -> tuple[Tensor, Tensor]:
    """Latents [1, chunks, n, channels, h, w] and each chunk's last frame uint8 [1, chunks, H, W, 3]; spends state."""
    latents, pictures = [], []
    for _, shown in rollout(model, state, drive.poses[:, 1:]):
        assert shown.frames is not None
        latents.append(shown.latents)
        pictures.append(shown.frames[:, -1])
    return torch.stack(latents, dim=1), torch.stack(pictures, dim=1)


def _latent_error(low: Tensor, high: Tensor) -> Tensor:
    """Relative to the size of the high ones, [1, chunks]."""
    low, high = low.double().flatten(2), high.double().flatten(2)
    return (low - high).norm(dim=-1) / high.norm(dim=-1)


def _row(values: Mapping[str, Tensor]) -> dict[str, Any]:
    row: dict[str, Any] = {"latent_error": round(mean_where_finite(values["latent_error"]), 6)}
    for measure, label in MEASURES.items():
        told = {side: _middle(measure, values[f"{side}_{measure}"]) for side in ("high", "low")}
        row[label] = {side: None if math.isnan(value) else round(value, 4) for side, value in told.items()}
    return row


def _gaps(chunks: list[dict[str, Tensor]]) -> dict[str, float]:
    """By how many dB the low precision is worse over all chunks and scenes, a measure at a time."""
    told = {name: torch.cat([values[name] for values in chunks]) for name in chunks[0]}
    high, low = ({name: _middle(name, told[f"{side}_{name}"]) for name in MEASURES} for side in ("high", "low"))
    poses = {name: 20 * math.log10(max(low[name], FINEST) / max(high[name], FINEST)) for name in ("degrees", "metres")}
    return {"psnr": high["psnr"] - low["psnr"]} | poses


def _middle(measure: str, values: Tensor) -> float:
    """The mean of a PSNR, the median of errors of poses: where little of the first frame is left in view, the search
    for a frame's pose ends anywhere in either precision, and a few such frames would be all that a mean shows.
    """
    return mean_where_finite(values) if measure == "psnr" else float(values.median())
