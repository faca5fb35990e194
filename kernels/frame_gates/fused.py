"""Gates of a recurrent block in Triton: tokens are read once, sums have one order whatever the batch."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, LANES = 64, 64


@triton.jit
def _tokens_kernel(u, weight, bias, beta, sums, S, C, N, ROWS: tl.constexpr, LANES: tl.constexpr, HEADS: tl.constexpr):
    """beta of ROWS tokens of one frame, and their sum over tokens."""
    frame, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token, head, lane = part * ROWS + tl.arange(0, ROWS), tl.arange(0, HEADS), tl.arange(0, LANES)
    inside, known = token < S, head < N
    u += frame * S * C
    sums += (frame * tl.num_programs(1) + part) * C
    total = tl.zeros((ROWS, HEADS), tl.float32)
    for begin in range(0, C, LANES):
        at = begin + lane
        x = tl.load(u + token[:, None] * C + at[None, :], mask=inside[:, None] & (at < C)[None, :], other=0.0)
        w = tl.load(weight + head[None, :] * C + at[:, None], mask=known[None, :] & (at < C)[:, None], other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
        tl.store(sums + at, tl.sum(x.to(tl.float32), 0), mask=at < C)
    total += tl.load(bias + head, mask=known, other=0.0).to(tl.float32)[None, :]
    out = beta + (frame * S + token[:, None]) * N + head[None, :]
    tl.store(out, tl.sigmoid(total), mask=inside[:, None] & known[None, :])


@triton.jit
def _frames_kernel(sums, weight, bias, a_log, dt_bias, decay, S, C, N, parts, LANES: tl.constexpr, HEADS: tl.constexpr):
    """decay of one frame from the sums of its parts."""
    frame = tl.program_id(0).to(tl.int64)
    head, lane = tl.arange(0, HEADS), tl.arange(0, LANES)
    known = head < N
    sums += frame * parts * C
    gate = tl.zeros((HEADS,), tl.float32)
    for begin in range(0, C, LANES):
        at = begin + lane
        mean = tl.zeros((LANES,), tl.float32)
        for part in range(parts):
            mean += tl.load(sums + part * C + at, mask=at < C, other=0.0)
        w = tl.load(weight + head[:, None] * C + at[None, :], mask=known[:, None] & (at < C)[None, :], other=0.0)
        gate += tl.sum(w.to(tl.float32) * (mean / S)[None, :], 1)
    gate += tl.load(bias + head, mask=known, other=0.0).to(tl.float32)
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
    sums = u.new_empty((batch * frames, parts, width), dtype=torch.float32)
    sizes = {"LANES": LANES, "HEADS": max(16, triton.next_power_of_2(heads))}
    _tokens_kernel[(batch * frames, parts)](
        u, beta_weight.to(u.dtype), beta_bias, beta, sums, tokens, width, heads, ROWS=ROWS, **sizes
    )
    _frames_kernel[(batch * frames,)](
        sums, gate_weight, gate_bias, a_log, dt_bias, decay, tokens, width, heads, parts, **sizes
    )
    return beta, decay
