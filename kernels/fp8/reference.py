"""FP8 products in plain PyTorch: the rounding of the fast form, sums in fp32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LARGEST = 448.0


def quantise(rows: Tensor, *, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """As the package's `quantise`."""
    rows = functional.gelu(rows.float(), approximate="tanh") if gelu else rows.float()
    scales = rows.abs().amax(-1) / LARGEST
    # A row of zeros keeps scale 1, so that it divides and multiplies back to zeros.
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    return (rows / scales[:, None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales


def linear(x: Tensor, levels: Tensor, scales: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """As the package's `linear`."""
    rows, given = quantise(x.reshape(-1, x.shape[-1]), gelu=gelu)
    out = rows.float() @ levels.float().T * given[:, None] * scales
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype).reshape(*x.shape[:-1], len(levels))
