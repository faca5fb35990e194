"""Neighbouring frames side by side in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.kernels.chunk_frames import masked, same_chunk


def temporal_taps(f: Tensor, tail: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """As the package's `temporal_taps`."""
    before = torch.cat([tail.to(f.dtype), f[:, :-1]], dim=1)
    after = masked(torch.roll(f, -1, dims=1), same_chunk(lengths, 1))
    return torch.cat([before, f, after], dim=-1)
