"""Gated residual in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def gated_residual(x: Tensor, gate: Tensor, branch: Tensor, offset: Tensor | None = None) -> Tensor:
    """As the package's `gated_residual`."""
    x = x + gate * branch
    return x if offset is None else x + offset
