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
def _write_kernel(
    k, v, scale, weight, from_ray, cos, sin, beta, products, inflation, key_scale, S, N, blocks,
    P: tl.constexpr, DOWNSCALED: tl.constexpr,
    D: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """The sums (`Sums`) over one part of a frame's tokens, of one head."""
    frame, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    lane, index = tl.arange(0, LANES), frame * N + head
    k += frame * S * N * D + head * D
    v += frame * S * N * D + head * D
    scale += frame * S
    from_ray += frame * S * 16
    cos += frame * S * (D // 4)
    sin += frame * S * (D // 4)
    gram, write = tl.zeros((LANES, LANES), tl.float32), tl.zeros((LANES, LANES), tl.float32)
    grown = tl.zeros((TOKENS,), tl.float32)
    for block in range(blocks):
        token = (part * blocks + block) * TOKENS + tl.arange(0, TOKENS)
        plain = load_normed(k, N * D, scale, weight + head * D, key_scale, token, S, D, LANES)
        keys = encoded(plain, from_ray, cos, sin, token, S, False, False, D, TOKENS, LANES)
        if DOWNSCALED:
            keys = downscaled(keys, plain, D)
        grown += _inflation(keys, plain, token, S)
        strength = tl.load(beta + (frame * S + token) * N + head, mask=token < S, other=0.0)
        left = tl.trans((keys * strength[:, None]).to(OPERAND))
        gram = tl.dot(left, keys.to(OPERAND), gram, input_precision=PRECISION)
        plain = load_tile(v, N * D, token, S, D, LANES).to(tl.float32)
        values = encoded(plain, from_ray, cos, sin, token, S, False, False, D, TOKENS, LANES)
        if DOWNSCALED:
            values = downscaled(values, plain, D)
        write = tl.dot(left, values.to(OPERAND), write, input_precision=PRECISION)
    out = products + (index * 2 * P + part) * D * D + lane[:, None] * D + lane[None, :]
    square = (lane < D)[:, None] & (lane < D)[None, :]
    tl.store(out, gram, mask=square)
    tl.store(out + P * D * D, write, mask=square)
    tl.store(inflation + index * P + part, tl.sum(grown, 0))


@triton.jit
def _read_kernel(
    q, scale, weight, to_ray, cos, sin, read, out, S, N, blocks, DOWNSCALED: tl.constexpr,
    D: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """What one part of a frame's tokens reads, of one head, brought back from their rays."""
    frame, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    lane, index = tl.arange(0, LANES), frame * N + head
    q += frame * S * N * D + head * D
    out += frame * S * N * D + head * D
    scale += frame * S
    to_ray += frame * S * 16
    cos += frame * S * (D // 4)
    sin += frame * S * (D // 4)
    square = (lane < D)[:, None] & (lane < D)[None, :]
    state = tl.load(read + index * D * D + lane[:, None] * D + lane[None, :], mask=square, other=0.0)
    for block in range(blocks):
        token = (part * blocks + block) * TOKENS + tl.arange(0, TOKENS)
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
    plan = plan_tiles(width, tokens, q.dtype, stages=1)
    keys, q_scale, k_scale = filtered_and_normed(q, k, k_tail, conv_weight, lengths, crossing=crossing, eps=norm_eps)
    products = decay.new_empty((count * heads, 2, plan.parts, width, width), dtype=torch.float32)
    inflation = products.new_empty((count * heads, plan.parts))
    grid = (count, heads, plan.parts)
    _write_kernel[grid](
        keys, v, k_scale, k_weight.contiguous(), from_ray.contiguous(), cos, sin, beta.float().contiguous(), products,
        inflation, key_scale(width, tokens), tokens, heads, plan.blocks, P=plan.parts, DOWNSCALED=downscaled,
        **plan.sizes,
    )  # fmt: skip
    sums = Sums(products, inflation=inflation)
    scanned = delta_scan(sums, decay, state, lengths, tokens, dtype=plan.dtype)
    out = q.new_empty((batch, frames, tokens, heads, width), dtype=dtype)
    _read_kernel[grid](
        q, q_scale, q_weight.contiguous(), to_ray.contiguous(), cos, sin, scanned.read, out, tokens, heads, plan.blocks,
        DOWNSCALED=downscaled, **plan.sizes,
    )  # fmt: skip
    return out, scanned.after
