"""Colour of what rays meet: pattern, doors and pictures, ambient light, two lamps with shadows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sanawm_env.rooms import layout
from sanawm_env.rooms.geometry import Surroundings, Vector
from sanawm_env.rooms.surfaces import Surface, Tables, gather
from sanawm_env.rooms.textures import edge_cover, pattern


class Decal(NamedTuple):
    """The decal nearest along the wall: its columns [N, 42, R], slot [N, R], cover [N, R] of its outline by a ray."""

    columns: Tensor
    slot: Tensor
    u: Tensor
    v: Tensor
    cover: Tensor


def nearest_decal(tables: Tables, hit: Surface) -> Decal:
    wall = (hit.surface - layout.WALL).clamp(0, 3)
    first = wall * layout.DECALS_PER_WALL
    centres, halves = tables.decals[:, layout.DECAL_BOX], tables.decals[:, layout.DECAL_BOX + 2]
    slots = range(layout.DECALS_PER_WALL)
    gaps = [(hit.u - centres.gather(1, first + k)).abs() - halves.gather(1, first + k) for k in slots]
    left = torch.where(gaps[0] < gaps[1], 0, 1)
    nearest = first + torch.where(gaps[2] < torch.minimum(gaps[0], gaps[1]), 2, left)
    columns = gather(tables.decals, nearest)
    u, v = hit.u - columns[:, layout.DECAL_BOX], hit.v - columns[:, layout.DECAL_BOX + 1]
    outside = edge_cover(u.abs() - columns[:, layout.DECAL_BOX + 2], hit.width_u)
    cover = outside * edge_cover(v.abs() - columns[:, layout.DECAL_BOX + 3], hit.width_v)
    return Decal(columns, nearest, u, v, cover * (hit.surface >= layout.WALL))


def _paint(decal: Decal, hit: Surface, base: tuple[Tensor, ...], glow: Tensor) -> tuple[list[Tensor], Tensor]:
    """Colour with the decal over the wall, and the share of it that glows."""
    columns, width = decal.columns, torch.maximum(hit.width_u, hit.width_v)
    rim = columns[:, layout.DECAL_FRAME]
    within = edge_cover(decal.u.abs() - columns[:, layout.DECAL_BOX + 2] + rim, hit.width_u)
    within = within * edge_cover(decal.v.abs() - columns[:, layout.DECAL_BOX + 3] + rim, hit.width_v)
    inner = [columns[:, layout.DECAL_GROUND + c] for c in range(3)]
    for shape in range(layout.SHAPES):
        part = columns[:, layout.DECAL_SHAPES + shape * layout.SHAPE_COLUMNS :][:, : layout.SHAPE_COLUMNS].unbind(1)
        x, y = decal.u - part[0], decal.v - part[1]
        x, y = part[5] * x + part[6] * y, part[5] * y - part[6] * x
        over_x, over_y = x.abs() - part[2] + part[4], y.abs() - part[3] + part[4]
        beyond = torch.hypot(over_x.clamp(min=0.0), over_y.clamp(min=0.0))
        cover = edge_cover(beyond + torch.maximum(over_x, over_y).clamp(max=0.0) - part[4], width)
        inner = [torch.lerp(colour, part[7 + c], cover) for c, colour in enumerate(inner)]
    frame = [columns[:, layout.DECAL_FRAME_COLOUR + c] for c in range(3)]
    colour = [torch.lerp(b, torch.lerp(f, i, within), decal.cover) for b, f, i in zip(base, frame, inner, strict=True)]
    return colour, torch.lerp(glow, columns[:, layout.DECAL_GLOW] * within, decal.cover)


def _corners(tables: Tables, hit: Surface) -> Tensor:
    """Ambient share [N, R], less where walls, floor and ceiling meet."""
    room = tables.primitives[:, 3:6, layout.SHELL, None]
    height = 2.0 * room[:, 1]
    gaps = (room[:, 0] - hit.point.x.abs(), room[:, 2] - hit.point.z.abs(), -hit.point.y, height + hit.point.y)
    facing = (hit.normal.x.abs(), hit.normal.z.abs(), -hit.normal.y, hit.normal.y)
    share = torch.ones_like(hit.depth)
    for gap, toward in zip(gaps, facing, strict=True):
        share = share * (1.0 - 0.30 * torch.exp(gap.clamp(min=0.0) * -4.0) * (1.0 - toward.abs()))
    return share


def shade(tables: Tables, hit: Surface, around: Surroundings) -> list[Tensor]:
    """Red, green and blue [N, R] in [0, 1]."""
    material = gather(tables.materials, hit.surface)
    base = pattern(material, hit.u, hit.v, hit.width_u, hit.width_v)
    colour, glow = _paint(nearest_decal(tables, hit), hit, base, material[:, layout.GLOW])
    ambient = around.open * _corners(tables, hit) * (1.0 - 0.10 * hit.normal.y)
    strengths = []
    for index, arrives in enumerate(around.light):
        lamp = tables.lights[:, index]
        to = Vector(*(lamp[:, i, None] - p for i, p in enumerate(hit.point)))
        square = to.dot(to).clamp(min=1e-4)
        strengths.append(arrives * (hit.normal.dot(to) * square.rsqrt()).clamp(min=0.0) / (0.75 + 0.11 * square))
    out = []
    for c in range(3):
        light = tables.ambient[:, c, None] * ambient
        for index, strength in enumerate(strengths):
            light = light + tables.lights[:, index, 3 + c, None] * strength
        bright = colour[c] * torch.lerp(light, torch.ones_like(light), glow)
        out.append(bright.clamp(0.0, 1.0))
    return out
