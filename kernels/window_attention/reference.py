"""Softmax attention over a window whose valid keys are a prefix of its slots, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def window_attention(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    """Attention of q over the first `lengths[b]` keys of world b.

    q: [B, Q, N, D]; k, v: [B, slots, N, D]; lengths: valid keys of each world, 1 .. slots; scale multiplies q k^T.
    Returns [B, Q, N, D]. Worlds of one length are computed together; a world's result does not depend on the others.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    runs = _runs(lengths)
    parts = [
        scaled_dot_product_attention(q[begin:end], k[begin:end, :, :length], v[begin:end, :, :length], scale=scale)
        for begin, end, length in runs
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(1, 2)


def _runs(lengths: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Maximal stretches (begin, end, length) of equal lengths."""
    runs: list[tuple[int, int, int]] = []
    for index, length in enumerate(lengths):
        if runs and runs[-1][2] == length:
            runs[-1] = (runs[-1][0], index + 1, length)
        else:
            runs.append((index, index + 1, length))
    return runs
