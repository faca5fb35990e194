"""Rays against the primitives of a scene. Written for fusion: [N, K, R] values exist only inside reductions over K.

N frames, K primitives, R rays. A ray is origin + t * direction with a direction whose camera z is 1, so t is z-depth.
Every primitive is convex, so a ray crosses it in one interval [enter, leave] of t (empty when enter > leave).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sanawm_env.rooms.layout import BOXES, CYLINDERS, PRIMITIVES, SHELL

_TINY = 1e-7
_INDEX_BITS = 31  # the low five bits of a depth's float32 pattern carry the primitive's number


class Vector(NamedTuple):
    """Three components as separate tensors of one shape."""

    x: Tensor
    y: Tensor
    z: Tensor

    def dot(self, other: Vector) -> Tensor:
        return self.x * other.x + self.y * other.y + self.z * other.z


class Interval(NamedTuple):
    enter: Tensor
    leave: Tensor


def _inverse(value: Tensor) -> Tensor:
    """1 / value, large and finite where value is 0."""
    return 1.0 / torch.where(value.abs() < _TINY, torch.full_like(value, _TINY), value)


def turn(cos: Tensor, sin: Tensor, vector: Vector) -> Vector:
    """World vector in the frame of a body of the given yaw."""
    return Vector(cos * vector.x + sin * vector.z, vector.y, cos * vector.z - sin * vector.x)


def _slab(start: Tensor, direction: Tensor, half: Tensor) -> Interval:
    inverse = _inverse(direction)
    middle, reach = -start * inverse, inverse.abs() * half
    return Interval(middle - reach, middle + reach)


def box_interval(start: Vector, direction: Vector, half: Vector) -> Interval:
    """Interval within a box; start and direction in its frame."""
    x, y, z = (_slab(s, d, h) for s, d, h in zip(start, direction, half, strict=True))
    enter = torch.maximum(torch.maximum(x.enter, y.enter), z.enter)
    return Interval(enter, torch.minimum(torch.minimum(x.leave, y.leave), z.leave))


def _quadratic(a: Tensor, b: Tensor, c: Tensor) -> Interval:
    """Where a t^2 + 2 b t + c <= 0; an empty interval where nowhere."""
    under = b * b - a * c
    root, inverse = under.clamp(min=0.0).sqrt(), 1.0 / (a + _TINY)
    miss = (under < 0.0).to(a.dtype) * 1e6
    return Interval((-b - root) * inverse + miss, (-b + root) * inverse - miss)


def cylinder_interval(start: Vector, direction: Vector, half: Vector) -> Interval:
    """Interval within an upright cylinder of radius half.x."""
    around = _quadratic(
        direction.x * direction.x + direction.z * direction.z,
        start.x * direction.x + start.z * direction.z,
        start.x * start.x + start.z * start.z - half.x * half.x,
    )
    caps = _slab(start.y, direction.y, half.y)
    return Interval(torch.maximum(around.enter, caps.enter), torch.minimum(around.leave, caps.leave))


def sphere_interval(start: Vector, direction: Vector, half: Vector) -> Interval:
    """Interval within a sphere of radius half.x."""
    return _quadratic(direction.dot(direction), start.dot(direction), start.dot(start) - half.x * half.x)


class Body(NamedTuple):
    """Rows of the primitive table as columns [N, K, 1]: centre, half size, yaw."""

    centre: Vector
    half: Vector
    cos: Tensor
    sin: Tensor

    def local(self, point: Vector) -> Vector:
        """World points in the bodies' frames."""
        offset = Vector(point.x - self.centre.x, point.y - self.centre.y, point.z - self.centre.z)
        return turn(self.cos, self.sin, offset)


def body(columns: Tensor) -> Body:
    """Body of columns [N, 8, K] -> [N, K, 1], or of gathered rows [N, 8, R] through `rows`."""
    x, y, z, half_x, half_y, half_z, cos, sin = (columns[:, i, :, None] for i in range(8))
    return Body(Vector(x, y, z), Vector(half_x, half_y, half_z), cos, sin)


