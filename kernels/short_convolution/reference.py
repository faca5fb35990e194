"""Depthwise filter over time in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.kernels.chunk_frames import masked, same_chunk


def short_convolution(x: Tensor, tail: Tensor, weight: Tensor, lengths: tuple[int, ...], *, crossing: bool) -> Tensor:
    """x [B, T, S, C] filtered over T in its own dtype.

    tail: [B, taps - 1, S, C], the frames before. weight: [C, 1, taps]. lengths: of the chunks, their sum is T. Without
    `crossing`, no chunk sees another or the tail.
    """
    taps = weight.shape[-1]
    frames = x.shape[1]
    weights = weight[:, 0].unbind(-1)
    extended = torch.cat([tail.to(x.dtype), x], dim=1)
    y = weights[-1] * x
    for shift in range(1, taps):
        tap = weights[taps - 1 - shift]
        past = extended[:, taps - 1 - shift : taps - 1 - shift + frames]
        y = y + tap * (past if crossing else masked(past, same_chunk(lengths, -shift)))
        inside = same_chunk(lengths, shift)
        if any(inside):
            y = y + tap * masked(torch.roll(x, -shift, dims=1), inside)
    return y
