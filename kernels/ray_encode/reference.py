"""Encoding of heads by rays in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from sanawm_env.kernels.encoding import downscale, encode


def ray_encode(
    x: Tensor, matrix: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False, shrink: bool = False
) -> Tensor:
    """As the package's `ray_encode`."""
    encoded = encode(x, matrix, cos, -sin if inverse else sin)
    return (downscale(encoded, x) if shrink else encoded).to(x.dtype)
