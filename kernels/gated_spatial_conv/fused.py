"""SiLU, depthwise 3x3 convolution and gate in Triton: a program walks down a few columns of the grid.

Row by row it adds what each input row gives to the output rows below, at and above it, so that no row is read again;
columns are taken in pairs, so that four SiLUs serve two outputs.
"""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.rows import rows, silu

PAIRS, LANES, STRIP = 4, 64, 12


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
def _column(p, y, x, height, width, p_row, known):
    """SiLU of the tokens at row y, columns x, [PAIRS, LANES]; zero beyond the edges."""
    token = y * width + x
    there = (x >= 0) & (x < width) & (token >= 0) & (token < height * width)
    at = p[None, :] + token[:, None] * p_row
    return silu(tl.load(at, mask=there[:, None] & known[None, :], other=0.0).to(tl.float32))


@triton.jit
def _columns(p, y, x, height, width, p_row, known):
    """The four columns that the outputs at x and x + 1 read."""
    left = _column(p, y, x - 1, height, width, p_row, known)
    even = _column(p, y, x, height, width, p_row, known)
    odd = _column(p, y, x + 1, height, width, p_row, known)
    right = _column(p, y, x + 2, height, width, p_row, known)
    return left, even, odd, right


@triton.jit
def _pair(c, w, row: tl.constexpr):
    """One row of the filter over four columns: sums of the even and the odd output."""
    left, middle, right = w[3 * row], w[3 * row + 1], w[3 * row + 2]
    return left * c[0] + middle * c[1] + right * c[2], left * c[1] + middle * c[2] + right * c[3]


@triton.jit
def _gated_spatial_conv_kernel(
    p, weight, bias, out, height, width, H, p_row, PAIRS: tl.constexpr, LANES: tl.constexpr, STRIP: tl.constexpr
):
    frame, strips = tl.program_id(0).to(tl.int64), tl.cdiv(height, STRIP)
    channel = tl.program_id(1) * LANES + tl.arange(0, LANES)
    known = channel < H
    top = tl.program_id(2) % strips * STRIP
    x = (tl.program_id(2) // strips * PAIRS + tl.arange(0, PAIRS)) * 2
    p += frame * height * width * p_row + channel
    out += frame * height * width * H + channel
    filter_v, filter_g = _filter(weight + channel * 9, known), _filter(weight + (H + channel) * 9, known)
    bias_v, bias_g = _tap(bias + channel, known), _tap(bias + H + channel, known)
    # Sums of value (v) and gate (g) at even (0) and odd (1) columns: `done` of row y - 1, `open` of row y.
    zero = tl.zeros((PAIRS, LANES), tl.float32)
    done_v0, done_v1, done_g0, done_g1 = zero, zero, zero, zero
    open_v0, open_v1, open_g0, open_g1 = zero + bias_v, zero + bias_v, zero + bias_g, zero + bias_g
    for y in range(top - 1, tl.minimum(top + STRIP, height) + 1):
        columns_v = _columns(p, y, x, height, width, p_row, known)
        columns_g = _columns(p + H, y, x, height, width, p_row, known)
        v0, v1 = _pair(columns_v, filter_v, 2)
        g0, g1 = _pair(columns_g, filter_g, 2)
        token = (y - 1) * width + x
        at, ready = out + token[:, None] * H, (token >= top * width)[:, None] & known[None, :]
        tl.store(at, (done_v0 + v0) * silu(done_g0 + g0), mask=ready & (x < width)[:, None])
        tl.store(at + H, (done_v1 + v1) * silu(done_g1 + g1), mask=ready & (x + 1 < width)[:, None])
        v0, v1 = _pair(columns_v, filter_v, 1)
        g0, g1 = _pair(columns_g, filter_g, 1)
        done_v0, done_v1, done_g0, done_g1 = open_v0 + v0, open_v1 + v1, open_g0 + g0, open_g1 + g1
        v0, v1 = _pair(columns_v, filter_v, 0)
        g0, g1 = _pair(columns_g, filter_g, 0)
        open_v0, open_v1, open_g0, open_g1 = bias_v + v0, bias_v + v1, bias_g + g0, bias_g + g1


def gated_spatial_conv(p: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
    """As the package's `gated_spatial_conv`."""
    hidden = p.shape[-1] // 2
    out = torch.empty((*p.shape[:-1], hidden), dtype=p.dtype, device=p.device)
    flat = rows(p)
    frames, (height, width) = p.shape[0] * p.shape[1], grid
    programs = frames, triton.cdiv(hidden, LANES), triton.cdiv(width, 2 * PAIRS) * triton.cdiv(height, STRIP)
    sizes = {"PAIRS": PAIRS, "LANES": LANES, "STRIP": STRIP}
    _gated_spatial_conv_kernel[programs](
        flat, weight.contiguous(), bias.contiguous(), out, height, width, hidden, flat.stride(0), **sizes
    )
    return out
