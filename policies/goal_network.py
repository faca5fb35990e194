"""What a policy sees of an environment's observations, and the small network that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from sanawm_env.errors import ConfigError, SpaceError
from sanawm_env.policies.cloning_network import shrunk

NUMBERS = {"velocity": 2, "goal": 4}  # how many the network makes of each


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of a network.

    pictures: whether it sees them; without, it knows where the goal lies and nothing of what is in the way. shrink:
    by how much they are shrunk before. channels: of its convolutions, each of which halves the picture. features: that
    it gives. hidden: of the layer between features and action.
    """

    pictures: bool = True
    shrink: int = 2
    channels: tuple[int, ...] = (16, 32, 32, 32)
    features: int = 128
    hidden: int = 64

    def __post_init__(self) -> None:
        if min(self.shrink, self.features, self.hidden, *self.channels, 1) < 1:
            raise ConfigError(
                f"shrink {self.shrink}, channels {self.channels}, features {self.features}, hidden {self.hidden}: "
                "allowed are whole numbers >= 1."
            )


class View:
    """The part of an environment's observations of kind "dict" that a network reads.

    space: of one world's observations. observation_space: of what the view gives of them: "image", uint8 [3, h, w] and
    shrunk; "velocity" [6] and "goal" [3] as they are, the latter where the task has one. The pose is left out: it is
    told in the axes of a room that a policy does not know. SpaceError: observations of another kind.
    """

    def __init__(self, space: Any, config: NetworkConfig) -> None:
        if not isinstance(space, spaces.Dict) or not {"image", "velocity"} <= set(space.spaces):
            raise SpaceError(f"observation_space is {space}; make the environment with observation='dict'.")
        self.shrink = config.shrink
        parts = {name: space[name] for name in NUMBERS if name in space.spaces}
        if config.pictures:
            height, width, _ = (side // self.shrink for side in space["image"].shape or ())
            parts["image"] = spaces.Box(0, 255, (3, height, width), np.uint8)
        self.observation_space = spaces.Dict(parts)

    def __call__(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the network reads of B worlds' observations, on the device where these are."""
        seen = {name: torch.as_tensor(observation[name]) for name in self.observation_space.spaces}
        if "image" in seen:
            seen["image"] = shrunk(seen["image"], self.shrink)
        return seen


class GoalNetwork(nn.Module):
    """Features [B, features] of what a `View` gives: convolutions for the picture, and the goal as distance and
    bearing."""

    def __init__(self, space: spaces.Dict, config: NetworkConfig) -> None:
        super().__init__()
        size = sum(NUMBERS[name] for name in NUMBERS if name in space.spaces)
        self.eye: nn.Sequential | None = None
        if "image" in space.spaces:
            self.eye = _convolutions(config.channels)
            with torch.no_grad():
                size += self.eye(torch.zeros(1, *(space["image"].shape or ()))).shape[1]
        self.mix = nn.Sequential(nn.Linear(size, config.features), nn.ReLU())

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        velocity = seen["velocity"]
        parts = [velocity[:, :1], velocity[:, 5:]]  # ahead in m/s, to the left in rad/s
        if "goal" in seen:
            ahead, left = seen["goal"][:, 0], seen["goal"][:, 1]
            distance, bearing = torch.hypot(ahead, left), torch.atan2(left, ahead)
            parts.append(torch.stack([distance.log1p(), distance / 4, bearing.sin(), bearing.cos()], dim=1))
        if self.eye is not None:
            parts.append(self.eye(seen["image"].float() / 255 - 0.5))
        return self.mix(torch.cat(parts, dim=1))


def _convolutions(channels: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip((3, *channels), channels):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())
