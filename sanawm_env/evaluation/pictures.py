"""Numbers about pictures alone, which need no truth beside them."""

from __future__ import annotations

import torch
from torch import Tensor


def contrast(frames: Tensor) -> Tensor:
    """Standard deviation of the grey levels of pictures uint8 [..., H, W, 3]: float64 [...]; 0 for a blank one."""
    grey = _three_greys(frames).flatten(-2)
    count = grey.shape[-1]
    return (count * (grey * grey).sum(-1) - grey.sum(-1) ** 2).double().sqrt() / (3 * count)


def sharpness(frames: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean difference in grey levels between neighbours in pictures uint8 [..., H, W, 3]: float64 [...].

    mask: bool [..., H, W]; only neighbours that are both in it count (all by default), NaN where there are none.
    """
    grey = _three_greys(frames)
    across, down = grey.diff(dim=-1).abs(), grey.diff(dim=-2).abs()
    if mask is None:
        sides = across.shape[-2] * across.shape[-1] + down.shape[-2] * down.shape[-1]
        return (across.sum((-2, -1)) + down.sum((-2, -1))).double() / (3 * sides)
    beside, below = mask[..., 1:] & mask[..., :-1], mask[..., 1:, :] & mask[..., :-1, :]
    total = (across * beside).sum((-2, -1)) + (down * below).sum((-2, -1))
    return total.double() / (3 * (beside.sum((-2, -1)) + below.sum((-2, -1))))


def _three_greys(frames: Tensor) -> Tensor:
    """Three times the grey level, as whole numbers."""
    return frames.sum(-1, dtype=torch.int64)
