"""Doors, windows and pictures on the walls: rows of the decal table."""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.rooms import layout, palette
from sanawm_env.rooms.draws import Draws

NOTHING, PICTURE, DOOR, WINDOW = 0, 1, 2, 3
_FRAMES = torch.tensor([[0.20, 0.16, 0.14], [0.72, 0.56, 0.24], [0.93, 0.92, 0.90], [0.48, 0.30, 0.18]])
_SKY, _LAWN = torch.tensor([0.66, 0.82, 0.96]), torch.tensor([0.44, 0.64, 0.36])
_BRASS = torch.tensor([0.86, 0.70, 0.30])


def _shape(centre: Tensor, half: Tensor, radius: Tensor, colour: Tensor, turn: Tensor | None = None) -> Tensor:
    """Shape columns [B, 12, 10]: a box of rounded corners, turned by `turn` radians, metres from the decal's centre."""
    angle = torch.zeros_like(radius) if turn is None else turn
    turned = torch.stack((angle.cos(), angle.sin()), dim=-1)
    return torch.cat((centre, half, radius[..., None], turned, colour.expand(*radius.shape, 3)), dim=-1)


def _pair(u: Tensor, v: Tensor) -> Tensor:
    return torch.stack((u, v), dim=-1)


def _picture(draws: Draws, widest: Tensor) -> Tensor:
    """A framed picture: ground, a band below, a disc, a turned bar."""
    n = layout.DECALS
    half_u = torch.minimum(draws.uniform(n, low=0.28, high=0.6), widest)
    half_v = draws.uniform(n, low=0.26, high=0.5)
    small = torch.minimum(half_u, half_v)
    colours = palette.TABLE[draws.integers(n, 4, high=len(palette.TABLE))]
    ground = 0.55 * colours[..., 0, :] + 0.40
    zero = torch.zeros_like(small)
    band = _shape(
        _pair(zero, -half_v), _pair(half_u, half_v * draws.uniform(n, low=0.5, high=1.0)), zero, colours[..., 1, :]
    )
    radius = small * draws.uniform(n, low=0.28, high=0.5)
    place = draws.uniform(n, 4, low=-0.5, high=0.5)
    disc = _shape(_pair(place[..., 0] * half_u, 0.3 * half_v), _pair(radius, radius), radius, colours[..., 2, :])
    size = _pair(small * draws.uniform(n, low=0.15, high=0.4), small * draws.uniform(n, low=0.3, high=0.6))
    bar = _shape(
        _pair(place[..., 1] * half_u, place[..., 2] * half_v), size, zero, colours[..., 3, :], 6 * place[..., 3]
    )
    height = draws.uniform(n, low=1.4, high=1.7)
    frame = _FRAMES[draws.integers(n, high=len(_FRAMES))]
    return _assemble(height, half_u, half_v, 0.05, frame, ground, 0.0, (band, disc, bar))


def _door(draws: Draws, widest: Tensor) -> Tensor:
    """A door with two panels and a handle."""
    n = layout.DECALS
    half_u, half_v = torch.minimum(torch.full_like(widest, 0.5), widest), torch.full_like(widest, 1.05)
    paint = torch.cat((palette.WOODS, palette.WALLS[:4], palette.ACCENTS[:4]))
    leaf = paint[draws.integers(1, high=len(paint))].expand(-1, n, 3)
    zero = torch.zeros_like(half_u)
    upper = _shape(_pair(zero, zero + 0.42), _pair(0.55 * half_u, zero + 0.38), zero + 0.02, leaf * 0.72)
    lower = _shape(_pair(zero, zero - 0.50), _pair(0.55 * half_u, zero + 0.32), zero + 0.02, leaf * 0.72)
    knob = _shape(_pair(0.74 * half_u, zero - 0.06), _pair(zero + 0.05, zero + 0.05), zero + 0.05, _BRASS)
    frame = torch.tensor([0.92, 0.91, 0.88]).expand(len(leaf), n, 3)
    return _assemble(half_v, half_u, half_v, 0.08, frame, leaf, 0.0, (upper, lower, knob))


def _window(draws: Draws, widest: Tensor) -> Tensor:
    """A window on a lawn under the sky, with two bars."""
    n = layout.DECALS
    half_u = torch.minimum(draws.uniform(n, low=0.5, high=0.8), widest)
    half_v = draws.uniform(n, low=0.45, high=0.65)
    frame = torch.tensor([0.95, 0.95, 0.93]).expand(len(half_u), n, 3)
    zero = torch.zeros_like(half_u)
    lawn = _shape(_pair(zero, -half_v), _pair(half_u, half_v * draws.uniform(n, low=0.4, high=0.8)), zero, _LAWN)
    upright = _shape(_pair(zero, zero), _pair(zero + 0.025, half_v), zero, frame)
    across = _shape(_pair(zero, 0.2 * half_v), _pair(half_u, zero + 0.025), zero, frame)
    return _assemble(zero + 1.6, half_u, half_v, 0.07, frame, _SKY.expand_as(frame), 0.8, (lawn, upright, across))


def _assemble(
    height: Tensor, half_u: Tensor, half_v: Tensor, frame: float, edge: Tensor, ground: Tensor, glow: float,
    shapes: tuple[Tensor, Tensor, Tensor],
) -> Tensor:  # fmt: skip
    """Decal rows [B, 12, columns], centred at u = 0."""
    box = torch.stack((torch.zeros_like(height), height, half_u, half_v, torch.full_like(height, frame)), dim=-1)
    return torch.cat((box, edge, ground, torch.full_like(height, glow)[..., None], *shapes), dim=-1)


def decals(draws: Draws, half_x: Tensor, half_z: Tensor) -> Tensor:
    """Decal table [B, columns, 12]: slot 3 * wall + k lies in the k-th third of the wall; one or two doors a room."""
    n = layout.DECALS
    length = torch.stack((half_z, half_z, half_x, half_x), dim=1).repeat_interleave(layout.DECALS_PER_WALL, dim=1)
    third = length / 3
    widest = 0.8 * third
    chance = draws.uniform(n)
    kind = torch.where(chance < 0.60, PICTURE, torch.where(chance < 0.72, WINDOW, NOTHING))
    slots = torch.arange(n)
    first, second = draws.integers(1, high=n), draws.integers(1, high=n)
    second = torch.where(draws.chance(1, probability=0.5), second, first)
    kind = torch.where((slots == first) | (slots == second), DOOR, kind)
    options = torch.stack((_picture(draws, widest), _door(draws, widest), _window(draws, widest)), dim=2)
    index = (kind - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, layout.DECAL_COLUMNS)
    rows = options.gather(2, index)[:, :, 0]
    slack = (third - rows[..., layout.DECAL_BOX + 2] - 0.04).clamp(min=0.0)
    offset = (slots % layout.DECALS_PER_WALL - 1) * 2 * third + slack * draws.uniform(n, low=-1.0, high=1.0)
    rows[..., layout.DECAL_BOX] = offset
    rows[..., layout.DECAL_BOX + 1] = torch.where(
        kind == NOTHING, torch.full_like(offset, -1000.0), rows[..., layout.DECAL_BOX + 1]
    )
    return rows.transpose(1, 2).contiguous()
