"""Modulated norm in Triton: a program holds one token's row."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.modulated_norm.reference import EPSILON
from sanawm_env.kernels.rows import rows, whole_row


@triton.jit
def _modulated_norm_kernel(
    x, shift, scale, out, S, x_row, shift_row, scale_row, eps,
    C: tl.constexpr, LANES: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    frame, lane = token // S, tl.arange(0, LANES)
    inside = lane < C
    value = tl.load(x + token * x_row + lane, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:
        value = tl.where(inside, value - tl.sum(value, 0) / C, 0.0)
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / C + eps)
    factor = 1.0 + tl.load(scale + frame * scale_row + lane, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + frame * shift_row + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * C + lane, normed * factor + offset, mask=inside)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, *, centred: bool = True) -> Tensor:
    """As the package's `modulated_norm`."""
    tokens, width = x.shape[2:]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    flat, shifts, scales = rows(x), *(rows(y.expand(*x.shape[:2], 1, width)) for y in (shift, scale))
    strides = flat.stride(0), shifts.stride(0), scales.stride(0)
    _modulated_norm_kernel[(len(flat),)](
        flat, shifts, scales, out, tokens, *strides, EPSILON, C=width, CENTRED=centred, **whole_row(width)
    )
    return out
