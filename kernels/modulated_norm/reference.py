"""Modulated norm in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """As the package's `modulated_norm`."""
    return functional.layer_norm(x.float(), x.shape[-1:], eps=EPSILON).to(x.dtype) * (1 + scale) + shift
