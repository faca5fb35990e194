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
def _load(x, weight, at, inside, WEIGHED: tl.constexpr):
    """Lanes of a token's row, and their weights."""
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if WEIGHED:
        return value, tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    return value, tl.full(value.shape, 1.0, tl.float32)


@triton.jit
def _plain_kernel(x, weight, out, x_row, epsilon, C: tl.constexpr, LANES: tl.constexpr, WEIGHED: tl.constexpr):
    token, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    value, factor = _load(x + token * x_row, weight, lane, lane < C, WEIGHED)
    value *= tl.rsqrt(tl.sum(value * value, 0) / C + epsilon)
    tl.store(out + token * C + lane, value * factor, mask=lane < C)


@triton.jit
def _rotated_kernel(
    x, weight, cos, sin, out, x_row, cos_row, cos_head, sin_row, sin_head, epsilon,
    N: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
    STEP: tl.constexpr, GAP: tl.constexpr, WEIGHED: tl.constexpr,
):  # fmt: skip
    """Pairs of lanes of each head: their first lanes are STEP apart, their second ones GAP behind."""
    token = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, HEADS)[:, None], tl.arange(0, PAIRS)[None, :]
    at, inside = head * 2 * P + pair * STEP, (head < N) & (pair < P)
    a, weight_a = _load(x + token * x_row, weight, at, inside, WEIGHED)
    b, weight_b = _load(x + token * x_row, weight, at + GAP, inside, WEIGHED)
    scale = tl.rsqrt(tl.sum(tl.sum(a * a + b * b, 1), 0) / (2 * N * P) + epsilon)
    a, b = a * scale * weight_a, b * scale * weight_b
    c = tl.load(cos + token * cos_row + head * cos_head + pair, mask=inside, other=0.0)
    s = tl.load(sin + token * sin_row + head * sin_head + pair, mask=inside, other=0.0)
    out += token * 2 * N * P + at
    tl.store(out, a * c - b * s, mask=inside)
    tl.store(out + GAP, a * s + b * c, mask=inside)


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    epsilon: float,
    rotation: tuple[Tensor, Tensor] | None = None,
    *,
    split: bool = False,
) -> Tensor:
    """As the package's `rms_norm`."""
    width = x.shape[-1]
    flat, out = rows(x), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    given = (flat, flat if weight is None else weight.contiguous())
    weighed = weight is not None
    if rotation is None:
        _plain_kernel[(len(flat),)](*given, out, flat.stride(0), epsilon, C=width, WEIGHED=weighed, **whole_row(width))
        return out
    cos, sin = (_angles(y, x) for y in rotation)
    pairs = cos.shape[-1]
    heads = width // (2 * pairs)
    strides = [stride for y in (cos, sin) for stride in (y.stride(0), y.stride(1) if y.shape[1] > 1 else 0)]
    _rotated_kernel[(len(flat),)](
        *given, cos, sin, out, flat.stride(0), *strides, epsilon, N=heads, P=pairs,
        HEADS=triton.next_power_of_2(heads), PAIRS=triton.next_power_of_2(pairs),
        STEP=1 if split else 2, GAP=pairs if split else 1, WEIGHED=weighed, num_warps=whole_row(width)["num_warps"],
    )  # fmt: skip
    return out


def _angles(wave: Tensor, x: Tensor) -> Tensor:
    """Cosines or sines [tokens, N or 1, P] of the rows of x [B, T, S, C], their pairs neighbours in memory."""
    flat = wave.expand(*x.shape[:3], *wave.shape[3:]).reshape(-1, *wave.shape[3:])
    return flat if flat.stride(-1) == 1 else flat.contiguous()
