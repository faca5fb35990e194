"""RMS norm and rotary rotation in Triton: a program holds one token's row, head by head where it is rotated."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.rows import rows, whole_row


@triton.jit
def _kernel(
    x, weight, cos, sin, out, x_row, cos_row, sin_row, epsilon,
    N: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, LANES: tl.constexpr, ROTATED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, lane = tl.arange(0, HEADS)[:, None], tl.arange(0, LANES)[None, :]
    at, inside = head * D + lane, (head < N) & (lane < D)
    value = tl.load(x + token * x_row + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(tl.sum(value * value, 1), 0)
    value *= tl.rsqrt(total / (N * D) + epsilon)
    value *= tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if ROTATED:
        pair = tl.arange(0, LANES // 2)
        c = tl.load(cos + token * cos_row + pair, mask=pair < D // 2, other=0.0)[None, :]
        s = tl.load(sin + token * sin_row + pair, mask=pair < D // 2, other=0.0)[None, :]
        even, odd = tl.split(tl.reshape(value, (HEADS, LANES // 2, 2)))
        value = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (HEADS, LANES))
    tl.store(out + token * N * D + at, value, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """As the package's `rms_norm`."""
    width = x.shape[-1]
    flat, out = rows(x), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    # Without rotation the row is one head, and no angle is read.
    cos, sin = (flat, flat) if rotation is None else (_angles(y, x) for y in rotation)
    lanes = width if rotation is None else 2 * cos.shape[-1]
    sizes = {"HEADS": triton.next_power_of_2(width // lanes), **whole_row(lanes)}
    sizes["num_warps"] = whole_row(width)["num_warps"]
    strides = flat.stride(0), cos.stride(0), sin.stride(0)
    _kernel[(len(flat),)](
        flat, weight, cos, sin, out, *strides, epsilon, N=width // lanes, D=lanes, ROTATED=rotation is not None, **sizes
    )
    return out


def _angles(wave: Tensor, x: Tensor) -> Tensor:
    """Cosines or sines [tokens, P] of the rows of x [B, T, S, C]."""
    return rows(wave.expand(*x.shape[:3], 1, wave.shape[-1]))
