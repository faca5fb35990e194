"""Colours of Rooms, sRGB in [0, 1]: the named colours that tasks may refer to, and the schemes of walls and floors."""

from __future__ import annotations

import torch
from torch import Tensor

NAMED: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.16, 0.14),
    "orange": (0.93, 0.50, 0.12),
    "yellow": (0.95, 0.82, 0.18),
    "green": (0.20, 0.60, 0.26),
    "cyan": (0.16, 0.66, 0.70),
    "blue": (0.15, 0.32, 0.78),
    "purple": (0.50, 0.24, 0.66),
    "pink": (0.94, 0.52, 0.66),
    "white": (0.93, 0.92, 0.88),
    "brown": (0.46, 0.28, 0.16),
    "grey": (0.55, 0.56, 0.58),
    "black": (0.16, 0.16, 0.18),
}
NAMES: tuple[str, ...] = tuple(NAMED)
VIVID = 8  # the first eight names: one each for the objects a task may point at
TABLE: Tensor = torch.tensor(list(NAMED.values()))

WALLS: Tensor = torch.tensor(
    [
        [0.86, 0.83, 0.75], [0.74, 0.80, 0.84], [0.70, 0.78, 0.69], [0.86, 0.73, 0.66],
        [0.64, 0.71, 0.79], [0.83, 0.78, 0.62], [0.75, 0.70, 0.80], [0.82, 0.82, 0.82],
        [0.58, 0.69, 0.66], [0.80, 0.66, 0.57], [0.57, 0.64, 0.73], [0.76, 0.61, 0.60],
    ]
)  # fmt: skip
ACCENTS: Tensor = torch.tensor(
    [
        [0.74, 0.46, 0.40], [0.40, 0.53, 0.66], [0.43, 0.59, 0.50], [0.82, 0.65, 0.40],
        [0.58, 0.47, 0.64], [0.50, 0.54, 0.58], [0.68, 0.45, 0.52], [0.38, 0.60, 0.63],
    ]
)  # fmt: skip
WOODS: Tensor = torch.tensor(
    [
        [0.72, 0.56, 0.40], [0.61, 0.45, 0.32], [0.78, 0.66, 0.50],
        [0.52, 0.39, 0.30], [0.62, 0.57, 0.51], [0.66, 0.46, 0.32],
    ]
)  # fmt: skip
STONES: Tensor = torch.tensor(
    [
        [0.80, 0.78, 0.72], [0.70, 0.49, 0.41], [0.50, 0.54, 0.58],
        [0.64, 0.70, 0.74], [0.76, 0.69, 0.59], [0.45, 0.47, 0.49],
    ]
)  # fmt: skip
CARPETS: Tensor = torch.tensor(
    [
        [0.62, 0.46, 0.44], [0.47, 0.52, 0.61], [0.56, 0.60, 0.51],
        [0.68, 0.61, 0.51], [0.54, 0.50, 0.56], [0.60, 0.58, 0.54],
    ]
)  # fmt: skip


def jitter(colour: Tensor, noise: Tensor, amount: float) -> Tensor:
    """Colour [..., 3] moved by noise in [0, 1) of the same shape, at most `amount` each way, kept in [0.03, 0.97]."""
    return (colour + (noise - 0.5) * (2 * amount)).clamp(0.03, 0.97)
