"""SiLU, depthwise 3x3 convolution and gate in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def gated_spatial_conv(p: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
    """As the package's `gated_spatial_conv`."""
    # Channels-last memory is the tokens' own layout, so the depthwise convolution needs no copy.
    frames = functional.silu(p).unflatten(2, grid).flatten(0, 1).permute(0, 3, 1, 2)
    mixed = functional.conv2d(frames, weight, bias, padding=1, groups=weight.shape[0])
    value, gate = mixed.permute(0, 2, 3, 1).reshape(p.shape).chunk(2, dim=-1)
    return value * functional.silu(gate)
