"""Gated sum of two branches in Triton: a token's row a program."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.rows import rows, silu, whole_row


@triton.jit
def _output_gate_kernel(
    main, camera, gate, out, main_row, camera_row, gate_row, C: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    token, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    inside = lane < C
    total = tl.load(main + token * main_row + lane, mask=inside).to(tl.float32)
    total += tl.load(camera + token * camera_row + lane, mask=inside).to(tl.float32)
    opened = silu(tl.load(gate + token * gate_row + lane, mask=inside).to(tl.float32))
    tl.store(out + token * C + lane, total * opened, mask=inside)


def output_gate(main: Tensor, camera: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    """As the package's `output_gate`."""
    out = torch.empty(gate.shape, dtype=dtype, device=gate.device)
    given = [rows(x.expand(gate.shape)) for x in (main, camera, gate)]
    width = gate.shape[-1]
    _output_gate_kernel[(len(given[0]),)](*given, out, *(x.stride(0) for x in given), C=width, **whole_row(width))
    return out
