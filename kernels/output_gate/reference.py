"""Gated sum of two branches in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def output_gate(main: Tensor, camera: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    """As the package's `output_gate`."""
    mixed = main.to(dtype) + camera
    return (mixed.float() * functional.silu(gate.float())).to(dtype)
