"""Input of a causal video convolution in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def conv_frames(
    x: Tensor, before: Tensor | None, past: int, ahead: int, border: tuple[int, int], epsilon: float | None
) -> Tensor:
    """As the package's `conv_frames`."""
    if epsilon is not None:
        # Autocast would go on in fp32 from here.
        x = functional.silu(functional.rms_norm(x, x.shape[-1:], eps=epsilon)).to(x.dtype)
    first = x[:, :1].expand(-1, past - ahead, -1, -1, -1) if before is None else before.to(x.dtype)
    x = torch.cat([first, x, x[:, -1:].expand(-1, ahead, -1, -1, -1)], dim=1)
    return _mirror(_mirror(x, border[0], 2), border[1], 3)


def _mirror(x: Tensor, count: int, dim: int) -> Tensor:
    """x mirrored at both ends of an axis, where its layout in memory stays: torch's own padding would lose it."""
    if count == 0:
        return x
    size = x.shape[dim]
    first, last = x.narrow(dim, 1, count), x.narrow(dim, size - 1 - count, count)
    return torch.cat([first.flip(dim), x, last.flip(dim)], dim=dim)
