"""The scan over frames in Triton, shared by the two branches of a recurrent block.

A column of the state needs no other column, so a program takes a few columns of one world and head through all frames,
backward and then forward. What a frame writes comes as sums over parts of its tokens, added here in their order.
"""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.chunk_frames import frame_table
from sanawm_env.kernels.tiles import PRECISION, lanes

COLUMNS = 32


class Sums(NamedTuple):
    """What the tokens of each frame write, F = B T N frames of all worlds and heads, P parts of a frame's tokens.

    products: [F, R, P, D, D] fp32; R = 0 is sum beta k k^T, 1 is sum beta k v^T, 2 (main branch) the first for
    unrotated keys. vectors: [F, P, D], sum beta k of unrotated keys (main branch) or None. inflation: [F, P], sum of
    the inflation over tokens (camera branch) or None.
    """

    products: Tensor
    vectors: Tensor | None = None
    inflation: Tensor | None = None


@triton.jit
def _advanced(
    state, gram, write, decay, factor, column,
    P: tl.constexpr, D: tl.constexpr, E: tl.constexpr, LANES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the recurrence; pointers at the frame's part 0."""
    lane = tl.arange(0, LANES)
    square = (lane < D)[:, None] & (lane < D)[None, :]
    known = (lane < D)[:, None] & (column < E)[None, :]
    products, written = tl.zeros((LANES, LANES), tl.float32), tl.zeros_like(state)
    for part in range(P):
        products += tl.load(gram + part * D * D + lane[:, None] * D + lane[None, :], mask=square, other=0.0)
        written += tl.load(write + part * D * E + lane[:, None] * E + column[None, :], mask=known, other=0.0)
    kept = decay * state
    return kept + factor * (written - tl.dot(products, kept, input_precision=PRECISION))


@triton.jit
def _factor(inflation, tokens, P: tl.constexpr):
    """What the sums of a frame are multiplied by: 1 / mean inflation, at most 1; 1 where there is none."""
    total = 0.0
    if inflation is not None:
        for part in range(P):
            total += tl.load(inflation + part)
    return 1.0 / tl.maximum(total / tokens, 1.0)


@triton.jit
def _chain(
    gram, write, inflation, decay, state, behind, read, after, frames, begin, world, head, tokens, T, K, N, frame_step,
    write_step, P: tl.constexpr, D: tl.constexpr, E: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Some columns of a state [D, E] through all frames: what each frame reads, and the state after each chunk."""
    lane, column = tl.arange(0, LANES), begin + tl.arange(0, COLUMNS)
    known = (lane < D)[:, None] & (column < E)[None, :]
    at = lane[:, None] * E + column[None, :]
    first = world * T * N + head
    back = tl.zeros((LANES, COLUMNS), tl.float32)
    for i in range(T):
        t = T - 1 - i
        index = first + t * N
        # The backward scan starts from zero at each chunk's end.
        back = tl.where(t == tl.load(frames + T + t) - 1, 0.0, back)
        tl.store(behind + index * D * E + at, back, mask=known)
        if t > tl.load(frames + t):
            factor = _factor(None if inflation is None else inflation + index * P, tokens, P)
            back = _advanced(
                back, gram + index * frame_step, write + index * write_step, tl.load(decay + index), factor, column,
                P, D, E, LANES, PRECISION,
            )  # fmt: skip
    # What other threads of this program stored above is read below.
    tl.debug_barrier()
    now = tl.load(state + (world * N + head) * D * E + at, mask=known, other=0.0)
    for t in range(T):
        index = first + t * N
        factor = _factor(None if inflation is None else inflation + index * P, tokens, P)
        now = _advanced(
            now, gram + index * frame_step, write + index * write_step, tl.load(decay + index), factor, column,
            P, D, E, LANES, PRECISION,
        )  # fmt: skip
        tl.store(read + index * D * E + at, now + tl.load(behind + index * D * E + at, mask=known), mask=known)
        chunk = tl.load(frames + 2 * T + t)
        rows = tl.where(t == tl.load(frames + T + t) - 1, D, 0)
        ends = (lane < rows)[:, None] & (column < E)[None, :]
        tl.store(after + ((world * K + chunk) * N + head) * D * E + at, now, mask=ends)


@triton.jit
def _scan_kernel(
    products, vectors, inflation, decay, state, behind, read, after, normaliser, vector_behind, vector_read,
    normaliser_after, frames, tokens, T, K, N,
    P: tl.constexpr, R: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of columns of one world and head; in the main branch the block after the last is the normaliser."""
    world, head = tl.program_id(0).to(tl.int64) // N, tl.program_id(0).to(tl.int64) % N
    block = tl.program_id(1)
    step = R * P * D * D
    if block * COLUMNS < D:
        _chain(
            products, products + P * D * D, inflation, decay, state, behind, read, after, frames,
            block * COLUMNS, world, head, tokens, T, K, N, step, step, P, D, D, LANES, COLUMNS, PRECISION,
        )  # fmt: skip
    elif normaliser is not None:
        _chain(
            products + 2 * P * D * D, vectors, None, decay, normaliser, vector_behind, vector_read, normaliser_after,
            frames, 0, world, head, tokens, T, K, N, step, P * D, P, D, 1, LANES, 16, PRECISION,
        )  # fmt: skip


class Scanned(NamedTuple):
    """read: [B, T, N, D, D] what each frame reads; after: [B, K, N, D, D] fp32 state after each chunk; vector_read: [B,
    T, N, D] and normaliser_after: [B, K, N, D], fp32, likewise for the normaliser (main branch).
    """

    read: Tensor
    after: Tensor
    vector_read: Tensor | None
    normaliser_after: Tensor | None


def delta_scan(
    sums: Sums,
    decay: Tensor,
    state: Tensor,
    lengths: tuple[int, ...],
    tokens: int,
    *,
    dtype: torch.dtype,
    normaliser: Tensor | None = None,
) -> Scanned:
    """The reference's `delta_scan` from sums over parts of each frame's tokens; state and normaliser in one launch.

    decay: [B, T, N]; state: [B, N, D, D]; normaliser: [B, N, D]. tokens: S. dtype: of what the frames read.
    """
    batch, frames, heads = decay.shape
    width, chunks = state.shape[-1], len(lengths)
    columns = min(COLUMNS, lanes(width))
    behind = state.new_empty((batch, frames, heads, width, width), dtype=torch.float32)
    read = torch.empty_like(behind, dtype=dtype)
    after = behind.new_empty((batch, chunks, heads, width, width))
    vectors: tuple[Tensor, ...] | tuple[None, ...] = (None,) * 4
    if normaliser is not None:
        vectors = (normaliser.float().contiguous(), *behind.new_empty((2, batch, frames, heads, width)))
        vectors = (*vectors, behind.new_empty((batch, chunks, heads, width)))
    _scan_kernel[(batch * heads, triton.cdiv(width, columns) + (normaliser is not None))](
        *sums, decay.float().contiguous(), state.float().contiguous(), behind, read, after, *vectors,
        frame_table(lengths, state.device), tokens, frames, chunks, heads,
        P=sums.products.shape[2], R=sums.products.shape[1], D=width,
        LANES=lanes(width), COLUMNS=columns,
        # Sums of products of bf16 values need no more than one pass of the matrix units.
        PRECISION=PRECISION.value if dtype == torch.float32 else "tf32", num_warps=8, num_stages=1,
    )  # fmt: skip
    return Scanned(read, after, *vectors[2:])
