"""What worlds need of a machine: bytes in memory by precision, counted on the modules that would be loaded, and what
would multiply in each precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, get_args

import torch
from torch import nn

from sanawm_env import bundle
from sanawm_env.config import from_mapping
from sanawm_env.errors import BackendError
from sanawm_env.kernels.backend import native_bf16
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.checkpoint import bytes_of
from sanawm_env.model.config import WorldConfig
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.offload import Offload, resident_bytes
from sanawm_env.model.public_keys import Variant
from sanawm_env.model.quantised import LowPrecision, Quantisation, replace_layers
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig
from sanawm_env.released import released_config
from sanawm_env.sana_wm import REFINERS
from sanawm_env.world import WorldModel

LOW = {name: Quantisation(precision=name) for name in get_args(LowPrecision)}
Part = TypeVar("Part", Denoiser, Refiner)
# Of each precision, the dtype of what is not quantised.
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32} | dict.fromkeys(LOW, torch.bfloat16)


def requirements() -> list[dict[str, Any]]:
    """Bytes that each released world and Rooms keep in memory, by precision, with and without refiner.

    bytes: denoiser, autoencoder, refiner, state of one world by part, and their total; fp8 and nvfp4 are those of
    denoiser and refiner with their layers of the list "default". offloaded: bytes that are on the device at once, state
    included, by mode of offloading. Activations are not among them, nor is a text encoder, which is there only while it
    reads a new prompt.
    """
    configs = {"rooms": from_mapping(WorldConfig, bundle.description("rooms")["config"])}
    configs |= {variant: released_config(variant) for variant in get_args(Variant)}
    # Diffusers' defaults are the released refiner (spec rollout.md 8).
    refiners = {precision: _placed(partial(Refiner, RefinerConfig(), {}), precision) for precision in PRECISIONS}
    with torch.device("meta"):
        autoencoders = {name: Autoencoder(config.autoencoder) for name, config in configs.items()}
    rows = []
    for name, config in configs.items():
        denoisers = {precision: _placed(partial(Denoiser, config.denoiser), precision) for precision in PRECISIONS}
        for refined in (False, True) if name in REFINERS else (False,):
            for precision, dtype in PRECISIONS.items():
                model = WorldModel(config, denoisers[precision], autoencoders[name].to(dtype))
                model = model.with_refiner(refiners[precision]) if refined else model
                rows.append({"world": name, "refiner": refined, "precision": precision} | _needs(model))
    return rows


def executions(device: torch.device) -> dict[str, str]:
    """What would multiply on a device in each precision, or why nothing could."""
    native = "native" if native_bf16(device) else "emulated, slower than fp32"
    return {"bf16": native} | {name: _execution(chosen, device) for name, chosen in LOW.items()}


def _execution(quantisation: Quantisation, device: torch.device) -> str:
    try:
        quantisation.check_runs(device)
    except BackendError as error:
        return " ".join(str(error).split())
    return quantisation.execution(device)


def _placed(build: Callable[[], Part], precision: str) -> Part:
    """A part without weights that has a precision."""
    with torch.device("meta"):
        part = build().to(PRECISIONS[precision])
    if precision in LOW:
        replace_layers(part, LOW[precision])
    return part


def _needs(model: WorldModel) -> dict[str, Any]:
    parts: dict[str, nn.Module] = {"denoiser": model.denoiser, "autoencoder": model.autoencoder}
    parts |= {} if model.refiner is None else {"refiner": model.refiner}
    count: dict[str, Any] = {part: bytes_of(module) for part, module in parts.items()}
    state = model.empty_state(1).nbytes()
    count |= {"state": state, "total": sum(count.values()) + state["total"]}
    least = {
        mode: max(resident_bytes(module, mode) for module in parts.values()) + state["total"]
        for mode in get_args(Offload)
    }
    return {"bytes": count, "offloaded": least}
