"""SiLU, depthwise 3x3 convolution and gate in Triton: a program walks down a few columns of the grid.

Row by row it adds what each input row gives to the output rows below, at and above it, so that no row is read again;
columns are taken in fours, so that six SiLUs serve four outputs.
"""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.backend import interpreting
from sanawm_env.kernels.rows import quick_silu, rows

FOURS, LANES, STRIP, WARPS = 1, 128, 12, 2


@triton.jit
def _filter(weight, known):
    """The nine taps of each channel, row by row, each [1, LANES]."""
    return (
        _tap(weight, known),
        _tap(weight + 1, known),
        _tap(weight + 2, known),
        _tap(weight + 3, known),
        _tap(weight + 4, known),
        _tap(weight + 5, known),
        _tap(weight + 6, known),
        _tap(weight + 7, known),
        _tap(weight + 8, known),
    )


@triton.jit
def _tap(weight, known):
    return tl.load(weight, mask=known, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _column(p, y, x, height, width, p_row, known, QUICK: tl.constexpr):
    """SiLU of the tokens at row y, columns x, [FOURS, LANES]; zero beyond the edges."""
    token = y * width + x
    there = (x >= 0) & (x < width) & (token >= 0) & (token < height * width)
    at = p[None, :] + token[:, None] * p_row
    return quick_silu(tl.load(at, mask=there[:, None] & known[None, :], other=0.0).to(tl.float32), QUICK)


@triton.jit
def _columns(p, y, x, height, width, p_row, known, QUICK: tl.constexpr):
    """The six columns that the outputs at x .. x + 3 read."""
    return (
        _column(p, y, x - 1, height, width, p_row, known, QUICK),
        _column(p, y, x, height, width, p_row, known, QUICK),
        _column(p, y, x + 1, height, width, p_row, known, QUICK),
        _column(p, y, x + 2, height, width, p_row, known, QUICK),
        _column(p, y, x + 3, height, width, p_row, known, QUICK),
        _column(p, y, x + 4, height, width, p_row, known, QUICK),
    )


@triton.jit
def _four(c, w, row: tl.constexpr):
    """One row of the filter over six columns: its sums at the four outputs."""
    left, middle, right = w[3 * row], w[3 * row + 1], w[3 * row + 2]
    return (
        left * c[0] + middle * c[1] + right * c[2],
        left * c[1] + middle * c[2] + right * c[3],
        left * c[2] + middle * c[3] + right * c[4],
        left * c[3] + middle * c[4] + right * c[5],
    )


@triton.jit
def _gated_spatial_conv_kernel(
    p, weight, bias, out, height, width, H, p_row,
    FOURS: tl.constexpr, LANES: tl.constexpr, STRIP: tl.constexpr, QUICK: tl.constexpr,
):  # fmt: skip
    frame, strips = tl.program_id(0).to(tl.int64), tl.cdiv(height, STRIP)
    channel = tl.program_id(1) * LANES + tl.arange(0, LANES)
    known = channel < H
    top = tl.program_id(2) % strips * STRIP
    x = (tl.program_id(2) // strips * FOURS + tl.arange(0, FOURS)) * 4
    p += frame * height * width * p_row + channel
    out += frame * height * width * H + channel
    filter_v, filter_g = _filter(weight + channel * 9, known), _filter(weight + (H + channel) * 9, known)
    bias_v, bias_g = _tap(bias + channel, known), _tap(bias + H + channel, known)
    # Sums of value (v) and gate (g) at the four columns: `done` of row y - 1, `open` of row y.
    zero = tl.zeros((FOURS, LANES), tl.float32)
    done_v0, done_v1, done_v2, done_v3 = zero, zero, zero, zero
    done_g0, done_g1, done_g2, done_g3 = zero, zero, zero, zero
    open_v0, open_v1, open_v2, open_v3 = zero + bias_v, zero + bias_v, zero + bias_v, zero + bias_v
    open_g0, open_g1, open_g2, open_g3 = zero + bias_g, zero + bias_g, zero + bias_g, zero + bias_g
    for y in range(top - 1, tl.minimum(top + STRIP, height) + 1):
        columns_v = _columns(p, y, x, height, width, p_row, known, QUICK)
        columns_g = _columns(p + H, y, x, height, width, p_row, known, QUICK)
        v, g = _four(columns_v, filter_v, 2), _four(columns_g, filter_g, 2)
        token = (y - 1) * width + x
        at, ready = out + token[:, None] * H, (token >= top * width)[:, None] & known[None, :]
        tl.store(at, (done_v0 + v[0]) * quick_silu(done_g0 + g[0], QUICK), mask=ready & (x < width)[:, None])
        tl.store(at + H, (done_v1 + v[1]) * quick_silu(done_g1 + g[1], QUICK), mask=ready & (x + 1 < width)[:, None])
        tl.store(
            at + 2 * H, (done_v2 + v[2]) * quick_silu(done_g2 + g[2], QUICK), mask=ready & (x + 2 < width)[:, None]
        )
        tl.store(
            at + 3 * H, (done_v3 + v[3]) * quick_silu(done_g3 + g[3], QUICK), mask=ready & (x + 3 < width)[:, None]
        )
        v, g = _four(columns_v, filter_v, 1), _four(columns_g, filter_g, 1)
        done_v0, done_v1, done_v2, done_v3 = open_v0 + v[0], open_v1 + v[1], open_v2 + v[2], open_v3 + v[3]
        done_g0, done_g1, done_g2, done_g3 = open_g0 + g[0], open_g1 + g[1], open_g2 + g[2], open_g3 + g[3]
        v, g = _four(columns_v, filter_v, 0), _four(columns_g, filter_g, 0)
        open_v0, open_v1, open_v2, open_v3 = bias_v + v[0], bias_v + v[1], bias_v + v[2], bias_v + v[3]
        open_g0, open_g1, open_g2, open_g3 = bias_g + g[0], bias_g + g[1], bias_g + g[2], bias_g + g[3]


def gated_spatial_conv(p: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
    """As the package's `gated_spatial_conv`."""
    hidden = p.shape[-1] // 2
    out = torch.empty((*p.shape[:-1], hidden), dtype=p.dtype, device=p.device)
    flat = rows(p)
    frames, (height, width) = p.shape[0] * p.shape[1], grid
    programs = frames, triton.cdiv(hidden, LANES), triton.cdiv(width, 4 * FOURS) * triton.cdiv(height, STRIP)
    sizes = {"FOURS": FOURS, "LANES": LANES, "STRIP": STRIP, "QUICK": not interpreting(), "num_warps": WARPS}
    _gated_spatial_conv_kernel[programs](
        flat, weight.contiguous(), bias.contiguous(), out, height, width, hidden, flat.stride(0), **sizes
    )
    return out
