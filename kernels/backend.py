"""Which implementation of an op runs: the only place in the package that asks about the hardware."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Literal

import torch

from sanawm_env.errors import BackendError, nearest

Backend = Literal["auto", "reference", "fused"]
Resolved = Literal["reference", "fused"]
BACKENDS = ("auto", "reference", "fused")
# Triton compiles for compute capability 8.0 (Ampere) and newer.
MIN_CAPABILITY = (8, 0)
# Ada; Hopper and Blackwell follow.
FP8_CAPABILITY = (8, 9)

_log = logging.getLogger("sanawm_env.kernels")


def resolve(
    backend: str, device: torch.device | str, *, op: str = "kernel", gradients: bool = False, obstacle: str = ""
) -> Resolved:
    """Implementation that `op` runs on `device`: "reference" (plain torch) or "fused" (Triton).

    "auto" takes "fused" on a CUDA device that can run it and "reference" elsewhere; "fused" where it cannot run is a
    BackendError. Triton's interpreter (TRITON_INTERPRET=1, for tests) runs "fused" on a CPU, but only when asked for.
    gradients: whether the result's gradients are wanted and the op's fused form has none. Inside torch.compile "auto"
    is the reference, which the compiler fuses itself. obstacle: why the fused form cannot take these inputs, empty
    where it can. The choice is logged once, at level DEBUG, under "sanawm_env.kernels".
    """
    if backend == "auto" and (gradients or obstacle or torch.compiler.is_compiling()):
        return "reference"
    if gradients and backend == "fused":
        raise BackendError(f"backend 'fused' of {op} has no gradients.\nUse 'auto' or 'reference', or torch.no_grad().")
    if obstacle and backend == "fused":
        raise BackendError(f"backend 'fused' of {op} cannot take these inputs: {obstacle}.\nUse 'auto' or 'reference'.")
    device = torch.device(device)
    return _resolve(backend, device.type, device.index, op)


@functools.cache
def _resolve(backend: str, kind: str, index: int | None, op: str) -> Resolved:
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} for {op} is unknown; {nearest(backend, BACKENDS)}")
    device = torch.device(kind, index) if index is not None else torch.device(kind)
    obstacle = fused_obstacle(device)
    if backend == "fused" and obstacle:
        raise BackendError(f"backend 'fused' of {op} cannot run on {device}: {obstacle}.\nUse 'auto' or 'reference'.")
    fused = backend == "fused" or (backend == "auto" and kind == "cuda" and not obstacle)
    chosen: Resolved = "fused" if fused else "reference"
    _log.debug("%s on %s: %s (asked for %s)", op, device, chosen, backend)
    return chosen


def fused_obstacle(device: torch.device) -> str:
    """Why Triton kernels cannot run on `device`; empty where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreting():
        return ""
    if device.type != "cuda":
        return "Triton needs a CUDA device (or TRITON_INTERPRET=1, set before triton is imported)"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
    return ""


def fp8_obstacle(device: torch.device) -> str:
    """Why 8-bit floats cannot be multiplied on `device`; empty where they can."""
    if device.type != "cuda" or torch.version.cuda is None:
        return "torch multiplies 8-bit floats with a scale a row on NVIDIA cards only"
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]}"
    return ""


def needs_gradients(*tensors: torch.Tensor) -> bool:
    """Whether autograd records what is computed from these."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, in Python on any device."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@functools.cache
def native_bf16(device: torch.device | str) -> bool:
    """Whether `device` multiplies bfloat16 in hardware: CUDA from capability 8.0, CPUs with AVX512-BF16 or AMX.

    Elsewhere bfloat16 is emulated and slower than float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
    return device.type == "cpu" and bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    """Instruction sets that the kernel of a Linux machine lists; empty on other systems, which have no such list."""
    listing = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not listing.exists():
        return set()
    for line in listing.read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()
