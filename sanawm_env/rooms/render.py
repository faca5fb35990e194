"""Pictures, depth and instance masks of rooms: a ray-caster batched over scenes and frames, on CPU and CUDA.

A few functions of fixed tensor shapes do a block of frames; on CUDA they are compiled once for each frame size and
cached.
Light: an even ambient part, darker in corners and beside furniture, and two point lights with soft cast shadows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sanawm_env.errors import PoseError
from sanawm_env.rooms import layout
from sanawm_env.rooms.geometry import Surroundings, Vector, nearest_hit, present_parts, surroundings
from sanawm_env.rooms.scenes import Scenes
from sanawm_env.rooms.shading import nearest_decal, shade
from sanawm_env.rooms.surfaces import Camera, Surface, Tables, camera_of, surface_at

_CUDA_FRAMES = 64  # frames in a block on CUDA
_CPU_RAYS = 20480  # rays in a block on a CPU, so that a block's values stay in cache
LENS_WIDTH = 1.8  # pixels that a pixel's samples spread over: no edge is sharper than a camera's lens would show it
MID_GREY, CONTRAST = 0.5, 0.84  # what the film keeps of the scene's contrast


@dataclass(frozen=True, kw_only=True)
class Render:
    """rgb uint8 [B, T, H, W, 3]; depth float32 [B, T, H, W], z in metres; instance int16 [B, T, H, W] (see layout.py).

    Depth and instance belong to the ray through the pixel's centre; both are empty ([0]) with geometry=False.
    """

    rgb: Tensor
    depth: Tensor
    instance: Tensor


def _rays(poses: Tensor, intrinsics: Tensor, pixels: Tensor, offsets: Tensor) -> tuple[Camera, Vector]:
    """Cameras [N], and directions [N, S P] through pixels [P, 2] (u, v) at each of the sub-pixel offsets [S, 2]."""
    camera = camera_of(poses, intrinsics)
    spots = (pixels[None] + offsets[:, None]).flatten(0, 1)
    return camera, camera.direction(spots[:, 0], spots[:, 1])


def _film(tables: Tables, hit: Surface, around: Surroundings, count: int) -> Tensor:
    """uint8 [N, P, 3], averaged over `count` samples a pixel."""
    planes = []
    for channel in shade(tables, hit, around):
        bright = channel.clamp(0.0, 1.0).unflatten(1, (count, -1)).mean(dim=1)
        bright = MID_GREY + CONTRAST * (bright - MID_GREY)
        planes.append((bright * 255.0).round().to(torch.uint8))
    return torch.stack(planes, dim=-1)


def _labels(tables: Tables, hit: Surface) -> Tensor:
    """Instance int16 [N, P] of what rays met."""
    decal = nearest_decal(tables, hit)
    owners = torch.tensor(layout.OWNER, device=hit.depth.device) + layout.INSTANCE_OBJECT
    furniture = owners[hit.primitive.clamp(max=layout.PRIMITIVES - 1)]
    shell = hit.surface - layout.FLOOR + layout.INSTANCE_FLOOR
    shell = torch.where(decal.cover > 0.5, layout.INSTANCE_DECAL + decal.slot, shell)
    return torch.where(hit.primitive == layout.SHELL, shell, furniture).to(torch.int16)


@dataclass(frozen=True, kw_only=True)
class _Stages:
    """The functions that frames are made of, plain or compiled for one shape of block."""

    rays: Callable[..., tuple[Camera, Vector]] = _rays
    nearest_hit: Callable[..., tuple[Tensor, Tensor]] = nearest_hit
    surface_at: Callable[..., Surface] = surface_at
    surroundings: Callable[..., Surroundings] = surroundings
    film: Callable[..., Tensor] = _film
    labels: Callable[..., Tensor] = _labels

    def trace(
        self, tables: Tables, poses: Tensor, intrinsics: Tensor, pixels: Tensor, offsets: Tensor, spacing: float
    ) -> Surface:
        """What the rays through pixels [P, 2] + offsets [S, 2] meet, all [N, S P]; spacing: between samples, pixels."""
        camera, direction = self.rays(poses, intrinsics, pixels, offsets)
        depth, primitive = self.nearest_hit(tables.primitives, camera.origin, direction, tables.parts)
        return self.surface_at(tables, camera, direction, depth, primitive, spacing)

    def picture(self, tables: Tables, poses: Tensor, intrinsics: Tensor, pixels: Tensor, offsets: Tensor) -> Tensor:
        """uint8 [N, P, 3] of pixels [P, 2] (u, v), averaged over sub-pixel offsets [S, 2]."""
        count = len(offsets)
        hit = self.trace(tables, poses, intrinsics, pixels, offsets, LENS_WIDTH * count**-0.5)
        around = self.surroundings(tables.primitives, hit.point, hit.primitive, tables.lights, tables.parts)
        return self.film(tables, hit, around, count)

    def centres(self, tables: Tables, poses: Tensor, intrinsics: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Depth float32 and instance int16 [N, P] through the centres of pixels [P, 2]."""
        hit = self.trace(tables, poses, intrinsics, pixels, torch.zeros_like(pixels[:1]), 1.0)
        return hit.depth, self.labels(tables, hit)


_PLAIN = _Stages()


@lru_cache(maxsize=16)
def _compiled(shape: tuple[int, int, int]) -> _Stages:
    """Stages compiled for one block shape (frames, pixels, samples).

    By stages, because in one function the compiler spreads the reductions over primitives and what follows over many
    kernels that pass values through memory. Larger fusions, or reductions kept in registers, make kernels that Triton
    3.6 cannot compile.
    """
    options: dict[str, Any] = {"triton.persistent_reductions": False, "max_fusion_size": 32}
    return _Stages(
        **{
            stage.name: torch.compile(getattr(_PLAIN, stage.name), dynamic=False, fullgraph=True, options=options)
            for stage in fields(_Stages)
        }
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
            f"intrinsics have shape {tuple(intrinsics.shape)}, expected (4,) or ({len(scenes)}, 4); pass fx, fy, cx, cy"
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
            inputs = (tables, flat_poses[frame], flat_lens[frame], pixels[patch])
            stages = _compiled((len(rows), len(inputs[3]), len(offsets))) if use_compiled else _PLAIN
            rgb[rows.start : stop, patch] = stages.picture(*inputs, offsets)[: stop - rows.start]
            if geometry:
                for target, value in zip((depth, instance), stages.centres(*inputs), strict=True):
                    target[rows.start : stop, patch] = value[: stop - rows.start]
    planes = (len(scenes), total // len(scenes), *size) if geometry else (0,)
    return Render(rgb=rgb.view(len(scenes), -1, *size, 3), depth=depth.view(planes), instance=instance.view(planes))


def _tables(scenes: Scenes, scene: Tensor, *, lean: bool) -> Tables:
    """Rows of the scenes' tables; lean leaves out what is absent or dark, which functions of fixed shape cannot."""
    tables = Tables(
        primitives=scenes.primitives[scene],
        materials=scenes.materials[scene],
        decals=scenes.decals[scene],
        lights=scenes.lights[scene],
        ambient=scenes.ambient[scene],
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
    patch = min(pixels, max(1, _CPU_RAYS // samples))
    together = max(1, _CPU_RAYS // (samples * pixels))  # a block of little takes hardly less than a full one
    for frame in range(0, frames, together):
        for start in range(0, pixels, patch):
            yield range(frame, min(frame + together, frames)), slice(start, min(start + patch, pixels))
