"""Neighbouring frames side by side in Triton: one token's row a program."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.chunk_frames import frame_table
from sanawm_env.kernels.rows import rows, whole_row


@triton.jit
def _temporal_taps_kernel(f, tail, frames, out, T, S, f_row, tail_row, C: tl.constexpr, LANES: tl.constexpr):
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    t, world, place = (row // S % T).to(tl.int32), row // (S * T), row % S
    inside, end = lane < C, tl.load(frames + T + t)
    here = tl.load(f + row * f_row + lane, mask=inside)
    # Lanes to read of each neighbour: none of one that is not there.
    old_lanes, past_lanes, next_lanes = tl.where(t == 0, C, 0), tl.where(t == 0, 0, C), tl.where(t + 1 < end, C, 0)
    old = tl.load(tail + (world * S + place) * tail_row + lane, mask=lane < old_lanes, other=0.0).to(here.dtype)
    before = tl.load(f + (row - S) * f_row + lane, mask=lane < past_lanes, other=0.0)
    after = tl.load(f + (row + S) * f_row + lane, mask=lane < next_lanes, other=0.0)
    out += row * 3 * C + lane
    tl.store(out, tl.where(t == 0, old, before), mask=inside)
    tl.store(out + C, here, mask=inside)
    tl.store(out + 2 * C, after, mask=inside)


def temporal_taps(f: Tensor, tail: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """As the package's `temporal_taps`."""
    batch, frames, tokens, width = f.shape
    out = f.new_empty((batch, frames, tokens, 3 * width))
    flat, old = rows(f), rows(tail)
    _temporal_taps_kernel[(len(flat),)](
        flat, old, frame_table(lengths, f.device), out, frames, tokens, flat.stride(0), old.stride(0),
        C=width, **whole_row(width),
    )  # fmt: skip
    return out
