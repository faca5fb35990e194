"""Gates of a recurrent block in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def frame_gates(
    u: Tensor,
    beta_weight: Tensor,
    beta_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """As the package's `frame_gates`."""
    beta = torch.sigmoid(functional.linear(u, beta_weight, beta_bias).float())
    gate = functional.linear(u.mean(dim=2), gate_weight, gate_bias).float()
    return beta, torch.exp(-a_log.float().exp() * functional.softplus(gate + dt_bias.float()))
