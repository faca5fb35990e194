"""Demonstrations as they might have looked as well: shifted, brighter or darker, in a mirror."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sanawm_env.actions import read_action_map
from sanawm_env.errors import ConfigError
from sanawm_env.policies.cloning_data import Demonstrations

_SIDEWAYS = ("left", "roll", "yaw", "w")  # action columns whose sign a mirror turns
_KEPT = ("forward", "up", "pitch", "v")
_VELOCITY = (1.0, -1.0, 1.0, -1.0, 1.0, -1.0)  # forward, left, up, roll, pitch, yaw in a mirror


@dataclass(frozen=True, kw_only=True)
class Augment:
    """shift: pixels of the shrunk picture, at most, to each side. brightness: part of the grey level that is added or
    taken, at most. mirror: whether half of the pictures are seen in a mirror, with all else that then turns around."""

    shift: int = 2
    brightness: float = 0.15
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.shift < 0 or not 0 <= self.brightness < 1:
            raise ConfigError(
                f"shift is {self.shift}, brightness {self.brightness}; allowed are shift >= 0, 0 <= brightness < 1."
            )


def check_mirror(config: Augment, space: Any, action_map: str) -> None:
    """ConfigError where it is not known what a mirror makes of an action."""
    columns = read_action_map(action_map).columns
    if config.mirror and not set(columns) <= {*_SIDEWAYS, *_KEPT}:
        raise ConfigError(
            f"actions ({', '.join(columns)}) cannot be mirrored, allowed are {', '.join(_KEPT + _SIDEWAYS)}; use "
            "augment.mirror=false."
        )


def augmented(batch: Demonstrations, config: Augment, action_map: str, dice: torch.Generator) -> Demonstrations:
    """A batch with pictures as float32 grey levels. dice: a generator on the device."""
    count, device = len(batch), batch.goal.device
    pictures = _shifted(batch.pictures, config.shift, dice).float()
    gain = 1 + config.brightness * (2 * torch.rand(count, 1, 1, 1, generator=dice, device=device) - 1)
    pictures = (pictures * gain).clamp(max=255.0)
    if not config.mirror:
        return replace(batch, pictures=pictures)
    turned = torch.rand(count, generator=dice, device=device) < 0.5
    columns = read_action_map(action_map).columns

    def mirrored(values: Tensor, signs: tuple[float, ...]) -> Tensor:
        turns = turned.view(-1, *[1] * (values.ndim - 1))
        return torch.where(turns, values * torch.tensor(signs, device=device), values)

    return replace(
        batch,
        pictures=torch.where(turned[:, None, None, None], pictures.flip(-1), pictures),
        goal=mirrored(batch.goal, (1.0, -1.0, 1.0)),
        velocity=mirrored(batch.velocity, _VELOCITY),
        actions=mirrored(batch.actions, tuple(-1.0 if name in _SIDEWAYS else 1.0 for name in columns)),
    )


def _shifted(pictures: Tensor, most: int, dice: torch.Generator) -> Tensor:
    """Each picture [B, 3, h, w] moved by up to so many pixels, its edge repeated."""
    if not most:
        return pictures
    count, _, height, width = pictures.shape
    padded = nn.functional.pad(pictures.float(), (most,) * 4, mode="replicate").to(pictures.dtype)
    by = torch.randint(0, 2 * most + 1, (2, count, 1), generator=dice, device=pictures.device)
    rows, columns = (by[0] + torch.arange(height, device=by.device)), (by[1] + torch.arange(width, device=by.device))
    world = torch.arange(count, device=by.device)[:, None, None]
    return padded[world, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
