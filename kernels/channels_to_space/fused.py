"""Channels to time and space in Triton: a program reads one pixel and writes the block of pixels that it becomes."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _channels_to_space_kernel(
    y, x, out, T, H, W, C, x_channels, drop,
    TIME: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = TIME * HIGH * WIDE
    pixel = tl.program_id(0)
    column, row, frame, world = pixel % W, pixel // W % H, pixel // (W * H) % T, pixel // (W * H * T)
    part, channel = tl.arange(0, K)[None, :], tl.arange(0, LANES)[:, None]
    frame = (frame * TIME - drop) + part // (HIGH * WIDE)
    row, column = row * HIGH + part // WIDE % HIGH, column * WIDE + part % WIDE
    inside = (channel < C) & (frame >= 0)
    value = tl.load(y + pixel.to(tl.int64) * C * K + channel * K + part, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        at = pixel.to(tl.int64) * x_channels * K + channel % x_channels * K + part
        value += tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    line = (world.to(tl.int64) * (T * TIME - drop) + frame) * (H * HIGH) + row
    tl.store(out + (line * (W * WIDE) + column) * C + channel, value, mask=inside)


def channels_to_space(y: Tensor, x: Tensor | None, stride: tuple[int, int, int], drop: int) -> Tensor:
    """As the package's `channels_to_space`."""
    batch, frames, height, width, channels = y.shape
    time, high, wide = stride
    parts = time * high * wide
    shape = batch, frames * time - drop, height * high, width * wide, channels // parts
    out = torch.empty(shape, dtype=y.dtype, device=y.device)
    y = y.contiguous()
    added = y if x is None else x.contiguous()
    sizes = {"TIME": time, "HIGH": high, "WIDE": wide, "LANES": triton.next_power_of_2(shape[-1])}
    _channels_to_space_kernel[(batch * frames * height * width,)](
        y, added, out, frames, height, width, shape[-1], added.shape[-1] // parts, drop,
        **sizes, RESIDUAL=x is not None,
    )  # fmt: skip
    return out
