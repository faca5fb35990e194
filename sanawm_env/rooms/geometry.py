"""Rays against the primitives of a scene. Written for fusion: [N, K, R] values exist only inside reductions over K.

N frames, K primitives, R rays. A ray is origin + t * direction with a direction whose camera z is 1, so t is z-depth.
Every primitive is convex, so a ray crosses it in one interval [enter, leave] of t (empty when enter > leave).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sanawm_env.rooms.layout import BOXES, CYLINDERS, PRIMITIVES, SHELL

_TINY = 1e-9  # added before division: keeps a ray along an axis finite, moves no other visibly
_NUMBER_BITS = 31  # the low five bits of a depth's float32 pattern carry the primitive's number
_NEVER = 1e6
_CONTACT = 7.0  # 1/m, how fast contact shading falls off
_DARKENING = 14.0  # 1/m, how fast a shadow deepens with the light's way through furniture


class Vector(NamedTuple):
    """Three components as separate tensors, of shapes that broadcast."""

    x: Tensor
    y: Tensor
    z: Tensor

    def dot(self, other: Vector) -> Tensor:
        return self.x * other.x + self.y * other.y + self.z * other.z


class Interval(NamedTuple):
    enter: Tensor
    leave: Tensor


def turn(cos: Tensor, sin: Tensor, vector: Vector) -> Vector:
    """World vector in the frame of a body of the given yaw."""
    return Vector(cos * vector.x + sin * vector.z, vector.y, cos * vector.z - sin * vector.x)


def _slab(start: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the entry into -half <= start + t direction <= half, and the exit."""
    inverse = (direction + _TINY).reciprocal()
    middle, reach = start * inverse, inverse.abs() * half
    return reach + middle, reach - middle


def box_interval(start: Vector, direction: Vector, half: Vector) -> Interval:
    """Interval within a box; start and direction in its frame."""
    x, y, z = (_slab(s, d, h) for s, d, h in zip(start, direction, half, strict=True))
    enter = -torch.minimum(torch.minimum(x[0], y[0]), z[0])
    return Interval(enter, torch.minimum(torch.minimum(x[1], y[1]), z[1]))


def _quadratic(a: Tensor, b: Tensor, c: Tensor) -> Interval:
    """Where a t^2 + 2 b t + c <= 0; an empty interval where nowhere."""
    under, inverse = b * b - a * c, (a + _TINY).reciprocal()
    root = torch.where(under < 0.0, -_NEVER, under.clamp(min=0.0).sqrt())
    return Interval((-b - root) * inverse, (root - b) * inverse)


def cylinder_interval(start: Vector, direction: Vector, half: Vector) -> Interval:
    """Interval within an upright cylinder of radius half.x."""
    around = _quadratic(
        direction.x * direction.x + direction.z * direction.z,
        start.x * direction.x + start.z * direction.z,
        start.x * start.x + start.z * start.z - half.x * half.x,
    )
    early, late = _slab(start.y, direction.y, half.y)
    return Interval(torch.maximum(around.enter, -early), torch.minimum(around.leave, late))


def sphere_interval(start: Vector, direction: Vector, half: Vector) -> Interval:
    """Interval within a sphere of radius half.x."""
    return _quadratic(direction.dot(direction), start.dot(direction), start.dot(start) - half.x * half.x)


class Body(NamedTuple):
    """Bodies as columns: centre, half size (radius for round ones), cosine and sine of the yaw."""

    centre: Vector
    half: Vector
    cos: Tensor
    sin: Tensor

    def local(self, point: Vector) -> Vector:
        """World points in the bodies' frames."""
        offset = Vector(point.x - self.centre.x, point.y - self.centre.y, point.z - self.centre.z)
        return turn(self.cos, self.sin, offset)


def body(columns: Tensor) -> Body:
    """Bodies [N, K, 1] of primitive rows [N, 8, K]."""
    x, y, z, half_x, half_y, half_z, cos, sin = (columns[:, i, :, None] for i in range(8))
    return Body(Vector(x, y, z), Vector(half_x, half_y, half_z), cos, sin)


class Part(NamedTuple):
    """Primitives of one kind: their numbers, and the interval in which a ray is inside one."""

    numbers: slice | Tensor
    interval: Callable[[Vector, Vector, Vector], Interval]

    def tags(self, device: torch.device) -> Tensor:
        """The numbers as int32 [1, K, 1]."""
        return torch.arange(PRIMITIVES, dtype=torch.int32, device=device)[self.numbers][None, :, None]


ALL_PARTS: tuple[Part, ...] = (
    Part(slice(0, BOXES), box_interval),
    Part(slice(BOXES, BOXES + CYLINDERS), cylinder_interval),
    Part(slice(BOXES + CYLINDERS, PRIMITIVES), sphere_interval),
)


