"""Gated residual in Triton, one token's row a program."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.rows import rows, whole_row


@triton.jit
def _gated_residual_kernel(
    x, gate, branch, offset, out, S, x_row, gate_row, branch_row, offset_row,
    C: tl.constexpr, LANES: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    token, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    inside = lane < C
    weight = tl.load(gate + token // S * gate_row + lane, mask=inside).to(tl.float32)
    total = tl.load(x + token * x_row + lane, mask=inside).to(tl.float32)
    total += weight * tl.load(branch + token * branch_row + lane, mask=inside).to(tl.float32)
    if OFFSET:
        total += tl.load(offset + token * offset_row + lane, mask=inside).to(tl.float32)
    tl.store(out + token * C + lane, total, mask=inside)


def gated_residual(x: Tensor, gate: Tensor, branch: Tensor, offset: Tensor | None = None) -> Tensor:
    """As the package's `gated_residual`."""
    tokens, width = x.shape[2:]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    flat, gates = rows(x), rows(gate.expand(*x.shape[:2], 1, width))
    added = rows(branch.expand(x.shape))
    offsets = flat if offset is None else rows(offset.expand(x.shape))
    strides = flat.stride(0), gates.stride(0), added.stride(0), offsets.stride(0)
    _gated_residual_kernel[(len(flat),)](
        flat, gates, added, offsets, out, tokens, *strides, C=width, OFFSET=offset is not None, **whole_row(width)
    )
    return out
