"""Reconstruction losses of the autoencoder and the measures by which it is judged."""

from __future__ import annotations

import torch
from torch import Tensor


def reconstruction_loss(shown: Tensor, truth: Tensor, *, square: float, edges: float) -> Tensor:
    """Mean absolute error, `square` times the mean squared error and `edges` times that of differences of neighbours.

    Neighbours are two pixels side by side or one above the other, or one pixel in two frames.
    shown, truth: [B, 3, T, H, W] in [-1, 1].
    """
    error = shown.float() - truth
    loss = error.abs().mean() + square * error.square().mean()
    across = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    in_time = (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    return loss + edges * (across + in_time)


def decibels(mean_square: Tensor) -> Tensor:
    """PSNR of pixels in [-1, 1] from their mean squared error."""
    return 10 * torch.log10(4 / mean_square)
