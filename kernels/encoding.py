"""How tokens are normed, turned and seen from a ray, in plain PyTorch; `tiles` does the same to the tiles of a kernel.

Letters: B worlds, T latent frames, S tokens a frame, N heads, L lanes of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, statistics and product in fp32, in the dtype of x."""
    return functional.rms_norm(x.float(), (x.shape[-1],), None if weight is None else weight.float(), eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, split: bool = False) -> Tensor:
    """x [B, T, S, N, L] with each pair of lanes (2j, 2j + 1), or (j, j + L / 2) if split, rotated by angle j, in fp32.

    cos, sin: [B, T, S, N or 1, L / 2] (or broadcastable to it), fp32.
    """
    if split:
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    if x.device.type == "cpu":  # complex numbers take one pass over memory where the real form takes six
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def transform_rays(x: Tensor, matrix: Tensor) -> Tensor:
    """Groups of four lanes of x [B, T, S, N, L] multiplied by each token's 4x4 matrix [B, T, S, 4, 4], fp32."""
    groups = x.float().unflatten(-1, (-1, 4))
    if x.device.type == "cpu":
        flat = groups.flatten(3, 4)
        return (flat @ matrix.transpose(-1, -2)).reshape(x.shape)
    # A product of thousands of 4x4 matrices is slow as a batched GEMM on a GPU; as a sum it fuses with its neighbours.
    return (groups[..., None, :] * matrix[:, :, :, None, None]).sum(-1).flatten(-2)


def encode(x: Tensor, matrix: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """First half of the lanes of x [B, T, S, N, L] by each token's ray matrix [B, T, S, 4, 4], second half rotated by
    cos, sin [B, T, S, 1, L / 4] (spec dit.md 3.8.4).
    """
    half = x.shape[-1] // 2
    return torch.cat([transform_rays(x[..., :half], matrix), rotate(x[..., half:], cos, sin)], dim=-1)


def downscale(encoded: Tensor, plain: Tensor) -> Tensor:
    """`encoded` shrunk, a token and head at a time, so that its RMS does not exceed that of `plain` (spec dit.md
    3.8.4).
    """
    rms = [torch.sqrt(x.float().square().mean(-1, keepdim=True) + 1e-6) for x in (plain, encoded)]
    return encoded * (rms[0] / rms[1].clamp_min(1e-6)).clamp_max(1.0)
