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
def _plain_kernel(x, weight, out, x_row, epsilon, C: tl.constexpr, LANES: tl.constexpr, WEIGHED: tl.constexpr):
    token, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    value = tl.load(x + token * x_row + lane, mask=lane < C, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / C + epsilon)
    if WEIGHED:
        value *= tl.load(weight + lane, mask=lane < C, other=0.0).to(tl.float32)
    tl.store(out + token * C + lane, value, mask=lane < C)


@triton.jit
def _place(LANES: tl.constexpr, N: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """Where the first LANES lanes of each head of 2P lie in a token's row, [HEADS, WIDTH], and which there are."""
    head, lane = tl.arange(0, HEADS)[:, None], tl.arange(0, WIDTH)[None, :]
    return head * 2 * P + lane, (head < N) & (lane < LANES)


@triton.jit
def _load_pairs(row, N: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, SPLIT: tl.constexpr):
    """First and second lanes [HEADS, PAIRS] of each pair, fp32."""
    if SPLIT:
        at, inside = _place(P, N, P, HEADS, PAIRS)
        first, second = tl.load(row + at, mask=inside, other=0.0), tl.load(row + at + P, mask=inside, other=0.0)
    else:
        # Side by side they are read and written together; one by one, each would move what lies around it.
        at, inside = _place(2 * P, N, P, HEADS, 2 * PAIRS)
        first, second = tl.split(tl.reshape(tl.load(row + at, mask=inside, other=0.0), (HEADS, PAIRS, 2)))
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _store_pairs(
    row, first, second, N: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, SPLIT: tl.constexpr
):
    if SPLIT:
        at, inside = _place(P, N, P, HEADS, PAIRS)
        tl.store(row + at, first, mask=inside)
        tl.store(row + at + P, second, mask=inside)
    else:
        at, inside = _place(2 * P, N, P, HEADS, 2 * PAIRS)
        tl.store(row + at, tl.reshape(tl.join(first, second), (HEADS, 2 * PAIRS)), mask=inside)


@triton.jit
def _rotated_kernel(
    x, weight, cos, sin, out, x_row, cos_row, cos_head, sin_row, sin_head, epsilon,
    N: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
    SPLIT: tl.constexpr, WEIGHED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    a, b = _load_pairs(x + token * x_row, N, P, HEADS, PAIRS, SPLIT)
    scale = tl.rsqrt(tl.sum(tl.sum(a * a + b * b, 1), 0) / (2 * N * P) + epsilon)
    a, b = a * scale, b * scale
    if WEIGHED:
        weight_a, weight_b = _load_pairs(weight, N, P, HEADS, PAIRS, SPLIT)
        a, b = a * weight_a, b * weight_b
    head, pair = tl.arange(0, HEADS)[:, None], tl.arange(0, PAIRS)[None, :]
    inside = (head < N) & (pair < P)
    c = tl.load(cos + token * cos_row + head * cos_head + pair, mask=inside, other=0.0)
    s = tl.load(sin + token * sin_row + head * sin_head + pair, mask=inside, other=0.0)
    _store_pairs(out + token * 2 * N * P, a * c - b * s, a * s + b * c, N, P, HEADS, PAIRS, SPLIT)


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
        SPLIT=split, WEIGHED=weighed, num_warps=whole_row(width)["num_warps"],
    )  # fmt: skip
    return out


def _angles(wave: Tensor, x: Tensor) -> Tensor:
    """Cosines or sines [tokens, N or 1, P] of the rows of x [B, T, S, C], their pairs neighbours in memory."""
    flat = wave.expand(*x.shape[:3], *wave.shape[3:]).reshape(-1, *wave.shape[3:])
    return flat if flat.stride(-1) == 1 else flat.contiguous()
