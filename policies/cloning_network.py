"""The network of a cloned policy: a small visual encoder, and a chunk of the next actions from it and the goal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sanawm_env.errors import ConfigError

_GROUPS = 8
_METRES = 4.0  # a goal at this distance is a feature of size 1
GOAL, VELOCITY = 3, 6


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Its sizes.

    shrink: pictures are averaged over squares of so many pixels a side first. widths: channels of the convolutions,
    each of which halves the picture; multiples of 8. hidden: units of the layers behind them. dropout: of those. chunk:
    actions K that it predicts. execute: of these, how many are carried out before it looks again.
    """

    shrink: int = 2
    widths: tuple[int, ...] = (16, 32, 64, 128)
    hidden: int = 192
    dropout: float = 0.1
    chunk: int = 4
    execute: int = 1

    def __post_init__(self) -> None:
        if self.shrink < 1 or not self.widths or any(w < 1 or w % _GROUPS for w in self.widths) or self.hidden < 1:
            raise ConfigError(
                f"shrink is {self.shrink}, widths {self.widths}, hidden {self.hidden}; allowed are counts >= 1, widths "
                f"in multiples of {_GROUPS}."
            )
        if not 1 <= self.execute <= self.chunk or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"chunk is {self.chunk}, execute {self.execute}, dropout {self.dropout}; allowed are 1 <= execute <= "
                "chunk, 0 <= dropout < 1."
            )

    def check_size(self, height: int, width: int) -> None:
        """ConfigError unless pictures of this size can be shrunk and still be seen."""
        least = self.shrink * 2 ** len(self.widths)
        if height % self.shrink or width % self.shrink or min(height, width) < least:
            raise ConfigError(
                f"pictures are {height}x{width}, allowed are multiples of shrink = {self.shrink} of {least} or more; "
                "change shrink or widths."
            )


def shrunk(pictures: Tensor, factor: int) -> Tensor:
    """Pictures uint8 [B, H, W, 3] averaged over squares, uint8 [B, 3, H / factor, W / factor]."""
    planes = pictures.movedim(-1, 1)
    if factor == 1:
        return planes
    return nn.functional.avg_pool2d(planes.float(), factor).round().to(torch.uint8)


class CloningNetwork(nn.Module):
    """config: its sizes. size: height and width of the shrunk pictures. scale: [A] the largest action."""

    def __init__(self, config: NetworkConfig, size: tuple[int, int], scale: Tensor) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for before, width in zip((3, *config.widths), config.widths):
            size = (size[0] + 1) // 2, (size[1] + 1) // 2
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(_GROUPS, width), nn.SiLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.seen = nn.Linear(config.widths[-1] * size[0] * size[1], config.hidden)
        self.told = nn.Linear(GOAL + 3 + VELOCITY, config.hidden)
        self.head = nn.Sequential(
            nn.LayerNorm(2 * config.hidden), nn.SiLU(), nn.Dropout(config.dropout),
            nn.Linear(2 * config.hidden, config.hidden), nn.SiLU(), nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.chunk * len(scale)),
        )  # fmt: skip
        self.scale: Tensor
        self.register_buffer("scale", scale)

    def forward(self, pictures: Tensor, goal: Tensor, velocity: Tensor) -> Tensor:
        """Actions [B, K, A], in units of the largest.

        pictures: uint8 or float [B, 3, h, w], grey levels. goal: [B, 3] metres forward, left and up. velocity: [B, 6].
        """
        away = torch.linalg.vector_norm(goal[:, :2], dim=1, keepdim=True)
        told = torch.cat([goal / _METRES, goal[:, :2] / away.clamp(min=1e-3), away.log1p(), velocity], dim=1)
        seen = self.encoder(pictures.float() / 127.5 - 1.0)
        planned: Tensor = self.head(torch.cat([self.seen(seen), self.told(told)], dim=1))
        return planned.unflatten(1, (self.config.chunk, -1))


class Deployed(nn.Module):
    """A network as it is deployed: from pictures as a camera gives them to actions in SI units.

    low, high: [A] limits of the actions.
    """

    def __init__(self, network: CloningNetwork, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.network = network
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, pictures: Tensor, goal: Tensor, velocity: Tensor) -> Tensor:
        """Actions [B, K, A] of the next K steps. pictures: uint8 [B, H, W, 3]; goal [B, 3], velocity [B, 6] float32."""
        small = shrunk(pictures, self.network.config.shrink)
        planned = self.network(small, goal, velocity) * self.network.scale
        return torch.maximum(torch.minimum(planned, self.high), self.low)
