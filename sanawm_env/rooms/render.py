"""Pictures, depth and instance masks of rooms: a ray-caster batched over scenes and frames, on CPU and CUDA.

One function of fixed tensor shapes does a block of frames; on CUDA it is compiled once for each frame size and cached.
Light: an even ambient part, darker in corners and beside furniture, and two point lights with soft cast shadows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sanawm_env.errors import PoseError
from sanawm_env.rooms import layout
from sanawm_env.rooms.geometry import ALL_PARTS, Body, Part, Vector, nearest_hit, present_parts, surroundings, turn
from sanawm_env.rooms.scenes import Scenes
from sanawm_env.rooms.textures import edge_cover, pattern

_CUDA_FRAMES = 32  # frames in a block on CUDA
_CPU_RAYS = 20480  # rays in a block on a CPU, so that a block's values stay in cache
_FOOTPRINT = 1.2  # width of the texture filter, in sample distances
LENS_WIDTH = 1.8  # pixels that a pixel's samples spread over: no edge is sharper than a camera's lens would show it


@dataclass(frozen=True, kw_only=True)
class Render:
    """rgb uint8 [B, T, H, W, 3]; depth float32 [B, T, H, W], z in metres; instance int16 [B, T, H, W] (see layout.py).

    Depth and instance belong to the ray through the pixel's centre; both are empty ([0]) with geometry=False.
    """

    rgb: Tensor
    depth: Tensor
    instance: Tensor


class _Tables(NamedTuple):
    """Scene tables, one row a frame, and the primitives that are cast."""

    primitives: Tensor
    materials: Tensor
    decals: Tensor
    lights: Tensor
    ambient: Tensor
    parts: tuple[Part, ...] = ALL_PARTS


class _Camera(NamedTuple):
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


def _camera(poses: Tensor, intrinsics: Tensor) -> _Camera:
    """poses [N, 3, 4], intrinsics [N, 4]"""
    columns = [Vector(*(poses[:, row, column, None] for row in range(3))) for column in range(4)]
    return _Camera(columns[3], columns[0], columns[1], columns[2], *(intrinsics[:, i, None] for i in range(4)))


class _Surface(NamedTuple):
    """What rays met, all [N, R]: depth, point, outward normal, surface number, (u, v) in metres and the footprint there."""

    depth: Tensor
    primitive: Tensor
    point: Vector
    normal: Vector
    surface: Tensor
    u: Tensor
    v: Tensor
    width_u: Tensor
    width_v: Tensor


def _gather(table: Tensor, index: Tensor) -> Tensor:
    """Columns of the chosen rows: table [N, C, K], index [N, R] -> [N, C, R]."""
    return table.gather(2, index[:, None].expand(-1, table.shape[1], -1))


def _trace(tables: _Tables, camera: _Camera, direction: Vector, spacing: float) -> _Surface:
    depth, primitive = nearest_hit(tables.primitives, camera.origin, direction, tables.parts)
    columns = _gather(tables.primitives, primitive).unbind(1)
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
    return _Surface(
        depth, primitive, point, world, torch.where(room, shell, primitive), u, v,
        torch.maximum(width_u, floor_), torch.maximum(width_v, floor_),
    )  # fmt: skip


def _footprint(
    hit: Body, camera: _Camera, direction: Vector, depth: Tensor, normal: Vector, spacing: float
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


class _Decal(NamedTuple):
    """The decal nearest along the wall: its columns [N, 42, R], slot [N, R], cover [N, R] of its outline by a ray."""

    columns: Tensor
    slot: Tensor
    u: Tensor
    v: Tensor
    cover: Tensor


def _decal(tables: _Tables, hit: _Surface) -> _Decal:
    wall = (hit.surface - layout.WALL).clamp(0, 3)
    first = wall * layout.DECALS_PER_WALL
    centres, halves = tables.decals[:, layout.DECAL_BOX], tables.decals[:, layout.DECAL_BOX + 2]
    gaps = []
    for slot in range(layout.DECALS_PER_WALL):
        gaps.append((hit.u - centres.gather(1, first + slot)).abs() - halves.gather(1, first + slot))
    slot = torch.where(gaps[0] < gaps[1], 0, 1)
    slot = first + torch.where(gaps[2] < torch.minimum(gaps[0], gaps[1]), 2, slot)
    columns = _gather(tables.decals, slot)
    u, v = hit.u - columns[:, layout.DECAL_BOX], hit.v - columns[:, layout.DECAL_BOX + 1]
    outside = edge_cover(u.abs() - columns[:, layout.DECAL_BOX + 2], hit.width_u)
    cover = outside * edge_cover(v.abs() - columns[:, layout.DECAL_BOX + 3], hit.width_v)
    return _Decal(columns, slot, u, v, cover * (hit.surface >= layout.WALL))


def _paint(decal: _Decal, hit: _Surface, base: tuple[Tensor, ...], glow: Tensor) -> tuple[list[Tensor], Tensor]:
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


def _corners(tables: _Tables, hit: _Surface) -> Tensor:
    """Ambient share [N, R], less where walls, floor and ceiling meet."""
    room = tables.primitives[:, 3:6, layout.SHELL, None]
    height = 2.0 * room[:, 1]
    gaps = (room[:, 0] - hit.point.x.abs(), room[:, 2] - hit.point.z.abs(), -hit.point.y, height + hit.point.y)
    facing = (hit.normal.x.abs(), hit.normal.z.abs(), -hit.normal.y, hit.normal.y)
    share = torch.ones_like(hit.depth)
    for gap, toward in zip(gaps, facing, strict=True):
        share = share * (1.0 - 0.30 * torch.exp(gap.clamp(min=0.0) * -4.0) * (1.0 - toward.abs()))
    return share


def _shade(tables: _Tables, hit: _Surface) -> list[Tensor]:
    """Red, green and blue [N, R] in [0, 1]."""
    material = _gather(tables.materials, hit.surface)
    base = pattern(material, hit.u, hit.v, hit.width_u, hit.width_v)
    colour, glow = _paint(_decal(tables, hit), hit, base, material[:, layout.GLOW])
    around = surroundings(tables.primitives, hit.point, hit.primitive, tables.lights, tables.parts)
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


def _picture(poses: Tensor, intrinsics: Tensor, pixels: Tensor, offsets: Tensor, tables: _Tables) -> Tensor:
    """uint8 [N, P, 3] of pixels [P, 2] (u, v), averaged over sub-pixel offsets [S, 2]."""
    camera = _camera(poses, intrinsics)
    count = offsets.shape[0]
    spots = (pixels[None] + offsets[:, None]).flatten(0, 1)
    hit = _trace(tables, camera, camera.direction(spots[:, 0], spots[:, 1]), LENS_WIDTH * count**-0.5)
    planes = []
    for channel in _shade(tables, hit):
        bright = channel.unflatten(1, (count, -1)).mean(dim=1)
        planes.append((bright * 255.0).round().to(torch.uint8))
    return torch.stack(planes, dim=-1)


def _centres(poses: Tensor, intrinsics: Tensor, pixels: Tensor, tables: _Tables) -> tuple[Tensor, Tensor]:
    """Depth float32 and instance int16 [N, P] through the centres of pixels [P, 2]."""
    camera = _camera(poses, intrinsics)
    hit = _trace(tables, camera, camera.direction(pixels[:, 0], pixels[:, 1]), 1.0)
    decal = _decal(tables, hit)
    owners = torch.tensor(layout.OWNER, device=pixels.device) + layout.INSTANCE_OBJECT
    furniture = owners[hit.primitive.clamp(max=layout.PRIMITIVES - 1)]
    shell = hit.surface - layout.FLOOR + layout.INSTANCE_FLOOR
    shell = torch.where(decal.cover > 0.5, layout.INSTANCE_DECAL + decal.slot, shell)
    return hit.depth, torch.where(hit.primitive == layout.SHELL, shell, furniture).to(torch.int16)


@lru_cache(maxsize=16)
def _compiled(function: Callable[..., object], frames: int, pixels: int, samples: int) -> Callable[..., object]:
    """The compiled twin of a block function, one for each block shape."""
    # Kept in registers, the reductions over primitives make one kernel that Triton 3.6 cannot compile.
    return torch.compile(
        function, dynamic=False, fullgraph=True, options={"triton.persistent_reductions": False, "max_fusion_size": 8}
    )


def _pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((u, v), dim=-1).reshape(-1, 2).float().to(device)


def _checked(scenes: Scenes, poses: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """poses [B * T, 3, 4] and intrinsics [B * T, 4] in float32 on the scenes' device."""
    if poses.ndim != 4 or poses.shape[0] != len(scenes) or poses.shape[2:] != (4, 4):
        raise PoseError(
            f"poses have shape {tuple(poses.shape)}, expected ({len(scenes)}, T, 4, 4); pass one row of poses per scene"
        )
    if intrinsics.shape not in ((4,), (len(scenes), 4)):
        raise PoseError(
            f"intrinsics have shape {tuple(intrinsics.shape)}, expected (4,) or ({len(scenes)}, 4): fx, fy, cx, cy in pixels"
        )
    batch, frames = poses.shape[:2]
    intrinsics = intrinsics.to(scenes.half_size).expand(batch, 4).repeat_interleave(frames, dim=0)
    return poses.to(scenes.half_size)[:, :, :3].reshape(batch * frames, 3, 4), intrinsics


