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


def quantise(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the package's `quantise`."""
    blocks = weight.float().unflatten(-1, (-1, BLOCK))
    tensor_scale = weight.float().abs().amax() / (LARGEST * LARGEST_SCALE)
    # Zeros divided by any scale are zeros; 1 keeps a tensor of nothing else from dividing by 0.
    tensor_scale = torch.where(tensor_scale > 0, tensor_scale, torch.ones_like(tensor_scale))
    scales = blocks.abs().amax(-1) / (LARGEST * tensor_scale)
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    scales = scales.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float8_e4m3fn)
    codes = _encode(blocks / (scales.float() * tensor_scale)[..., None]).flatten(-2)
    return codes[..., ::2] | codes[..., 1::2] << 4, scales, tensor_scale


def dequantise(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    """As the package's `dequantise`."""
    value = torch.tensor([*MAGNITUDES, *(-x for x in MAGNITUDES)], device=codes.device)
    pairs = torch.stack([codes & 15, codes >> 4], dim=-1)
    levels = value[pairs.flatten(-2).int()].unflatten(-1, (-1, BLOCK))
    return (levels * (scales.float() * tensor_scale)[..., None]).flatten(-2)


def linear(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """As the package's `linear`."""
    return functional.linear(x, dequantise(codes, scales, tensor_scale).to(x.dtype), bias)


def _encode(x: Tensor) -> Tensor:
    """Code, uint8, of the nearest value to each x; of two as near, the one whose last bit is 0."""
    values = torch.tensor(MAGNITUDES, device=x.device)
    middles = (values[1:] + values[:-1]) / 2
    size = x.abs()
    code = torch.bucketize(size, middles)  # a middle itself goes down,
    odd = code % 2 == 1
    upwards = odd & (size == middles[code.clamp_max(len(middles) - 1)])  # and up again from an odd code
    return ((code + upwards) | (x < 0) * 8).to(torch.uint8)
