"""Rows of 8-bit floats in Triton: each row is read once and written once."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.fp8.reference import LARGEST
from sanawm_env.kernels.rows import rows, whole_row


@triton.jit
def _fp8_kernel(x, levels, scales, x_row, largest, K: tl.constexpr, GELU: tl.constexpr, LANES: tl.constexpr):
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    inside = lane < K
    value = tl.load(x + row * x_row + lane, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        # (1 + tanh(u)) / 2 is the logistic function of 2 u, here with u = sqrt(2 / pi) (x + 0.044715 x^3).
        value = value / (1.0 + tl.exp(-1.5957691216057308 * (value + 0.044715 * value * value * value)))
    scale = tl.max(tl.abs(value), 0) / largest
    scale = tl.where(scale > 0, scale, 1.0)
    value = tl.minimum(tl.maximum(value / scale, -largest), largest)
    # Rounded to three bits of fraction here, ties to even: Triton's interpreter drops the carry of its own rounding.
    bits = value.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    value = tl.where(tl.abs(value) < 0.015625, value, rounded)
    tl.store(levels + row * K + lane, value.to(tl.float8e4nv), mask=inside)
    tl.store(scales + row, scale)


def quantise(x: Tensor, *, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """As the package's `quantise`."""
    flat = rows(x)
    levels = torch.empty(flat.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(len(flat), dtype=torch.float32, device=x.device)
    sizes = whole_row(flat.shape[1])
    _fp8_kernel[(len(flat),)](flat, levels, scales, flat.stride(0), LARGEST, K=flat.shape[1], GELU=gelu, **sizes)
    return levels, scales
