"""Filter over time and norms over all channels in Triton: each token's channels are read once, in one order."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.chunk_frames import frame_table

ROWS, MAX_LANES = 4, 256


@triton.jit
def _rows_of(x, row, at, count, row_step, C: tl.constexpr):
    """Rows below `count` of some channels of x, fp32, zero elsewhere."""
    inside = (row < count)[:, None] & (at < C)[None, :]
    return tl.load(x + row[:, None] * row_step + at[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _filtered(k, tail, weight, row, at, t, begin, end, S, k_row, C: tl.constexpr, TAPS: tl.constexpr):
    """Filtered keys of some rows and channels of frame t, reading frames begin .. end - 1; below 0 is the tail."""
    taps = weight + at * TAPS
    centre = tl.load(taps + TAPS - 1, mask=at < C, other=0.0).to(tl.float32)
    y = centre[None, :] * _rows_of(k, row, at, S, k_row, C)
    for shift in tl.static_range(1, TAPS):
        tap = tl.load(taps + TAPS - 1 - shift, mask=at < C, other=0.0).to(tl.float32)[None, :]
        step = tl.cast(shift, tl.int64) * S
        before = tl.where(t - shift >= tl.maximum(begin, 0), S, 0)
        past = _rows_of(k - step * k_row, row, at, before, k_row, C)
        kept = tl.where(t - shift >= begin, S - before, 0)
        past += _rows_of(tail + (TAPS - 1 + t - shift) * S * C, row, at, kept, C, C)
        y += tap * past
        y += tap * _rows_of(k + step * k_row, row, at, tl.where(t + shift < end, S, 0), k_row, C)
    return y


@triton.jit
def _rows_kernel(
    q, k, tail, weight, keys, q_scale, k_scale, frames, S, T, q_row, k_row, eps,
    C: tl.constexpr, TAPS: tl.constexpr, CROSSING: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Filtered keys, and 1 / rms of queries and filtered keys, of ROWS tokens of one frame."""
    frame = tl.program_id(0).to(tl.int64)
    t = (frame % T).to(tl.int32)
    # Frames that the filter may read: the past and the tail, or the frame's chunk alone.
    begin, end = 1 - TAPS if CROSSING else tl.load(frames + t), tl.load(frames + T + t)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    q += frame * S * q_row
    k += frame * S * k_row
    keys += frame * S * C
    tail += (frame // T) * (TAPS - 1) * S * C
    q_square, k_square = tl.zeros((ROWS, LANES), tl.float32), tl.zeros((ROWS, LANES), tl.float32)
    for first in range(0, C, LANES):
        at = first + tl.arange(0, LANES)
        x = _rows_of(q, row, at, S, q_row, C)
        y = _filtered(k, tail, weight, row, at, t, begin, end, S, k_row, C, TAPS)
        tl.store(keys + row[:, None] * C + at[None, :], y, mask=(row < S)[:, None] & (at < C)[None, :])
        q_square += x * x
        k_square += y * y
    tl.store(q_scale + frame * S + row, tl.rsqrt(tl.sum(q_square, 1) / C + eps), mask=row < S)
    tl.store(k_scale + frame * S + row, tl.rsqrt(tl.sum(k_square, 1) / C + eps), mask=row < S)


def filtered_and_normed(
    q: Tensor, k: Tensor, tail: Tensor, weight: Tensor, lengths: tuple[int, ...], *, crossing: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [B, T, S, C] after the filter, and 1 / rms of the queries and of these keys, [B, T, S] fp32.

    q, k: [B, T, S, C], parts of contiguous memory with a token a row; tail, weight, lengths, crossing as in the
    reference.
    """
    batch, frames, tokens, width = k.shape
    keys = k.new_empty((batch, frames, tokens, width))
    scales = k.new_empty((2, batch, frames, tokens), dtype=torch.float32)
    _rows_kernel[(batch * frames, triton.cdiv(tokens, ROWS))](
        q, k, tail.to(k.dtype).contiguous(), weight.contiguous(), keys, scales[0], scales[1],
        frame_table(lengths, k.device), tokens, frames, q.stride(2), k.stride(2), eps,
        C=width, TAPS=weight.shape[-1], CROSSING=crossing,
        ROWS=ROWS, LANES=min(MAX_LANES, triton.next_power_of_2(width)),
    )  # fmt: skip
    return keys, scales[0], scales[1]
