"""Looks of rooms: the same walls and furniture in other light and other colours. "day" is how rooms are drawn.

A style replaces colours and light of finished rooms. What it draws has a stream of its own, so that rooms of "day" stay
as they are, and geometry, paths, instances and names of colours are the same in all styles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sanawm_env.errors import SceneError, nearest
from sanawm_env.rooms import layout, palette
from sanawm_env.rooms.draws import Draws

if TYPE_CHECKING:
    from sanawm_env.rooms.scenes import Scenes

STYLES = ("day", "night")
_DOMAIN = 4
_SHELL = slice(layout.FLOOR, layout.SURFACES)  # floor, ceiling and walls among the surfaces
_FLOORS = torch.tensor([[0.10, 0.11, 0.14], [0.16, 0.08, 0.12], [0.07, 0.13, 0.13]])
_WALLS = torch.tensor(
    [[0.62, 0.10, 0.34], [0.10, 0.36, 0.62], [0.40, 0.14, 0.66], [0.06, 0.46, 0.40], [0.70, 0.28, 0.06]]
)
_LINES = torch.tensor([[0.10, 0.95, 0.85], [1.0, 0.30, 0.75], [0.98, 0.85, 0.20], [0.55, 1.0, 0.35]])
_SKY, _GROUND = torch.tensor([0.05, 0.07, 0.20]), torch.tensor([0.02, 0.05, 0.06])
_TINTS = torch.tensor([[1.0, 0.42, 0.62], [0.40, 0.72, 1.0], [1.0, 0.66, 0.28], [0.58, 0.48, 1.0]])


def styled(scenes: Scenes, style: str) -> Scenes:
    """The rooms in another style; they lie on the CPU. SceneError for a style that is not there.

    "night": floors nearly black, walls of deep colours with bright second colours in their patterns, a dark sky in the
    windows, little and bluish ambient light, two lamps of different colours.
    """
    if style not in STYLES:
        raise SceneError(f"style is {style!r}; {nearest(style, STYLES)}")
    if style == "day":
        return scenes
    draws = Draws(scenes.seeds, _DOMAIN)
    materials = scenes.materials.clone()
    materials[:, :9, _SHELL] = _colours(draws)
    return replace(
        scenes, materials=materials, decals=_windows(scenes.decals), lights=_lights(draws, scenes.lights),
        ambient=torch.tensor([0.20, 0.22, 0.34]) * draws.uniform(1, low=0.8, high=1.2),
    )  # fmt: skip


def _colours(draws: Draws) -> Tensor:
    """Colours A, B and C [B, 9, 6] of floor, ceiling and walls; one wall is of another colour than the others."""
    floor, ceiling = _drawn(_FLOORS, draws), 0.5 * _drawn(_FLOORS, draws)
    wall, odd, line = _drawn(_WALLS, draws), _drawn(_WALLS, draws), _drawn(_LINES, draws)
    which = draws.integers(high=4)
    rows = [torch.cat((floor, 2.2 * floor, 0.25 * line), dim=1), torch.cat((ceiling, ceiling, 0.35 * line), dim=1)]
    for number in range(4):
        own = torch.where((which == number)[:, None], odd, wall)
        rows.append(torch.cat((own, line, 0.3 * own), dim=1))
    return torch.stack(rows, dim=2)


def _drawn(table: Tensor, draws: Draws) -> Tensor:
    """Colours [B, 3] of a table, each a little off."""
    chosen = table[draws.integers(high=len(table))]
    return palette.jitter(chosen, draws.uniform(3), 0.03)


def _windows(decals: Tensor) -> Tensor:
    """Decals whose windows, the ones that glow, show the night; lawns are their first shapes."""
    dark, lawn = decals.clone(), layout.DECAL_SHAPES + 7
    dark[:, layout.DECAL_GROUND : layout.DECAL_GROUND + 3] = _SKY[None, :, None]
    dark[:, lawn : lawn + 3] = _GROUND[None, :, None]
    return torch.where(decals[:, layout.DECAL_GLOW, None] > 0, dark, decals)


def _lights(draws: Draws, lights: Tensor) -> Tensor:
    """Lamps [B, 2, 6] in their places, of two different tints, the second as bright as the first."""
    first = draws.integers(high=len(_TINTS))
    second = (first + 1 + draws.integers(high=len(_TINTS) - 1)) % len(_TINTS)
    tints = torch.stack((_TINTS[first], _TINTS[second]), dim=1)
    strength = draws.uniform(layout.LIGHTS, low=0.55, high=0.8)
    return torch.cat((lights[..., :3], tints * strength[..., None]), dim=-1)