KINDS = (
    (slice(0, BOXES), box_interval),
    (slice(BOXES, BOXES + CYLINDERS), cylinder_interval),
    (slice(BOXES + CYLINDERS, PRIMITIVES), sphere_interval),
)


def nearest_hit(primitives: Tensor, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """Depth t [N, R] and number [N, R] (int64, SHELL for the room) of what each ray meets first.

    primitives [N, 8, 25]; origin components [N, 1], direction components [N, R]. The number travels in the low bits of
    the depth, so one minimum finds both; that rounds depths down by at most 4e-6 of their value.
    """
    room = body(primitives[:, :, SHELL:])
    leave = box_interval(room.local(_rays(origin)), _rays(direction), room.half).leave[:, 0]
    best = (leave.clamp(min=1e-3).view(torch.int32) & ~_INDEX_BITS) | SHELL
    for part, interval in KINDS:
        bodies = body(primitives[:, :, part])
        start = bodies.local(_rays(origin))
        hit = interval(start, turn(bodies.cos, bodies.sin, _rays(direction)), bodies.half)
        meets = (hit.enter < hit.leave) & (hit.enter > 1e-3)
        depth = torch.where(meets, hit.enter, torch.full_like(hit.enter, 1e6))
        number = torch.arange(part.start, part.stop, dtype=torch.int32, device=depth.device)[None, :, None]
        best = torch.minimum(best, ((depth.view(torch.int32) & ~_INDEX_BITS) | number).amin(dim=1))
    return (best & ~_INDEX_BITS).view(torch.float32), (best & _INDEX_BITS).long()


def _rays(vector: Vector) -> Vector:
    """[N, R] -> [N, 1, R]"""
    return Vector(*(component[:, None] for component in vector))


class Surroundings(NamedTuple):
    """light: [N, R] per light, share of the light that arrives; open: [N, R], 1 far from furniture, less beside it."""

    light: tuple[Tensor, ...]
    open: Tensor


def _gap(kind: object, point: Vector, half: Vector) -> Tensor:
    """Distance from a point (in the body's frame) to the body's surface, zero inside."""
    if kind is sphere_interval:
        return (point.dot(point).sqrt() - half.x).clamp(min=0.0)
    up = (point.y.abs() - half.y).clamp(min=0.0)
    if kind is cylinder_interval:
        side = ((point.x * point.x + point.z * point.z).sqrt() - half.x).clamp(min=0.0)
        return (side * side + up * up).sqrt()
    x, z = (point.x.abs() - half.x).clamp(min=0.0), (point.z.abs() - half.z).clamp(min=0.0)
    return (x * x + up * up + z * z).sqrt()


def surroundings(primitives: Tensor, point: Vector, number: Tensor, lights: Tensor) -> Surroundings:
    """Shadows and contact shading at points [N, R] on primitive `number`.

    A shadow deepens with the length of the light's path through furniture, which gives it a soft edge; contact shading
    falls off with the distance to the bodies nearby, the point's own left out. lights: [N, 2, 6].
    """
    blocked = [torch.zeros_like(point.x) for _ in range(lights.shape[1])]
    closed = torch.zeros_like(point.x)
    for part, interval in KINDS:
        bodies = body(primitives[:, :, part])
        here = bodies.local(_rays(point))
        own = torch.arange(part.start, part.stop, device=number.device)[None, :, None] == number[:, None]
        gap = _gap(interval, here, bodies.half)
        closed = closed + torch.where(own, torch.zeros_like(gap), torch.exp(gap * -7.0)).sum(dim=1)
        for index in range(len(blocked)):
            lamp = bodies.local(Vector(*(lights[:, index, i, None, None] for i in range(3))))
            along = Vector(lamp.x - here.x, lamp.y - here.y, lamp.z - here.z)
            cross = interval(here, along, bodies.half)
            inside = (cross.leave.clamp(max=1.0) - cross.enter.clamp(min=0.0)).clamp(min=0.0)
            blocked[index] = blocked[index] + (inside * along.dot(along).sqrt()).sum(dim=1)
    light = tuple(torch.exp(thickness * -14.0) for thickness in blocked)
    return Surroundings(light, 1.0 - 0.45 * (1.0 - torch.exp(-closed)))
