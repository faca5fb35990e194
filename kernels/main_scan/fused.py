"""Main branch of a recurrent block in Triton: four launches, each token's projections read from memory twice.

Norms of the tokens; what each frame writes; the scan over frames; what each token reads. Sums over tokens and lanes
have one order, given S and D, whatever shares the batch.
"""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.gated_delta import key_scale
from sanawm_env.kernels.gated_delta.fused import Sums, delta_scan
from sanawm_env.kernels.short_convolution.fused import filtered_and_normed
from sanawm_env.kernels.tiles import PRECISION, load_normed, load_tile, load_wave, plan_tiles, rotated


@triton.jit
def _summed(
    k, v, scale, weight, cos, sin, beta, key_scale, begin, S, N, v_row, blocks,
    ROTATED: tl.constexpr, VALUES: tl.constexpr,
    D: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Sum over tokens of beta k y^T, y the values or the keys themselves, and of beta k."""
    gram, total = tl.zeros((LANES, LANES), tl.float32), tl.zeros((LANES,), tl.float32)
    for block in range(blocks):
        token = begin + block * TOKENS + tl.arange(0, TOKENS)
        keys = load_normed(k, N * D, scale, weight, key_scale, token, S, D, LANES)
        if ROTATED:
            c = load_wave(cos, token, S, 0, D // 2, LANES)
            s = load_wave(sin, token, S, 0, D // 2, LANES)
            keys = rotated(keys, c, s, TOKENS, LANES)
        weighted = keys * tl.load(beta + token * N, mask=token < S, other=0.0)[:, None]
        total += tl.sum(weighted, 0)
        right = load_tile(v, v_row, token, S, D, LANES) if VALUES else keys
        gram = tl.dot(tl.trans(weighted.to(OPERAND)), right.to(OPERAND), gram, input_precision=PRECISION)
    return gram, total


@triton.jit
def _write_kernel(
    k, v, scale, weight, cos, sin, beta, products, vectors, key_scale, S, N, v_row, blocks,
    P: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """One of the sums (`Sums`) over one part of a frame's tokens, of one head: a program holds one, so that the
    registers of a processor are enough for several programs.
    """
    frame, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part, which = tl.program_id(2) // 3, tl.program_id(2) % 3
    lane, begin = tl.arange(0, LANES), part * blocks * TOKENS
    k += frame * S * N * D + head * D
    v += frame * S * v_row + head * D
    scale, weight, beta = scale + frame * S, weight + head * D, beta + frame * S * N + head
    cos, sin = cos + frame * S * (D // 2), sin + frame * S * (D // 2)
    out = products + ((frame * N + head) * 3 + which) * (P * D * D) + part * D * D + lane[:, None] * D + lane[None, :]
    square = (lane < D)[:, None] & (lane < D)[None, :]
    if which == 0:
        gram, _ = _summed(
            k, v, scale, weight, cos, sin, beta, key_scale, begin, S, N, v_row, blocks, True, False,
            D, TOKENS, LANES, OPERAND,
        )  # fmt: skip
        tl.store(out, gram, mask=square)
    elif which == 1:
        write, _ = _summed(
            k, v, scale, weight, cos, sin, beta, key_scale, begin, S, N, v_row, blocks, True, True,
            D, TOKENS, LANES, OPERAND,
        )  # fmt: skip
        tl.store(out, write, mask=square)
    else:
        plain, total = _summed(
            k, v, scale, weight, cos, sin, beta, key_scale, begin, S, N, v_row, blocks, False, False,
            D, TOKENS, LANES, OPERAND,
        )  # fmt: skip
        tl.store(out, plain, mask=square)
        tl.store(vectors + ((frame * N + head) * P + part) * D + lane, total, mask=lane < D)


@triton.jit
def _read_kernel(
    q, scale, weight, cos, sin, read, vector_read, out, S, N, q_row, eps,
    D: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Numerator over denominator of one tile of a frame's tokens, of one head."""
    frame, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    lane, index = tl.arange(0, LANES), frame * N + head
    q += frame * S * q_row + head * D
    out += frame * S * N * D + head * D
    square = (lane < D)[:, None] & (lane < D)[None, :]
    state = tl.load(read + index * D * D + lane[:, None] * D + lane[None, :], mask=square, other=0.0)
    vector = tl.load(vector_read + index * D + lane, mask=lane < D, other=0.0)
    queries = load_normed(q, q_row, scale + frame * S, weight + head * D, 1.0, token, S, D, LANES)
    denominator = tl.sum(queries * vector[None, :], 1) + eps
    c = load_wave(cos + frame * S * (D // 2), token, S, 0, D // 2, LANES)
    s = load_wave(sin + frame * S * (D // 2), token, S, 0, D // 2, LANES)
    queries = rotated(queries, c, s, TOKENS, LANES)
    mixed = tl.dot(queries.to(OPERAND), state, input_precision=PRECISION) / denominator[:, None]
    inside = (token < S)[:, None] & (lane < D)[None, :]
    tl.store(out + token[:, None] * (N * D) + lane[None, :], mixed, mask=inside)


def main_scan(
    qkv: Tensor,
    k_tail: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    conv_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    beta: Tensor,
    decay: Tensor,
    state: Tensor,
    normaliser: Tensor,
    lengths: tuple[int, ...],
    *,
    norm_eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the package's `main_scan`."""
    q, k, v = qkv.contiguous().chunk(3, dim=-1)
    batch, frames, tokens, heads = beta.shape
    width, count = state.shape[-1], batch * frames
    half = (batch, frames, tokens, 1, width // 2)
    cos, sin = cos.expand(half).contiguous(), sin.expand(half).contiguous()
    plan = plan_tiles(width, tokens, qkv.dtype)
    keys, q_scale, k_scale = filtered_and_normed(q, k, k_tail, conv_weight, lengths, crossing=True, eps=norm_eps)
    products = decay.new_empty((count * heads, 3, plan.parts, width, width), dtype=torch.float32)
    vectors = products.new_empty((count * heads, plan.parts, width))
    _write_kernel[(count, heads, plan.parts * 3)](
        keys, v, k_scale, k_weight.contiguous(), cos, sin, beta.float().contiguous(), products, vectors,
        key_scale(width, tokens), tokens, heads, v.stride(2), plan.blocks, P=plan.parts, **plan.launch(4, 2),
    )  # fmt: skip
    scanned = delta_scan(
        Sums(products, vectors), decay, state, lengths, tokens, dtype=plan.dtype, normaliser=normaliser
    )
    out = qkv.new_empty((batch, frames, tokens, heads, width), dtype=dtype)
    _read_kernel[(count, heads, plan.readers)](
        q, q_scale, q_weight.contiguous(), cos, sin, scanned.read, scanned.vector_read, out, tokens, heads, q.stride(2),
        1e-8, **plan.launch(4),
    )  # fmt: skip
    assert scanned.normaliser_after is not None
    return out, scanned.after, scanned.normaliser_after
