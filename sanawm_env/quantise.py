"""A bundle with quantised weights, made from a plain one: `sanawm quantize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sanawm_env import bundle
from sanawm_env.errors import BundleError, ConfigError
from sanawm_env.model.calibration import Moments, input_moments
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.offload import device_of
from sanawm_env.model.quantised import (
    LayerList,
    LowPrecision,
    Quantisation,
    layer_names,
    quantising,
    replace_layers,
    weight_bytes,
)
from sanawm_env.model.refiner import Refiner
from sanawm_env.placement import Placement, fill_placed, find_device
from sanawm_env.rollout import rollout
from sanawm_env.rooms import render, sample_scenes, sample_trajectories
from sanawm_env.world import WorldModel, initial

# Of the rooms that calibrate; none of them is held out.
FIRST_ROOM, CHUNKS = 500_000_000, 4


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """bundle: name or folder of a plain bundle. out: folder of the new one. precision, layers: of `bundle.load`.
    calibrate: Rooms through which a world is driven to see what the layers multiply, 0 for none (FP8 needs none).
    replace: whether a bundle in `out` may be replaced.
    """

    bundle: str
    out: Path
    precision: LowPrecision = "nvfp4"
    layers: LayerList = "default"
    calibrate: int = 0
    replace: bool = False

    def __post_init__(self) -> None:
        if self.calibrate < 0:
            raise ConfigError(f"calibrate is {self.calibrate}, allowed is a number of rooms, 0 for none.")


def quantised(model: WorldModel, quantisation: Quantisation, calibrate: int = 0) -> WorldModel:
    """A copy of a plain model, where it is, with quantised weights, those of its refiner too; the denoiser's of 4 bits
    calibrated on as many rooms, of training seeds, or with scales of their own alone, as on loading. ConfigError when
    the model is quantised already, or, to calibrate, reads text, of which rooms have none.
    """
    before = model.denoiser.quantisation
    if before is not None:
        raise ConfigError(f"the model is {before.precision} already; quantise the one that it was made from.")
    parts = bundle.empty_parts(model.config)
    moments = _moments(model, quantisation, calibrate) if calibrate else None
    read = {name: getattr(model, name).state_dict().__getitem__ for name in parts}
    denoiser = parts["denoiser"]
    assert isinstance(denoiser, Denoiser)
    replace_layers(denoiser, quantisation)
    read["denoiser"] = quantising(denoiser, read["denoiser"], model.device, moments)
    placement = Placement(device=model.device, dtype=model.dtype, quantisation=quantisation, captured=model.captured)
    low = bundle.assemble(model.config, parts, read, placement, model.fingerprint)
    return low if model.refiner is None else low.with_refiner(quantised_refiner(model.refiner, quantisation))


def quantised_refiner(refiner: Refiner, quantisation: Quantisation) -> Refiner:
    """A copy of a plain refiner, where it is, with quantised weights. ConfigError when it is quantised already."""
    if refiner.quantisation is not None:
        raise ConfigError(
            f"the refiner is {refiner.quantisation.precision} already; quantise the one that it was made from."
        )
    with torch.device("meta"):
        low = Refiner(refiner.config, refiner.transformer.config)
    placement = Placement(device=device_of(refiner), dtype=refiner.dtype, quantisation=quantisation)
    fill_placed(low, refiner.state_dict().__getitem__, placement)
    return low.eval().requires_grad_(False)


def _moments(model: WorldModel, quantisation: Quantisation, rooms: int) -> Moments:
    """Moments of the inputs of the layers to quantise, over drives through rooms."""
    if model.reads_text:
        raise ConfigError(
            f"calibrate is {rooms}, but {model.config.name} reads text, of which rooms have none; use calibrate=0."
        )
    config, seeds = model.config, range(FIRST_ROOM, FIRST_ROOM + rooms)
    scenes = sample_scenes(seeds, model.device)
    frames = CHUNKS * config.frames_per_chunk
    poses = torch.as_tensor(sample_trajectories(sample_scenes(seeds), seeds, frames, config.fps).poses)
    truth = render(
        scenes, poses[:, :1].to(model.device), config.intrinsics, (config.height, config.width), geometry=False
    )

    def drive() -> None:
        state, _ = initial(model, truth.rgb[:, 0], seeds=seeds, poses=poses[:, 0])
        for _ in rollout(model, state, poses[:, 1:], decode=False):
            pass

    return input_moments(model.denoiser, layer_names(model.denoiser, quantisation.layers), drive)


def run(config: Quantize) -> dict[str, Any]:
    """Writes the bundle, whole or not at all, and returns what it holds: folder, precision, list, how many layers,
    bytes of the denoiser's weights with the others in bf16, their share of a denoiser in bf16, and what would run it
    here. BundleError: the source is quantised, or `out` holds something.
    """
    # What a machine can run is asked of all of the package, which a bare GPU machine may lack parts of.
    from sanawm_env.requirements import executions

    bundle.check_target(config.out, config.replace)
    told = bundle.description(config.bundle)
    if "quantisation" in told:
        raise BundleError(
            f"{config.bundle} holds {told['quantisation'].get('precision')} weights already; quantise the bundle that "
            "it was made from."
        )
    # Weights that were stored in 8 or 32 bits are fp32 once read, the others are bf16 in their files.
    model = bundle.load(config.bundle, device="cpu", precision="bf16" if told["bits"] == 16 else "fp32")
    chosen = Quantisation(precision=config.precision, layers=config.layers)
    low = quantised(model, chosen, config.calibrate)
    provenance = {
        "quantised_from": {"name": told["name"], "weights_sha256": model.fingerprint},
        "calibrated_on_rooms": config.calibrate,
        "source": told["provenance"],
    }
    folder = bundle.save(
        config.out,
        low,
        provenance,
        bits=told["bits"],
        replace=config.replace,
        shard_bytes=max(file["bytes"] for file in told["files"].values()),
        licence=told["licence"],
    )
    count = weight_bytes(model.config.denoiser, chosen)
    return {
        "bundle": str(folder),
        "precision": config.precision,
        "list": config.layers,
        "layers": len(bundle.description(folder)["quantisation"]["layers"]),
        "denoiser_bytes": count,
        "share_of_bf16": round(count / weight_bytes(model.config.denoiser), 4),
        "runs_here_as": executions(find_device(None))[config.precision],
    }
