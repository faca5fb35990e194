"""Where the furniture stands: placement without overlap, then the boxes, cylinders and spheres it is made of.

Vectorised over scenes: every slot draws a fixed number of candidate places and takes the first that is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sanawm_env.rooms import layout
from sanawm_env.rooms.collision import footprint_distance
from sanawm_env.rooms.draws import Draws

CANDIDATES = 20
FAR = 1000.0  # metres; where absent footprints and primitives are kept

# Composite furniture as four boxes each: centre (along, up, out from the wall) and half size, in fractions of its size.
_NONE = (0.0, -FAR, 0.0, 0.01, 0.01, 0.01)
_COMPOSITES: tuple[tuple[tuple[float, ...], ...], ...] = (
    # table: top, two side panels, shelf
    ((0, 0.95, 0, 0.5, 0.05, 0.5), (-0.44, 0.45, 0, 0.035, 0.45, 0.44), (0.44, 0.45, 0, 0.035, 0.45, 0.44), _NONE),
    # sofa: seat, back, two arms
    (
        (0, 0.24, 0.04, 0.42, 0.24, 0.46),
        (0, 0.5, -0.38, 0.5, 0.5, 0.12),
        (-0.44, 0.34, 0.12, 0.06, 0.34, 0.38),
        (0.44, 0.34, 0.12, 0.06, 0.34, 0.38),
    ),
    # cabinet: body, two doors, top
    (
        (0, 0.48, -0.02, 0.48, 0.48, 0.46),
        (-0.235, 0.49, 0.45, 0.2, 0.42, 0.04),
        (0.235, 0.49, 0.45, 0.2, 0.42, 0.04),
        (0, 0.98, 0, 0.5, 0.02, 0.5),
    ),
    # bed: base, mattress, headboard, pillow
    (
        (0, 0.2, 0, 0.5, 0.2, 0.5),
        (0, 0.5, 0.02, 0.47, 0.1, 0.47),
        (0, 0.5, -0.48, 0.5, 0.5, 0.02),
        (0, 0.64, -0.33, 0.34, 0.06, 0.1),
    ),
)
_COMPOSITE_LOW = ((1.0, 0.70, 0.65), (1.4, 0.75, 0.75), (0.8, 0.85, 0.40), (1.2, 0.80, 1.80))
_COMPOSITE_HIGH = ((1.5, 0.78, 0.90), (1.9, 0.90, 0.90), (1.3, 2.00, 0.55), (1.5, 1.00, 2.00))
SECOND_COLOUR = ((0, 0, 0, 0), (0, 0, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1))  # parts that take the second colour


@dataclass(frozen=True, kw_only=True)
class Furniture:
    """Placed furniture. kind, composite: int64; footprints: cx cz hx hz cos sin radius; primitives: [B, 8, 24]."""

    kind: Tensor
    composite: Tensor
    footprints: Tensor
    height: Tensor
    primitives: Tensor


@dataclass(frozen=True, kw_only=True)
class _Spot:
    """A place for each scene: centre, yaw as cosine and sine, whether it was free. All [B]."""

    x: Tensor
    z: Tensor
    cos: Tensor
    sin: Tensor
    free: Tensor


class _Placer:
    """Footprints placed so far, and the draws of candidate places."""

    def __init__(self, draws: Draws, half_x: Tensor, half_z: Tensor):
        self.draws, self.half_x, self.half_z = draws, half_x, half_z
        self.footprints: list[Tensor] = []

    def against_wall(self, half_along: Tensor, half_out: Tensor, *, corner: float, gap: float) -> _Spot:
        """A place with its back to a wall, `corner` metres from the room's corners at least."""
        wall = self.draws.integers(CANDIDATES, high=4)
        along = self.draws.uniform(CANDIDATES, low=-1.0, high=1.0)
        sideways = wall >= 2
        length = torch.where(sideways, self.half_x[:, None], self.half_z[:, None])
        depth = torch.where(sideways, self.half_z[:, None], self.half_x[:, None])
        reach = length - half_along[:, None] - corner
        along = along * reach.clamp(min=0.0)
        sign = 1.0 - 2.0 * (wall % 2).float()
        out = sign * (depth - half_out[:, None] - 0.03)
        x, z = torch.where(sideways, along, out), torch.where(sideways, out, along)
        cos = torch.where(sideways, -sign, torch.zeros_like(sign))
        sin = torch.where(sideways, torch.zeros_like(sign), sign)
        return self._first(x, z, cos, sin, half_along, half_out, gap, reach > 0)

    def anywhere(self, half: Tensor, *, margin: float, gap: float) -> _Spot:
        """A place at any yaw, `margin` metres from the walls at least."""
        unit = self.draws.uniform(3, CANDIDATES, low=-1.0, high=1.0)
        reach_x, reach_z = self.half_x[:, None] - half[:, None] - margin, self.half_z[:, None] - half[:, None] - margin
        x, z, yaw = unit[:, 0] * reach_x, unit[:, 1] * reach_z, unit[:, 2] * torch.pi
        return self._first(x, z, yaw.cos(), yaw.sin(), half, half, gap, (reach_x > 0) & (reach_z > 0))

    def in_corner(self, half: Tensor, *, gap: float) -> _Spot:
        """A place in one of the four corners, the nearest free one of a random order."""
        corner = self.draws.integers(CANDIDATES, high=4)
        inset = self.draws.uniform(CANDIDATES, low=0.06, high=0.25) + half[:, None]
        x = (1.0 - 2.0 * (corner % 2).float()) * (self.half_x[:, None] - inset)
        z = (1.0 - 2.0 * (corner // 2).float()) * (self.half_z[:, None] - inset)
        return self._first(x, z, torch.ones_like(x), torch.zeros_like(x), half, half, gap, x.abs() > 0)

    def _first(
        self, x: Tensor, z: Tensor, cos: Tensor, sin: Tensor, along: Tensor, out: Tensor, gap: float, inside: Tensor
    ) -> _Spot:
        """First candidate whose three covering circles keep `gap` metres to everything placed before."""
        free = inside
        for offset in (-1.0, 0.0, 1.0):
            shift = offset * (along - out).clamp(min=0.0)[:, None]
            points = torch.stack((x + shift * cos, z + shift * sin), dim=-1)
            for placed in self.footprints:
                near = footprint_distance(placed[:, None], points)[..., 0]
                free = free & (near > 1.1 * out[:, None] + gap)
        order = torch.arange(CANDIDATES, 0, -1, device=x.device)
        pick = (free * order).argmax(dim=1, keepdim=True)
        x, z, cos, sin, free = (value.gather(1, pick)[:, 0] for value in (x, z, cos, sin, free))
        return _Spot(x=x, z=z, cos=cos, sin=sin, free=free)

    def keep(self, spot: _Spot, present: Tensor, half_x: Tensor, half_z: Tensor, radius: Tensor) -> Tensor:
        """Remember a footprint (rectangle widened by radius); returns which scenes have it."""
        present = present & spot.free
        x = torch.where(present, spot.x, torch.full_like(spot.x, FAR))
        self.footprints.append(torch.stack((x, spot.z, half_x, half_z, spot.cos, spot.sin, radius), dim=-1))
        return present


def _upright(spot: _Spot, present: Tensor, low: Tensor, half: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Primitive row [B, 8] standing at height `low` above the floor (y points down)."""
    y = torch.where(present, -(low + half[1]), torch.full_like(low, FAR))
    return torch.stack((spot.x, y, spot.z, *half, spot.cos, spot.sin), dim=-1)


def _composite_boxes(spot: _Spot, present: Tensor, kind: Tensor, size: Tensor) -> Tensor:
    """The four boxes [B, 4, 8] of composite furniture of size (along, up, out) [B, 3]."""
    parts = torch.tensor(_COMPOSITES)[kind]
    along, up, out = (parts[..., i] * size[:, i, None] for i in range(3))
    half = parts[..., 3:] * size[:, None]
    cos, sin = spot.cos[:, None].expand_as(along), spot.sin[:, None].expand_as(along)
    x = spot.x[:, None] + cos * along - sin * out
    z = spot.z[:, None] + sin * along + cos * out
    y = torch.where(present[:, None], -up, torch.full_like(up, FAR))
    return torch.stack((x, y, z, half[..., 0], half[..., 1], half[..., 2], cos, sin), dim=-1)


class _Furnisher:
    """What has been put into the rooms so far, in the order of the object slots."""

    def __init__(self, draws: Draws, half_x: Tensor, half_z: Tensor, height: Tensor):
        self.draws, self.height, self.zero = draws, height, torch.zeros_like(height)
        self.placer = _Placer(draws, half_x, half_z)
        self.density = draws.uniform(low=0.55, high=1.0)
        self.narrow = torch.minimum(half_x, half_z) <= 2.6
        self.kinds: list[Tensor] = []
        self.tops: list[Tensor] = []
        self.boxes: list[Tensor] = []
        self.rounds: list[Tensor] = []
        self.spheres: list[Tensor] = []

    def _note(self, kind: Tensor | str, top: Tensor) -> None:
        number = torch.full_like(top, layout.KINDS.index(kind), dtype=torch.int64) if isinstance(kind, str) else kind
        self.kinds.append(number)
        self.tops.append(top)

    def _often(self, share: float) -> Tensor:
        return self.draws.uniform() < share * self.density

    def composite(self, kind: Tensor, share: float) -> None:
        """A table, sofa, cabinet or bed, its back to a wall."""
        low, high = torch.tensor(_COMPOSITE_LOW)[kind], torch.tensor(_COMPOSITE_HIGH)[kind]
        size = low + (high - low) * self.draws.uniform(3)
        along, out = size[:, 0] / 2, size[:, 2] / 2
        spot = self.placer.against_wall(along, out, corner=0.05, gap=0.12)
        here = self.placer.keep(spot, self._often(share), along, out, self.zero)
        self.boxes.append(_composite_boxes(spot, here, kind, size))
        self._note(kind, size[:, 1])

    def crate(self) -> None:
        half_x, half_y, half_z = self.draws.uniform(3, low=0.17, high=0.38).unbind(1)
        spot = self.placer.anywhere(torch.maximum(half_x, half_z) * 1.3, margin=0.05, gap=0.6)
        here = self.placer.keep(spot, self._often(1.0), half_x, half_z, self.zero)
        self.boxes.append(_upright(spot, here, self.zero, (half_x, half_y, half_z))[:, None])
        self._note("crate", 2 * half_y)

    def partition(self) -> None:
        """A thin wall that stands out into a wide room."""
        reach, thin = self.draws.uniform(low=0.45, high=0.9), torch.full_like(self.zero, 0.07)
        spot = self.placer.against_wall(thin, reach, corner=1.3, gap=0.3)
        here = self.placer.keep(spot, (self.draws.uniform() < 0.5) & ~self.narrow, thin, reach, self.zero)
        self.boxes.append(_upright(spot, here, self.zero, (thin, self.height / 2, reach))[:, None])
        self._note("partition", self.height)

    def drum(self, pillars: float) -> None:
        """A drum, or with probability `pillars` a pillar up to the ceiling."""
        pillar = self.draws.chance(probability=pillars)
        radius = self.draws.uniform(low=0.17, high=0.32)
        half_y = torch.where(pillar, self.height / 2, self.draws.uniform(low=0.2, high=0.45))
        spot = self.placer.anywhere(radius, margin=0.05, gap=0.6)
        here = self.placer.keep(spot, self._often(0.9), self.zero, self.zero, radius)
        self.rounds.append(_upright(spot, here, self.zero, (radius, half_y, radius)))
        self._note(layout.KINDS.index("drum") + pillar.long(), 2 * half_y)

    def plant(self) -> Tensor:
        """A pot in a corner; returns the leaves."""
        pot, leaves = self.draws.uniform(low=0.14, high=0.2), self.draws.uniform(low=0.26, high=0.38)
        return self._topped("plant", 0.8, leaves, (pot, 1.2 * pot, pot), 2.2 * pot)

    def lamp(self) -> Tensor:
        """A pole in a corner; returns the shade."""
        pole, shade = torch.full_like(self.zero, 0.035), self.draws.uniform(low=0.18, high=0.26)
        rise = self.draws.uniform(low=0.6, high=0.75)
        return self._topped("lamp", 0.6, shade, (pole, rise, pole), 2 * rise - 0.05)

    def _topped(
        self, kind: str, share: float, ball: Tensor, stem: tuple[Tensor, Tensor, Tensor], low: Tensor
    ) -> Tensor:
        """A stem with a ball that begins at height `low`; returns the ball."""
        spot = self.placer.in_corner(ball, gap=0.05)
        here = self.placer.keep(spot, self._often(share), self.zero, self.zero, ball)
        self.rounds.append(_upright(spot, here, self.zero, stem))
        self._note(kind, low + 2 * ball)
        return _upright(spot, here, low, (ball, ball, ball))

    def ball(self) -> None:
        radius = self.draws.uniform(low=0.14, high=0.34)
        spot = self.placer.anywhere(radius, margin=0.05, gap=0.6)
        here = self.placer.keep(spot, self._often(0.9), self.zero, self.zero, radius)
        self.spheres.append(_upright(spot, here, self.zero, (radius, radius, radius)))
        self._note("ball", 2 * radius)


def furnish(draws: Draws, half_x: Tensor, half_z: Tensor, height: Tensor) -> Furniture:
    """Furniture of rooms of the given half sizes and heights (metres, [B])."""
    put = _Furnisher(draws, half_x, half_z, height)
    composite = torch.stack([draws.integers(high=4) for _ in range(layout.COMPOSITES)], dim=1)
    for slot, share in enumerate((1.0, 0.9, 0.7)):
        put.composite(composite[:, slot], share)
    for _ in range(layout.CRATES):
        put.crate()
    put.partition()
    for pillars in (0.0, 0.35):
        put.drum(pillars)
    leaves, shade = put.plant(), put.lamp()
    for _ in range(layout.BALLS):
        put.ball()
    singles = torch.stack((*put.rounds, *put.spheres, leaves, shade), dim=1)
    return Furniture(
        kind=torch.stack(put.kinds, dim=1),
        composite=composite,
        footprints=torch.stack(put.placer.footprints, dim=1),
        height=torch.stack(put.tops, dim=1),
        primitives=torch.cat((*put.boxes, singles), dim=1).transpose(1, 2).contiguous(),
    )