def present_parts(primitives: Tensor) -> tuple[Part, ...]:
    """The parts without the primitives that are absent (below the floor) in all of the frames [N, 8, 25]."""
    numbers = torch.arange(PRIMITIVES, device=primitives.device)
    there = (primitives[:, 1, :PRIMITIVES] < 0.0).any(dim=0)
    parts = [Part(numbers[part.numbers][there[part.numbers]], part.interval) for part in ALL_PARTS]
    return tuple(part for part in parts if len(part.numbers))  # type: ignore[arg-type]


def nearest_hit(
    primitives: Tensor, origin: Vector, direction: Vector, parts: tuple[Part, ...] = ALL_PARTS
) -> tuple[Tensor, Tensor]:
    """Depth t [N, R] and number [N, R] (int64, SHELL for the room) of what each ray meets first.

    primitives [N, 8, 25]; origin components [N, 1], direction components [N, R]. The number travels in the low bits of
    the depth, so one minimum finds both; that rounds depths down by at most 4e-6 of their value.
    """
    room = body(primitives[:, :, SHELL:])
    leave = box_interval(room.local(_rays(origin)), _rays(direction), room.half).leave[:, 0]
    best = (leave.clamp(min=1e-3).view(torch.int32) & ~_NUMBER_BITS) | SHELL
    for part in parts:
        bodies = body(primitives[:, :, part.numbers])
        start = bodies.local(_rays(origin))
        hit = part.interval(start, turn(bodies.cos, bodies.sin, _rays(direction)), bodies.half)
        meets = (hit.enter < hit.leave) & (hit.enter > 1e-3)
        depth = torch.where(meets, hit.enter, _NEVER)
        tagged = (depth.view(torch.int32) & ~_NUMBER_BITS) | part.tags(depth.device)
        best = torch.minimum(best, tagged.amin(dim=1))
    return (best & ~_NUMBER_BITS).view(torch.float32), (best & _NUMBER_BITS).long()


def _rays(vector: Vector) -> Vector:
    """[N, R] -> [N, 1, R]"""
    return Vector(*(component[:, None] for component in vector))


class Surroundings(NamedTuple):
    """light: [N, R] per light, share of the light that arrives; open: [N, R], 1 far from furniture, less beside it."""

    light: tuple[Tensor, ...]
    open: Tensor


def _gap(part: Part, point: Vector, half: Vector) -> Tensor:
    """Distance from a point (in the body's frame) to the body's surface, zero inside."""
    if part.interval is sphere_interval:
        return (point.dot(point).sqrt() - half.x).clamp(min=0.0)
    up = (point.y.abs() - half.y).clamp(min=0.0)
    if part.interval is cylinder_interval:
        side = ((point.x * point.x + point.z * point.z).sqrt() - half.x).clamp(min=0.0)
        return (side * side + up * up).sqrt()
    x, z = (point.x.abs() - half.x).clamp(min=0.0), (point.z.abs() - half.z).clamp(min=0.0)
    return (x * x + up * up + z * z).sqrt()


def surroundings(
    primitives: Tensor, point: Vector, number: Tensor, lights: Tensor, parts: tuple[Part, ...] = ALL_PARTS
) -> Surroundings:
    """Shadows and contact shading at points [N, R] on primitive `number`.

    A shadow deepens with the length of the light's path through furniture, which gives it a soft edge; contact shading
    falls off with the distance to the bodies nearby, the point's own left out. lights: [N, L, 6].
    """
    lamps = [Vector(*(lights[:, index, i, None] for i in range(3))) for index in range(lights.shape[1])]
    ways = [Vector(*(lamp_ - point_ for lamp_, point_ in zip(lamp, point, strict=True))) for lamp in lamps]
    crossed = [torch.zeros_like(point.x) for _ in lamps]
    closed = torch.zeros_like(point.x)
    for part in parts:
        bodies = body(primitives[:, :, part.numbers])
        here = bodies.local(_rays(point))
        own = part.tags(number.device) == number[:, None].int()
        near = torch.exp(_gap(part, here, bodies.half) * -_CONTACT)
        closed = closed + torch.where(own, 0.0, near).sum(dim=1)
        for index, way in enumerate(ways):
            cross = part.interval(here, turn(bodies.cos, bodies.sin, _rays(way)), bodies.half)
            inside = cross.leave.clamp(max=1.0) - cross.enter.clamp(min=0.0)
            crossed[index] = crossed[index] + inside.clamp(min=0.0).sum(dim=1)
    light = tuple(
        torch.exp(share * way.dot(way).sqrt() * -_DARKENING) for share, way in zip(crossed, ways, strict=True)
    )
    return Surroundings(light, 1.0 - 0.45 * (1.0 - torch.exp(-closed)))
