"""A bundle with quantised weights, made from a plain one: `sanawm quantize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanawm_env import bundle
from sanawm_env.errors import BundleError, ConfigError
from sanawm_env.model.quantised import LayerList, LowPrecision, Quantisation, weight_bytes
from sanawm_env.placement import Placement, find_device
from sanawm_env.requirements import executions
from sanawm_env.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """bundle: name or folder of a plain bundle. out: folder of the new one. precision, layers: of `bundle.load`.
    replace: whether a bundle in `out` may be replaced.
    """

    bundle: str
    out: Path
    precision: LowPrecision = "nvfp4"
    layers: LayerList = "default"
    replace: bool = False


def quantised(model: WorldModel, quantisation: Quantisation) -> WorldModel:
    """A copy of a plain model, where it is, with quantised weights, as they are when they are quantised on loading.

    Nothing is calibrated: scales are the weights' own. ConfigError when the model is quantised already.
    """
    before = model.denoiser.quantisation
    if before is not None:
        raise ConfigError(f"the model is {before.precision} already; quantise the one that it was made from.")
    parts = bundle.empty_parts(model.config)
    read = {name: getattr(model, name).state_dict().__getitem__ for name in parts}
    placement = Placement(device=model.device, dtype=model.dtype, quantisation=quantisation, captured=model.captured)
    return bundle.assemble(model.config, parts, read, placement, model.fingerprint)


def run(config: Quantize) -> dict[str, Any]:
    """Writes the bundle, whole or not at all, and returns what it holds: folder, precision, list, how many layers,
    bytes of the denoiser's weights with the others in bf16, their share of a denoiser in bf16, and what would run it
    here. BundleError: the source is quantised, or `out` holds something.
    """
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
    low = quantised(model, chosen)
    provenance = {
        "quantised_from": {"name": told["name"], "weights_sha256": model.fingerprint},
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
