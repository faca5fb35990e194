"""Small refiners and what they are given, for the tests of their model and of its errors."""

from __future__ import annotations

from typing import Any

import torch
from tests.public_layouts import tiny_refiner
from torch import Tensor

from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig

GRID = (2, 3)
CHANNELS, CAPTION, WORDS = 6, 12, 5
TINY = tiny_refiner(CHANNELS)


def build(config: RefinerConfig | None = None, **changes: Any) -> Refiner:
    torch.manual_seed(0)
    refiner = Refiner(config or RefinerConfig(), TINY | changes).eval().requires_grad_(False)
    for name, weight in refiner.named_parameters():
        # Shifts, scales and gates of order 1, so that every part of a layer counts.
        if name.endswith("scale_shift_table"):
            weight.copy_(torch.randn_like(weight))
    return refiner


def prompts(batch: int = 2) -> tuple[Tensor, Tensor]:
    mask = torch.ones(batch, WORDS)
    mask[0, 0] = 0
    return torch.randn(batch, WORDS, CAPTION), mask


def clips(frames: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, frames, CHANNELS, *GRID)
