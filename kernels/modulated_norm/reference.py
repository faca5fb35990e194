"""Modulated norm in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, *, centred: bool = True) -> Tensor:
    """As the package's `modulated_norm`."""
    norm = functional.layer_norm if centred else functional.rms_norm
    return norm(x.float(), x.shape[-1:], eps=EPSILON).to(x.dtype) * (1 + scale) + shift
