"""RMS norm and rotary rotation in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """As the package's `rms_norm`."""
    normed = functional.rms_norm(x.float(), (x.shape[-1],), weight.float(), epsilon).to(x.dtype)
    if rotation is None:
        return normed
    heads = normed.unflatten(-1, (-1, 2 * rotation[0].shape[-1]))
    return rotate(heads, *rotation).flatten(-2).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., 2P] with each pair (2j, 2j + 1) turned by the angle of cos and sin [..., P], in fp32."""
    if x.device.type == "cpu":  # complex numbers take one pass over memory where the real form takes six
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
