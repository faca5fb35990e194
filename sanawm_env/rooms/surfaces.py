"""What rays meet: point, normal, texture coordinates and the footprint of a sample there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sanawm_env.rooms import layout
from sanawm_env.rooms.geometry import ALL_PARTS, Body, Part, Vector, turn

_FOOTPRINT = 1.2  # width of the texture filter, in sample distances


class Tables(NamedTuple):
    """Scene tables, one row a frame, and the primitives that are cast."""

    primitives: Tensor
    materials: Tensor
    decals: Tensor
    lights: Tensor
    ambient: Tensor
    parts: tuple[Part, ...] = ALL_PARTS


class Camera(NamedTuple):
    """origin components [N, 1]; axes: three unit vectors, components [N, 1]; intrinsics fx fy cx cy, each [N, 1]."""

    origin: Vector
    right: Vector
    down: Vector
    ahead: Vector
    fx: Tensor
    fy: Tensor
    cx: Tensor
    cy: Tensor

    def direction(self, u: Tensor, v: Tensor) -> Vector:
        """World directions [N, R] of pixels [R], camera z equal to 1."""
        a, b = (u - self.cx) / self.fx, (v - self.cy) / self.fy
        return Vector(*(r * a + d * b + f for r, d, f in zip(self.right, self.down, self.ahead, strict=True)))


def camera_of(poses: Tensor, intrinsics: Tensor) -> Camera:
    """poses [N, 3, 4], intrinsics [N, 4]"""
    columns = [Vector(*(poses[:, row, column, None] for row in range(3))) for column in range(4)]
    return Camera(columns[3], columns[0], columns[1], columns[2], *(intrinsics[:, i, None] for i in range(4)))


class Surface(NamedTuple):
    """What rays met, all [N, R]: depth, point, outward normal, surface number, (u, v) in metres, footprint there."""

    depth: Tensor
    primitive: Tensor
    point: Vector
    normal: Vector
    surface: Tensor
    u: Tensor
    v: Tensor
    width_u: Tensor
    width_v: Tensor


def gather(table: Tensor, index: Tensor) -> Tensor:
    """Columns of the chosen rows: table [N, C, K], index [N, R] -> [N, C, R]."""
    return table.gather(2, index[:, None].expand(-1, table.shape[1], -1))


def surface_at(
    tables: Tables, camera: Camera, direction: Vector, depth: Tensor, primitive: Tensor, spacing: float
) -> Surface:
    """Where rays [N, R] end at `depth` on `primitive`, as `nearest_hit` gives them; spacing: of the samples, pixels."""
    columns = gather(tables.primitives, primitive).unbind(1)
    hit = Body(Vector(*columns[0:3]), Vector(*columns[3:6]), columns[6], columns[7])
    point = Vector(*(o + depth * d for o, d in zip(camera.origin, direction, strict=True)))
    here, half = hit.local(point), hit.half
    room, ball = primitive == layout.SHELL, primitive >= layout.BOXES + layout.CYLINDERS
    round_ = (primitive >= layout.BOXES) & ~room
    ball = ball & ~room
    across = (here.x * here.x + here.z * here.z).sqrt()
    share_x, share_y, share_z = here.x.abs() / half.x, here.y.abs() / half.y, here.z.abs() / half.z
    level = torch.where(round_, across / half.x, torch.maximum(share_x, share_z)) < share_y
    level = level & ~ball
    face_x = share_x >= share_z
    one, zero = torch.ones_like(depth), torch.zeros_like(depth)
    inward = torch.where(room, -one, one)
    side_x = torch.where(round_, here.x, torch.where(face_x, here.x.sign() * half.x, zero))
    side_z = torch.where(round_, here.z, torch.where(face_x, zero, here.z.sign() * half.z))
    side_y = torch.where(ball, here.y, zero)
    length = (side_x * side_x + side_y * side_y + side_z * side_z).sqrt().clamp(min=1e-6)
    normal = Vector(
        torch.where(level, zero, side_x / length * inward),
        torch.where(level, here.y.sign() * inward, side_y / length),
        torch.where(level, zero, side_z / length * inward),
    )
    steps = _footprint(hit, camera, direction, depth, normal, spacing)
    spread = Vector(*(a.abs() + b.abs() for a, b in zip(*steps, strict=True)))
    height = torch.where(room, -point.y, -here.y)
    flat_u = torch.where(level, here.x, torch.where(face_x, here.z, here.x))
    flat_v = torch.where(level, here.z, height)
    arc = torch.atan2(here.z, here.x) * half.x
    u = torch.where(ball, here.y, torch.where(round_ & ~level, arc, flat_u))
    v = torch.where(ball, zero, flat_v)
    width_u = torch.where(ball, spread.y, torch.where(level, spread.x, torch.where(round_, spread.x + spread.z, zero)))
    width_u = torch.where(level | round_, width_u, torch.where(face_x, spread.z, spread.x))
    width_v = torch.where(level, spread.z, spread.y)
    wall = torch.where(face_x, torch.where(here.x > 0, 0, 1), torch.where(here.z > 0, 2, 3)) + layout.WALL
    shell = torch.where(level, torch.where(here.y > 0, layout.FLOOR, layout.CEILING), wall)
    world = turn(hit.cos, -hit.sin, normal)
    floor_ = torch.full_like(width_u, 1e-5)
    return Surface(
        depth, primitive, point, world, torch.where(room, shell, primitive), u, v,
        torch.maximum(width_u, floor_), torch.maximum(width_v, floor_),
    )  # fmt: skip


def _footprint(
    hit: Body, camera: Camera, direction: Vector, depth: Tensor, normal: Vector, spacing: float
) -> tuple[Vector, Vector]:
    """How far the hit point moves, in the body's frame, for one sample to the right and one down."""
    ray = turn(hit.cos, hit.sin, direction)
    facing = normal.dot(ray)
    facing = torch.where(facing.abs() < 0.02, torch.full_like(facing, -0.02), facing)

    def moved(axis: Vector, focal: Tensor) -> Vector:
        scale = _FOOTPRINT * spacing / focal * depth
        step = turn(hit.cos, hit.sin, axis)
        slip = normal.dot(step) / facing
        return Vector(*((s - r * slip) * scale for s, r in zip(step, ray, strict=True)))

    return moved(camera.right, camera.fx), moved(camera.down, camera.fy)
