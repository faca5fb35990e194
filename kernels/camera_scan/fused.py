"""Camera branch of a recurrent block in Triton: four launches, as in `main_scan`.

Norms of the tokens; what each frame writes and how much its rays inflate the keys; the scan over frames; what each
token reads. The inflation is one number a frame and head, so the scan applies it to the sums of the frame.
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
from sanawm_env.kernels.tiles import PRECISION, downscaled, encoded, load_normed, load_tile, plan_tiles


@triton.jit
def _inflation(seen, plain, token, S):
    """How much the squared keys of each token grew, zero beyond the frame's tokens."""
    after = tl.maximum(tl.sqrt(tl.sum(seen * seen, 1)), 1e-6)
    before = tl.maximum(tl.sqrt(tl.sum(plain * plain, 1)), 1e-6)
    ratio = after / before
    return tl.where(token < S, ratio * ratio, 0.0)


@triton.jit
def _summed(
    k, v, scale, weight, from_ray, cos, sin, beta, key_scale, begin, S, N, blocks,
    VALUES: tl.constexpr, DOWNSCALED: tl.constexpr,
    D: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Sum over tokens of beta k y^T, y the values or the keys themselves, and of the inflation of the keys."""
    gram, grown = tl.zeros((LANES, LANES), tl.float32), tl.zeros((TOKENS,), tl.float32)
    for block in range(blocks):
        token = begin + block * TOKENS + tl.arange(0, TOKENS)
        plain = load_normed(k, N * D, scale, weight, key_scale, token, S, D, LANES)
        keys = encoded(plain, from_ray, cos, sin, token, S, False, False, D, TOKENS, LANES)
        if DOWNSCALED:
            keys = downscaled(keys, plain, D)
        left = tl.trans((keys * tl.load(beta + token * N, mask=token < S, other=0.0)[:, None]).to(OPERAND))
        right = keys
        if VALUES:
            plain = load_tile(v, N * D, token, S, D, LANES).to(tl.float32)
            right = encoded(plain, from_ray, cos, sin, token, S, False, False, D, TOKENS, LANES)
            if DOWNSCALED:
                right = downscaled(right, plain, D)
        else:
            grown += _inflation(keys, plain, token, S)
        gram = tl.dot(left, right.to(OPERAND), gram, input_precision=PRECISION)
    return gram, tl.sum(grown, 0)


@triton.jit
def _write_kernel(
    k, v, scale, weight, from_ray, cos, sin, beta, products, inflation, key_scale, S, N, blocks,
    P: tl.constexpr, DOWNSCALED: tl.constexpr,
    D: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """One of the sums (`Sums`) over one part of a frame's tokens, of one head."""
    frame, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part, which = tl.program_id(2) // 2, tl.program_id(2) % 2
    lane, index, begin = tl.arange(0, LANES), frame * N + head, part * blocks * TOKENS
    k += frame * S * N * D + head * D
    v += frame * S * N * D + head * D
    scale, weight, beta = scale + frame * S, weight + head * D, beta + frame * S * N + head
    from_ray += frame * S * 16
    cos, sin = cos + frame * S * (D // 4), sin + frame * S * (D // 4)
    out = products + ((index * 2 + which) * P + part) * D * D + lane[:, None] * D + lane[None, :]
    square = (lane < D)[:, None] & (lane < D)[None, :]
    if which == 0:
        gram, grown = _summed(
            k, v, scale, weight, from_ray, cos, sin, beta, key_scale, begin, S, N, blocks, False, DOWNSCALED,
            D, TOKENS, LANES, OPERAND,
        )  # fmt: skip
        tl.store(out, gram, mask=square)
        tl.store(inflation + index * P + part, grown)
    else:
        write, _ = _summed(
            k, v, scale, weight, from_ray, cos, sin, beta, key_scale, begin, S, N, blocks, True, DOWNSCALED,
            D, TOKENS, LANES, OPERAND,
        )  # fmt: skip
        tl.store(out, write, mask=square)


@triton.jit
def _read_kernel(
    q, scale, weight, to_ray, cos, sin, read, out, S, N, DOWNSCALED: tl.constexpr,
    D: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """What one tile of a frame's tokens reads, of one head, brought back from their rays."""
    frame, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    lane, index = tl.arange(0, LANES), frame * N + head
    q += frame * S * N * D + head * D
    out += frame * S * N * D + head * D
    scale += frame * S
    to_ray += frame * S * 16
    cos += frame * S * (D // 4)
    sin += frame * S * (D // 4)
    square = (lane < D)[:, None] & (lane < D)[None, :]
    state = tl.load(read + index * D * D + lane[:, None] * D + lane[None, :], mask=square, other=0.0)
    plain = load_normed(q, N * D, scale, weight + head * D, 1.0, token, S, D, LANES)
    queries = encoded(plain, to_ray, cos, sin, token, S, True, False, D, TOKENS, LANES)
    if DOWNSCALED:
        queries = downscaled(queries, plain, D)
    mixed = tl.dot(queries.to(OPERAND), state, input_precision=PRECISION)
    mixed = encoded(mixed, to_ray, cos, sin, token, S, False, True, D, TOKENS, LANES)
    inside = (token < S)[:, None] & (lane < D)[None, :]
    tl.store(out + token[:, None] * (N * D) + lane[None, :], mixed, mask=inside)


def camera_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_tail: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    conv_weight: Tensor,
    to_ray: Tensor,
    from_ray: Tensor,
    cos: Tensor,
    sin: Tensor,
    beta: Tensor,
    decay: Tensor,
    state: Tensor,
    lengths: tuple[int, ...],
    *,
    crossing: bool,
    downscaled: bool,
    norm_eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """As the package's `camera_scan`."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    batch, frames, tokens, heads = beta.shape
    width, count = state.shape[-1], batch * frames
    quarter = (batch, frames, tokens, 1, width // 4)
    cos, sin = cos.expand(quarter).contiguous(), sin.expand(quarter).contiguous()
    # The matrices of the rays are many small loads: to fetch them ahead takes more instructions than they do.
    plan = plan_tiles(width, tokens, q.dtype)
    keys, q_scale, k_scale = filtered_and_normed(q, k, k_tail, conv_weight, lengths, crossing=crossing, eps=norm_eps)
    products = decay.new_empty((count * heads, 2, plan.parts, width, width), dtype=torch.float32)
    inflation = products.new_empty((count * heads, plan.parts))
    _write_kernel[(count, heads, plan.parts * 2)](
        keys, v, k_scale, k_weight.contiguous(), from_ray.contiguous(), cos, sin, beta.float().contiguous(), products,
        inflation, key_scale(width, tokens), tokens, heads, plan.blocks, P=plan.parts, DOWNSCALED=downscaled,
        **plan.launch(8),
    )  # fmt: skip
    sums = Sums(products, inflation=inflation)
    scanned = delta_scan(sums, decay, state, lengths, tokens, dtype=plan.dtype)
    out = q.new_empty((batch, frames, tokens, heads, width), dtype=dtype)
    _read_kernel[(count, heads, plan.readers)](
        q, q_scale, q_weight.contiguous(), to_ray.contiguous(), cos, sin, scanned.read, out, tokens, heads,
        DOWNSCALED=downscaled, **plan.launch(8),
    )  # fmt: skip
    return out, scanned.after
