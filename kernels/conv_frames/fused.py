"""Input of a causal video convolution in Triton: each pixel of it is gathered from where it comes from.

What is mirrored or repeated is activated again for each copy: that costs less than a pass over memory.
"""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.rows import silu

TILE = 2048


@triton.jit
def _mirrored(at, size):
    """Index inside 0 .. size - 1 of one that lies less than `size` beyond its ends."""
    at = tl.abs(at)
    return tl.minimum(at, 2 * (size - 1) - at)


@triton.jit
def _conv_frames_kernel(
    x, before, out, count, T, H, W, first, frames, high, wide, epsilon,
    x_world, x_frame, x_row, x_pixel, b_world, b_frame, b_row, b_pixel,
    C: tl.constexpr, PIXELS: tl.constexpr, LANES: tl.constexpr, ACTIVE: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    # Pixels are counted in 32 bits, in which divisions are fast; their addresses need 64.
    pixel, lane = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS), tl.arange(0, LANES)
    line = pixel // wide
    picture = line // high
    row, column = _mirrored(line % high - (high - H) // 2, H), _mirrored(pixel % wide - (wide - W) // 2, W)
    world, frame = (picture // frames).to(tl.int64), (picture % frames).to(tl.int64)
    known, inside = pixel < count, (lane < C)[None, :]
    old = known & (frame < first) & BEFORE
    new = known & ~old
    at = world * x_world + tl.minimum(tl.maximum(frame - first, 0), T - 1) * x_frame + row * x_row + column * x_pixel
    value = tl.load(x + at[:, None] + lane[None, :], mask=new[:, None] & inside, other=0.0).to(tl.float32)
    if ACTIVE:
        value = silu(value * tl.rsqrt(tl.sum(value * value, 1) / C + epsilon)[:, None])
    if BEFORE:
        at = world * b_world + frame * b_frame + row * b_row + column * b_pixel
        kept = tl.load(before + at[:, None] + lane[None, :], mask=old[:, None] & inside, other=0.0)
        value = tl.where(old[:, None], kept.to(tl.float32), value)
    tl.store(out + pixel.to(tl.int64)[:, None] * C + lane[None, :], value, mask=known[:, None] & inside)


def conv_frames(
    x: Tensor, before: Tensor | None, past: int, ahead: int, border: tuple[int, int], epsilon: float | None
) -> Tensor:
    """As the package's `conv_frames`."""
    batch, frames, height, width, channels = x.shape
    shape = frames + past, height + 2 * border[0], width + 2 * border[1]
    out = torch.empty((batch, *shape, channels), dtype=x.dtype, device=x.device)
    x = _lanes_together(x)
    old = x if before is None else _lanes_together(before)
    count = batch * shape[0] * shape[1] * shape[2]
    lanes = triton.next_power_of_2(channels)
    # Tiles follow from the channels alone: they set the order of a pixel's sum.
    pixels = max(TILE // lanes, 1)
    strides = *x.stride()[:4], *old.stride()[:4]
    sizes = {"C": channels, "PIXELS": pixels, "LANES": lanes}
    _conv_frames_kernel[(triton.cdiv(count, pixels),)](
        x, old, out, count, frames, height, width, past - ahead, *shape, epsilon or 0.0, *strides,
        **sizes, ACTIVE=epsilon is not None, BEFORE=before is not None,
    )  # fmt: skip
    return out


def _lanes_together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
