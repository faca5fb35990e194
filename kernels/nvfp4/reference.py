"""NVFP4 in plain PyTorch: 4-bit floats (e2m1) in blocks of 16 along a row, an 8-bit float (e4m3) scale a block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 16
# Values of the codes 0 .. 7; codes 8 .. 15 are their negatives.
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST, LARGEST_SCALE = 6.0, 448.0
SMALLEST_SCALE = 2.0**-9  # of e4m3, subnormal: a smaller one would round to 0 and lose its block
# Scales to try for a block, in steps of e4m3 from the one that takes its largest value to 6: up to where that value
# becomes 4, which leaves finer steps below it, and down to where it is cut a little.
STEPS = range(-2, 6)
FIRST_CODE, LAST_CODE = 1, 126  # of e4m3's positive numbers


def quantise(weight: Tensor, *, fitted: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """As the package's `quantise`."""
    blocks = weight.float().unflatten(-1, (-1, BLOCK))
    tensor_scale = weight.float().abs().amax() / (LARGEST * LARGEST_SCALE)
    # Zeros divided by any scale are zeros; 1 keeps a tensor of nothing else from dividing by 0.
    tensor_scale = torch.where(tensor_scale > 0, tensor_scale, torch.ones_like(tensor_scale))
    scales = blocks.abs().amax(-1) / (LARGEST * tensor_scale)
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    scales = scales.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float8_e4m3fn)
    if fitted:
        scales = _fitted(blocks, scales, tensor_scale)
    codes = _encode(blocks / (scales.float() * tensor_scale)[..., None]).flatten(-2)
    return codes[..., ::2] | codes[..., 1::2] << 4, scales, tensor_scale


def dequantise(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    """As the package's `dequantise`."""
    pairs = torch.stack([codes & 15, codes >> 4], dim=-1)
    levels = _decode(pairs.flatten(-2)).unflatten(-1, (-1, BLOCK))
    return (levels * (scales.float() * tensor_scale)[..., None]).flatten(-2)


def linear(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """As the package's `linear`."""
    return functional.linear(x, dequantise(codes, scales, tensor_scale).to(x.dtype), bias)


def _fitted(blocks: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    """Of the scales to try, each block's [N, K / 16] with the least squared error, the first of equal ones."""
    start = scales.view(torch.uint8).int()
    best, least = scales, torch.full(scales.shape, torch.inf, device=scales.device)
    for step in STEPS:
        tried = (start + step).clamp(FIRST_CODE, LAST_CODE).to(torch.uint8).view(torch.float8_e4m3fn)
        factor = (tried.float() * tensor_scale)[..., None]
        error = (_decode(_encode(blocks / factor)) * factor - blocks).square().sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, tried.view(torch.uint8), best.view(torch.uint8)).view(torch.float8_e4m3fn)
    return best


def _decode(codes: Tensor) -> Tensor:
    """Value, fp32, of each code."""
    return torch.tensor([*MAGNITUDES, *(-x for x in MAGNITUDES)], device=codes.device)[codes.int()]


def _encode(x: Tensor) -> Tensor:
    """Code, uint8, of the nearest value to each x; of two as near, the one whose last bit is 0."""
    values = torch.tensor(MAGNITUDES, device=x.device)
    middles = (values[1:] + values[:-1]) / 2
    size = x.abs()
    code = torch.bucketize(size, middles)  # a middle itself goes down,
    odd = code % 2 == 1
    upwards = odd & (size == middles[code.clamp_max(len(middles) - 1)])  # and up again from an odd code
    return ((code + upwards) | (x < 0) * 8).to(torch.uint8)
