"""Channels to time and space in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def channels_to_space(y: Tensor, x: Tensor | None, stride: tuple[int, int, int], drop: int) -> Tensor:
    """As the package's `channels_to_space`."""
    enlarged = _unfold(y, stride)[:, drop:]
    if x is None:
        return enlarged
    return enlarged + _unfold(x, stride)[:, drop:].repeat(1, 1, 1, 1, y.shape[-1] // x.shape[-1])


def _unfold(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    batch, frames, height, width, _ = x.shape
    time, high, wide = stride
    x = x.reshape(batch, frames, height, width, -1, time, high, wide).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, frames * time, height * high, width * wide, -1)
