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
        [0.93, 0.90, 0.82], [0.80, 0.87, 0.91], [0.74, 0.83, 0.73], [0.92, 0.76, 0.68],
        [0.62, 0.70, 0.80], [0.88, 0.82, 0.62], [0.78, 0.72, 0.84], [0.90, 0.90, 0.90],
        [0.52, 0.64, 0.60], [0.83, 0.64, 0.52], [0.46, 0.54, 0.66], [0.72, 0.52, 0.50],
    ]
)  # fmt: skip
ACCENTS: Tensor = torch.tensor(
    [
        [0.70, 0.30, 0.24], [0.20, 0.36, 0.52], [0.24, 0.44, 0.34], [0.84, 0.60, 0.24],
        [0.44, 0.30, 0.50], [0.30, 0.34, 0.38], [0.56, 0.26, 0.34], [0.16, 0.46, 0.50],
    ]
)  # fmt: skip
WOODS: Tensor = torch.tensor(
    [
        [0.72, 0.54, 0.36], [0.55, 0.37, 0.22], [0.82, 0.68, 0.50],
        [0.40, 0.26, 0.17], [0.62, 0.56, 0.50], [0.66, 0.42, 0.24],
    ]
)  # fmt: skip
STONES: Tensor = torch.tensor(
    [
        [0.86, 0.84, 0.78], [0.70, 0.42, 0.32], [0.38, 0.42, 0.46],
        [0.62, 0.70, 0.74], [0.80, 0.72, 0.60], [0.28, 0.30, 0.32],
    ]
)  # fmt: skip
CARPETS: Tensor = torch.tensor(
    [
        [0.52, 0.30, 0.28], [0.32, 0.38, 0.50], [0.44, 0.48, 0.38],
        [0.66, 0.58, 0.46], [0.40, 0.36, 0.42], [0.56, 0.54, 0.50],
    ]
)  # fmt: skip


def jitter(colour: Tensor, noise: Tensor, amount: float) -> Tensor:
    """Colour [..., 3] moved by noise in [0, 1) of the same shape, at most `amount` each way, kept inside [0.03, 0.97]."""
    return (colour + (noise - 0.5) * (2 * amount)).clamp(0.03, 0.97)
