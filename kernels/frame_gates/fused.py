"""Gates of a recurrent block in Triton: tokens are read once, sums have one order whatever the batch."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Few tokens a program: there are few frames, and each program walks through all channels.
ROWS, LANES = 16, 128


@triton.jit
def _tokens_kernel(
    u, beta_weight, gate_weight, bias, beta, sums, S, C, N,
    ROWS: tl.constexpr, LANES: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """beta of ROWS tokens of one frame, and the gate's product with the sum of these tokens."""
    frame, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token, head, lane = part * ROWS + tl.arange(0, ROWS), tl.arange(0, HEADS), tl.arange(0, LANES)
    inside, known = token < S, head < N
    u += frame * S * C
    total, gate = tl.zeros((ROWS, HEADS), tl.float32), tl.zeros((ROWS, HEADS), tl.float32)
    for begin in range(0, C, LANES):
        at = begin + lane
        weights = head[None, :] * C + at[:, None]
        there = known[None, :] & (at < C)[:, None]
        x = tl.load(u + token[:, None] * C + at[None, :], mask=inside[:, None] & (at < C)[None, :], other=0.0)
        w = tl.load(beta_weight + weights, mask=there, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
        w = tl.load(gate_weight + weights, mask=there, other=0.0)
        gate = tl.dot(x, w, gate, input_precision="ieee")
    total += tl.load(bias + head, mask=known, other=0.0).to(tl.float32)[None, :]
    out = beta + (frame * S + token[:, None]) * N + head[None, :]
    tl.store(out, tl.sigmoid(total), mask=inside[:, None] & known[None, :])
    tl.store(sums + (frame * tl.num_programs(1) + part) * N + head, tl.sum(gate, 0), mask=known)


@triton.jit
def _frames_kernel(sums, bias, a_log, dt_bias, decay, S, N, parts, HEADS: tl.constexpr):
    """decay of one frame from the products of its parts."""
    frame, head = tl.program_id(0).to(tl.int64), tl.arange(0, HEADS)
    known = head < N
    gate = tl.zeros((HEADS,), tl.float32)
    for part in range(parts):
        gate += tl.load(sums + (frame * parts + part) * N + head, mask=known, other=0.0)
    gate = gate / S + tl.load(bias + head, mask=known, other=0.0).to(tl.float32)
    gate += tl.load(dt_bias + head, mask=known, other=0.0).to(tl.float32)
    # softplus without overflow
    step = tl.maximum(gate, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(gate)))
    rate = tl.exp(tl.load(a_log + head, mask=known, other=0.0).to(tl.float32))
    tl.store(decay + frame * N + head, tl.exp(-rate * step), mask=known)


def frame_gates(
    u: Tensor,
    beta_weight: Tensor,
    beta_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """As the package's `frame_gates`."""
    u = u.contiguous()
    batch, frames, tokens, width = u.shape
    heads = len(a_log)
    parts = triton.cdiv(tokens, ROWS)
    beta = u.new_empty((batch, frames, tokens, heads), dtype=torch.float32)
    decay = u.new_empty((batch, frames, heads), dtype=torch.float32)
    sums = u.new_empty((batch * frames, parts, heads), dtype=torch.float32)
    lanes = max(16, triton.next_power_of_2(heads))
    _tokens_kernel[(batch * frames, parts)](
        u, beta_weight.to(u.dtype).contiguous(), gate_weight.to(u.dtype).contiguous(), beta_bias, beta, sums,
        tokens, width, heads, ROWS=ROWS, LANES=LANES, HEADS=lanes,
    )  # fmt: skip
    _frames_kernel[(batch * frames,)](sums, gate_bias, a_log, dt_bias, decay, tokens, heads, parts, HEADS=lanes)
    return beta, decay
