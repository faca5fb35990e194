"""Where and in which precision a model computes: what its user asks for, checked against the machine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from sanawm_env.errors import BackendError, ConfigError, nearest
from sanawm_env.kernels.backend import native_bf16
from sanawm_env.model.checkpoint import fill
from sanawm_env.model.offload import Offload, home
from sanawm_env.model.quantised import (
    LayerList,
    LowPrecision,
    Quantisation,
    Read,
    exact_names,
    quantising,
    replace_layers,
)

if TYPE_CHECKING:
    from sanawm_env.model.denoiser import Denoiser
    from sanawm_env.model.refiner import Refiner

WidePrecision = Literal["auto", "bf16", "fp32"]
Precision = Literal["auto", "bf16", "fp32", "fp8", "nvfp4"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """device: where it computes. dtype: of states and of all weights that are not quantised. offload: as `find_offload`
    gives it. quantisation: of its large layers. captured: whether steps are replayed from CUDA graphs.
    """

    device: torch.device
    dtype: torch.dtype
    offload: Offload | None = None
    quantisation: Quantisation | None = None
    captured: bool = False


def place(
    device: torch.device | str | None,
    precision: str,
    offload: Offload | None = None,
    layers: LayerList | None = None,
    *,
    simulate: bool = False,
    captured: bool | None = None,
) -> Placement:
    """The placement of `bundle.load`'s arguments. ConfigError or BackendError as `find_device`, `find_dtype`,
    `find_quantisation`, `find_offload` and `find_captured`, or for a device that cannot run the precision.
    """
    target = find_device(device)
    moved = find_offload(offload, target)
    wanted = Placement(
        device=target,
        dtype=find_dtype(precision, target),
        offload=moved,
        quantisation=find_quantisation(precision, layers, simulate=simulate),
        captured=find_captured(captured, target, moved),
    )
    if wanted.quantisation is not None:
        wanted.quantisation.check_runs(target)
    return wanted


def fill_placed(model: Denoiser | Refiner, read: Read, placement: Placement) -> None:
    """Gives a model of the meta device the weights that `read` returns by name, where they are to lie; they are
    quantised on the way if `placement` says so and the model's layers are not replaced already.
    """
    if placement.quantisation is not None and model.quantisation is None:
        replace_layers(model, placement.quantisation)
        read = quantising(model, read, placement.device)
    fill(model, read, home(placement.offload, placement.device), placement.dtype, exact=exact_names(model))


def find_device(device: torch.device | str | None) -> torch.device:
    """The device "cpu", "cuda" or "cuda:N"; None takes CUDA where there is one.

    ConfigError: any other name (worlds need float64, which not every device of torch has). BackendError: a CUDA device
    that torch does not see.
    """
    count = torch.cuda.device_count()
    if device is None:
        return torch.device("cuda" if count else "cpu")
    name = re.fullmatch("cpu|cuda(?::(0|[1-9][0-9]*))?", str(device))
    if name is None:
        raise ConfigError(f"device is {device!r}; allowed is 'cpu', 'cuda' (a GPU), 'cuda:N', or None for the best.")
    if str(device) != "cpu" and int(name[1] or 0) >= count:
        remedy = f"use 'cuda:0' .. 'cuda:{count - 1}'" if count else 'use device="cpu", or a CUDA build of torch'
        raise BackendError(f"device is {str(device)!r}, torch sees {count} CUDA device(s); {remedy}.")
    return torch.device(name[0])


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The number format of what a precision does not quantise: bf16 or fp32 as asked, else ("auto", "fp8", "nvfp4") the
    one that suits the device. ConfigError: any other name.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision is {precision!r}; {nearest(str(precision), get_args(Precision))}")
    named = {"bf16": torch.bfloat16, "fp32": torch.float32}
    return named.get(precision, torch.bfloat16 if native_bf16(device) else torch.float32)


def find_quantisation(precision: str, layers: LayerList | None, *, simulate: bool = False) -> Quantisation | None:
    """Which layers a precision quantises: none unless it is "fp8" or "nvfp4", then those of the list `layers`,
    "default" if None. simulate: FP8 by its reference. ConfigError: a list or simulation without such a precision.
    """
    low = next((name for name in get_args(LowPrecision) if name == precision), None)
    if low is not None:
        return Quantisation(precision=low, layers="default" if layers is None else layers, simulated=simulate)
    if layers is not None or simulate:
        option = f"layers is {layers!r}" if layers is not None else "simulate is True"
        raise ConfigError(f"{option} with precision {precision!r}, which quantises nothing; use 'fp8' or 'nvfp4'.")
    return None


def find_offload(offload: Offload | None, device: torch.device) -> Offload | None:
    """What is moved onto a device only while it computes: nothing (None), the "parts" of a world one after another, or
    each transformer block by itself too ("blocks"). Always None on a CPU, whose memory the weights are in already.
    ConfigError: any other name.
    """
    if offload not in (None, *get_args(Offload)):
        raise ConfigError(
            f"offload is {offload!r}, allowed is None (all weights stay on the device), 'parts' or 'blocks' (least "
            "memory, slowest)."
        )
    return None if device.type == "cpu" else offload


def find_captured(captured: bool | None, device: torch.device, offload: Offload | None) -> bool:
    """Whether steps are replayed from CUDA graphs: None where it can be, True or False as asked.

    BackendError: True on a CPU, or with offloaded weights, whose place in memory a graph could not know.
    """
    obstacle = "the device is a CPU" if device.type == "cpu" else ""
    if offload is not None:
        obstacle = f"offload is {offload!r}, which moves the weights that a graph reads"
    if captured and obstacle:
        raise BackendError(f"captured is True, but {obstacle}; use captured=False, or None for the best there is.")
    return not obstacle if captured is None else captured


@contextlib.contextmanager
def host_threads(device: torch.device, count: int) -> Iterator[None]:
    """On a CPU, torch computes with so many threads: they decide how sums are rounded. What is left to the CPU beside a
    GPU is too little to share.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count if device.type == "cpu" else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
