"""A batch of procedural rooms as fixed-shape tensors, and the distribution they are drawn from.

Distribution (all draws from the seed, see the functions named): rooms 4.4 to 8.4 m on a side and 2.5 to 3.1 m high;
floors of planks, tiles, checker or striped carpet; walls plain with wainscot, striped, dotted, with diamonds or bricks,
two rooms in three with one odd wall (finishes.py); one or two doors, up to eleven pictures and windows (decals.py); up
to three pieces of furniture against the walls (tables, sofas, cabinets, beds), three crates, a partition, two drums or
pillars, a plant, a lamp, two balls, each with a probability and only where it fits (furnishing.py); a warm light near
the middle of the ceiling and, in three rooms of five, a second dimmer one. World axes: y down, floor at y = 0,
ceiling at y = -height, the room centred on the vertical axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sanawm_env.errors import SceneError
from sanawm_env.rooms import decals, finishes, layout, palette
from sanawm_env.rooms.draws import Draws
from sanawm_env.rooms.furnishing import FAR, Furniture, furnish
from sanawm_env.rooms.styles import styled

_DOMAIN = 1


@dataclass(frozen=True, kw_only=True)
class RoomObject:
    """One piece of furniture. centre: metres in the room's frame, y down. radius: of the circle round its footprint."""

    instance: int
    kind: str
    colour: str
    centre: tuple[float, float, float]
    radius: float


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Rooms, batch first; columns are named in layout.py. float32 unless said otherwise.

    seeds int64 [B]; half_size [B, 3] half width (x), height, half depth (z) in metres; primitives [B, 8, 25], the room
    last; materials [B, 29, 30]; decals [B, 42, 12]; lights [B, 2, 6]; ambient [B, 3]; footprints [B, 13, 7] (cx, cz,
    half x, half z, cos, sin, radius); kinds and colours int64 [B, 13] into layout.KINDS and palette.NAMES; heights
    [B, 13] of the objects' tops above the floor.
    """

    seeds: Tensor
    half_size: Tensor
    primitives: Tensor
    materials: Tensor
    decals: Tensor
    lights: Tensor
    ambient: Tensor
    footprints: Tensor
    kinds: Tensor
    colours: Tensor
    heights: Tensor

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def device(self) -> torch.device:
        return self.half_size.device

    def _map(self, change: object) -> Scenes:
        assert callable(change)
        return replace(self, **{field.name: change(getattr(self, field.name)) for field in fields(self)})

    def to(self, device: torch.device | str) -> Scenes:
        """The same rooms on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def select(self, rows: Tensor | Sequence[int] | slice) -> Scenes:
        """Rows by index or mask, in that order; an index may come more than once."""
        index = rows if isinstance(rows, slice | Tensor) else torch.as_tensor(list(rows), dtype=torch.int64)
        if isinstance(index, Tensor):
            index = index.to(self.device)
        return self._map(lambda tensor: tensor[index])

    @classmethod
    def join(cls, parts: Sequence[Scenes]) -> Scenes:
        """The rooms of all parts, which lie on one device."""
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    def write(self, slots: Sequence[int], other: Scenes) -> Scenes:
        """These rooms with those of `other` in the place of some."""
        index = torch.as_tensor(list(slots), device=self.device)
        return replace(
            self,
            **{
                field.name: getattr(self, field.name).index_copy(0, index, getattr(other, field.name).to(self.device))
                for field in fields(self)
            },
        )

    def objects(self, row: int) -> list[RoomObject]:
        """The furniture of one room, in the order of the instance numbers."""
        footprints, heights = self.footprints[row].tolist(), self.heights[row].tolist()
        kinds, colours = self.kinds[row].tolist(), self.colours[row].tolist()
        found = []
        for slot, (x, z, half_x, half_z, _, _, radius) in enumerate(footprints):
            if x >= FAR:
                continue
            found.append(
                RoomObject(
                    instance=layout.INSTANCE_OBJECT + slot,
                    kind=layout.KINDS[kinds[slot]],
                    colour=palette.NAMES[colours[slot]],
                    centre=(x, -heights[slot] / 2, z),
                    radius=(half_x**2 + half_z**2) ** 0.5 + radius,
                )
            )
        return found


def sample_scenes(seeds: Sequence[int] | Tensor, device: torch.device | str = "cpu", *, style: str = "day") -> Scenes:
    """Rooms of the given seeds. A room depends on its seed and style alone; drawn on the CPU, so alike on every device.

    style: how they look, "day" or "night" (styles.py); geometry does not depend on it. Raises SceneError.
    """
    numbers = torch.as_tensor(seeds, dtype=torch.int64, device="cpu").reshape(-1)
    if not len(numbers):
        raise SceneError("sample_scenes got no seed; pass one seed per room, at least one")
    draws = Draws(numbers, _DOMAIN)
    half_x, half_z = draws.uniform(low=2.2, high=4.2), draws.uniform(low=2.2, high=4.2)
    height = draws.uniform(low=2.5, high=3.1)
    furniture = furnish(draws, half_x, half_z, height)
    colours, materials = finishes.objects(draws, furniture)
    materials += [finishes.floor(draws), finishes.ceiling(draws), *finishes.walls(draws)]
    scenes = Scenes(
        seeds=numbers,
        half_size=torch.stack((half_x, height, half_z), dim=1),
        primitives=_with_shell(furniture, half_x, half_z, height),
        materials=torch.stack(materials, dim=2),
        decals=decals.decals(draws, half_x, half_z),
        lights=_lights(draws, half_x, half_z, height),
        ambient=draws.uniform(3, low=0.56, high=0.62) * draws.uniform(1, low=0.9, high=1.1),
        footprints=furniture.footprints,
        kinds=furniture.kind,
        colours=colours,
        heights=furniture.height,
    )
    return styled(scenes, style).to(device)


def _with_shell(furniture: Furniture, half_x: Tensor, half_z: Tensor, height: Tensor) -> Tensor:
    """Primitive table with the room as its last row."""
    zero, one = torch.zeros_like(height), torch.ones_like(height)
    shell = torch.stack((zero, -height / 2, zero, half_x, height / 2, half_z, one, zero), dim=1)
    return torch.cat((furniture.primitives, shell[..., None]), dim=2)


def _lights(draws: Draws, half_x: Tensor, half_z: Tensor, height: Tensor) -> Tensor:
    """Two lights under the ceiling [B, 2, 6]; the second is dark in two rooms of five."""
    place = draws.uniform(layout.LIGHTS, 2, low=-1.0, high=1.0) * torch.tensor([[0.35], [0.7]])
    x, z = place[..., 0] * half_x[:, None], place[..., 1] * half_z[:, None]
    y = -(height[:, None] - draws.uniform(layout.LIGHTS, low=0.25, high=0.5))
    tint = torch.tensor([1.0, 0.95, 0.86]) + 0.10 * draws.uniform(layout.LIGHTS, 3, low=-1.0, high=1.0)
    strength = draws.uniform(layout.LIGHTS, low=0.55, high=0.75)
    second = draws.chance(probability=0.6).float()
    strength = strength * torch.stack((1.0 - 0.25 * second, 0.45 * second), dim=1)
    return torch.cat((torch.stack((x, y, z), dim=-1), tint * strength[..., None]), dim=-1)
