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
# Share of the mean squared input that is added to every one, so that inputs that were never seen stay bounded.
DAMPING = 0.01
FIRST_CODE, LAST_CODE = 1, 126  # of e4m3's positive numbers


def quantise(weight: Tensor, *, fitted: bool = False, moments: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As the package's `quantise`."""
    tensor_scale = weight.float().abs().amax() / (LARGEST * LARGEST_SCALE)
    # Zeros divided by any scale are zeros; 1 keeps a tensor of nothing else from dividing by 0.
    tensor_scale = torch.where(tensor_scale > 0, tensor_scale, torch.ones_like(tensor_scale))
    if moments is None:
        blocks = weight.float().unflatten(-1, (-1, BLOCK))
        scales = _scales(blocks, tensor_scale, fitted)
        codes = _encode(blocks / (scales.float() * tensor_scale)[..., None]).flatten(-2)
    else:
        codes, scales = _compensated(weight.float(), moments, tensor_scale, fitted)
    return codes[..., ::2] | codes[..., 1::2] << 4, scales, tensor_scale


def dequantise(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    """As the package's `dequantise`."""
    pairs = torch.stack([codes & 15, codes >> 4], dim=-1)
    levels = _decode(pairs.flatten(-2)).unflatten(-1, (-1, BLOCK))
    return (levels * (scales.float() * tensor_scale)[..., None]).flatten(-2)


def linear(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """As the package's `linear`."""
    return functional.linear(x, dequantise(codes, scales, tensor_scale).to(x.dtype), bias)


def _scales(blocks: Tensor, tensor_scale: Tensor, fitted: bool) -> Tensor:
    """e4m3 [...] of blocks [..., 16]."""
    scales = blocks.abs().amax(-1) / (LARGEST * tensor_scale)
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    scales = scales.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float8_e4m3fn)
    return _fitted(blocks, scales, tensor_scale) if fitted else scales


def _compensated(weight: Tensor, moments: Tensor, tensor_scale: Tensor, fitted: bool) -> tuple[Tensor, Tensor]:
    """Codes [N, K] and scales [N, K / 16]: columns are rounded one after another, and those still to come take over, by
    how the inputs go together, what each has lost.
    """
    left, codes, scales = weight.clone(), torch.empty(weight.shape, dtype=torch.uint8, device=weight.device), []
    spread = moments.double()
    damping = DAMPING * spread.diagonal().mean().clamp_min(1e-12)
    spread = spread + damping * torch.eye(len(spread), dtype=spread.dtype, device=spread.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(spread))
    share = torch.linalg.cholesky(inverse, upper=True).float()
    for begin in range(0, weight.shape[1], BLOCK):
        end = begin + BLOCK
        scales.append(_scales(left[:, begin:end], tensor_scale, fitted))
        factor = scales[-1].float() * tensor_scale
        lost = torch.empty_like(left[:, begin:end])
        for column in range(begin, end):
            codes[:, column] = _encode(left[:, column] / factor)
            loss = (left[:, column] - _decode(codes[:, column]) * factor) / share[column, column]
            left[:, column:end] -= loss[:, None] * share[column, column:end]
            lost[:, column - begin] = loss
        left[:, end:] -= lost @ share[begin:end, end:]
    return codes, torch.stack([x.view(torch.uint8) for x in scales], dim=1).view(torch.float8_e4m3fn)


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