def render(
    scenes: Scenes,
    poses: Tensor,
    intrinsics: Tensor | tuple[float, float, float, float],
    size: tuple[int, int],
    *,
    supersample: int = 2,
    geometry: bool = True,
    compiled: bool | None = None,
) -> Render:
    """Frames of `scenes` seen from `poses` [B, T, 4, 4] (camera to room, OpenCV axes, metres), on the scenes' device.

    intrinsics: fx, fy, cx, cy in pixels, (4,) or [B, 4]; integer coordinates are pixel centres. size: height, width.
    supersample: rays a pixel along each side. geometry: give depth and instance too. compiled: None compiles on CUDA.
    """
    lens = torch.as_tensor(intrinsics, dtype=torch.float32)
    flat_poses, flat_lens = _checked(scenes, torch.as_tensor(poses), lens)
    total, device = len(flat_poses), scenes.device
    pixels = _pixel_grid(*size, device)
    steps = LENS_WIDTH * ((torch.arange(supersample, device=device) + 0.5) / supersample - 0.5)
    offsets = torch.cartesian_prod(steps, steps).reshape(-1, 2)
    scene_of_frame = torch.arange(len(scenes), device=device).repeat_interleave(total // len(scenes))
    use_compiled = device.type == "cuda" if compiled is None else compiled
    rgb = torch.empty(total, len(pixels), 3, dtype=torch.uint8, device=device)
    depth = torch.empty(total if geometry else 0, len(pixels), device=device)
    instance = torch.empty(depth.shape, dtype=torch.int16, device=device)
    with torch.no_grad():
        for rows, patch in _blocks(total, len(pixels), len(offsets), device):
            stop = min(rows.start + len(rows), total)
            frame = torch.arange(rows.start, rows.stop, device=device).clamp(max=total - 1)
            tables = _tables(scenes, scene_of_frame[frame], lean=not use_compiled)
            inputs = (flat_poses[frame], flat_lens[frame], pixels[patch])
            key = (len(rows), len(inputs[2]), len(offsets))
            draw = _compiled(_picture, *key) if use_compiled else _picture
            rgb[rows.start : stop, patch] = draw(*inputs, offsets, tables)[: stop - rows.start]
            if geometry:
                probe = _compiled(_centres, *key) if use_compiled else _centres
                for target, value in zip((depth, instance), probe(*inputs, tables), strict=True):
                    target[rows.start : stop, patch] = value[: stop - rows.start]
    shape = (len(scenes), total // len(scenes), *size) if geometry else (0,)
    return Render(rgb=rgb.view(len(scenes), -1, *size, 3), depth=depth.view(shape), instance=instance.view(shape))


def _tables(scenes: Scenes, scene: Tensor, *, lean: bool) -> _Tables:
    """Rows of the scenes' tables; lean leaves out what is absent or dark, which compiled functions of fixed shape cannot."""
    tables = _Tables(
        *(t[scene] for t in (scenes.primitives, scenes.materials, scenes.decals, scenes.lights, scenes.ambient))
    )
    if not lean:
        return tables
    lit = (tables.lights[..., 3:] > 0.0).any(dim=-1).any(dim=0)
    return tables._replace(lights=tables.lights[:, lit], parts=present_parts(tables.primitives))


def _blocks(frames: int, pixels: int, samples: int, device: torch.device) -> Iterator[tuple[range, slice]]:
    """Frames (the last block may reach past the end, so that all have one shape) and pixels of each block."""
    if device.type == "cuda":
        size = min(_CUDA_FRAMES, 1 << (frames - 1).bit_length())
        for start in range(0, frames, size):
            yield range(start, start + size), slice(0, pixels)
        return
    patch = max(1, _CPU_RAYS // samples)
    for frame in range(frames):
        for start in range(0, pixels, patch):
            yield range(frame, frame + 1), slice(start, min(start + patch, pixels))
