"""Encoding of heads by rays in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.kernels.rms_norm.reference import rotate


def ray_encode(
    x: Tensor, matrix: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False, shrink: bool = False
) -> Tensor:
    """As the package's `ray_encode`."""
    half = x.shape[-1] // 2
    turned = rotate(x[..., half:], cos, -sin if inverse else sin)
    encoded = torch.cat([transform_rays(x[..., :half], matrix), turned], dim=-1)
    return (downscale(encoded, x) if shrink else encoded).to(x.dtype)


def transform_rays(x: Tensor, matrix: Tensor) -> Tensor:
    """Groups of four lanes of x [B, T, S, N, L] multiplied by each token's 4x4 matrix [B, T, S, 4, 4], fp32."""
    groups = x.float().unflatten(-1, (-1, 4))
    if x.device.type == "cpu":
        flat = groups.flatten(3, 4)
        return (flat @ matrix.transpose(-1, -2)).reshape(x.shape)
    # A product of thousands of 4x4 matrices is slow as a batched GEMM on a GPU; as a sum it fuses with its neighbours.
    return (groups[..., None, :] * matrix[:, :, :, None, None]).sum(-1).flatten(-2)


def downscale(encoded: Tensor, plain: Tensor) -> Tensor:
    """`encoded` shrunk, a token and head at a time, so that its RMS does not exceed that of `plain` (spec dit.md
    3.8.4).
    """
    rms = [torch.sqrt(x.float().square().mean(-1, keepdim=True) + 1e-6) for x in (plain, encoded)]
    return encoded * (rms[0] / rms[1].clamp_min(1e-6)).clamp_max(1.0)
