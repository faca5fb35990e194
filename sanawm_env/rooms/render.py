"""Pictures, depth and instance masks of rooms: a ray-caster batched over scenes and frames, on CPU and CUDA.

One function of fixed tensor shapes does a block of frames; on CUDA it is compiled once for each frame size and cached.
Light: an even ambient part, darker in corners and beside furniture, and two point lights with soft cast shadows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sanawm_env.errors import PoseError
from sanawm_env.rooms import layout
from sanawm_env.rooms.geometry import present_parts
from sanawm_env.rooms.scenes import Scenes
from sanawm_env.rooms.shading import nearest_decal, shade
from sanawm_env.rooms.surfaces import Tables, camera_of, trace

_CUDA_FRAMES = 32  # frames in a block on CUDA
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


def _picture(poses: Tensor, intrinsics: Tensor, pixels: Tensor, offsets: Tensor, tables: Tables) -> Tensor:
    """uint8 [N, P, 3] of pixels [P, 2] (u, v), averaged over sub-pixel offsets [S, 2]."""
    camera = camera_of(poses, intrinsics)
    count = offsets.shape[0]
    spots = (pixels[None] + offsets[:, None]).flatten(0, 1)
    hit = trace(tables, camera, camera.direction(spots[:, 0], spots[:, 1]), LENS_WIDTH * count**-0.5)
    planes = []
    for channel in shade(tables, hit):
        bright = channel.clamp(0.0, 1.0).unflatten(1, (count, -1)).mean(dim=1)
        bright = MID_GREY + CONTRAST * (bright - MID_GREY)
        planes.append((bright * 255.0).round().to(torch.uint8))
    return torch.stack(planes, dim=-1)


def _centres(poses: Tensor, intrinsics: Tensor, pixels: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
    """Depth float32 and instance int16 [N, P] through the centres of pixels [P, 2]."""
    camera = camera_of(poses, intrinsics)
    hit = trace(tables, camera, camera.direction(pixels[:, 0], pixels[:, 1]), 1.0)
    decal = nearest_decal(tables, hit)
    owners = torch.tensor(layout.OWNER, device=pixels.device) + layout.INSTANCE_OBJECT
    furniture = owners[hit.primitive.clamp(max=layout.PRIMITIVES - 1)]
    shell = hit.surface - layout.FLOOR + layout.INSTANCE_FLOOR
    shell = torch.where(decal.cover > 0.5, layout.INSTANCE_DECAL + decal.slot, shell)
    return hit.depth, torch.where(hit.primitive == layout.SHELL, shell, furniture).to(torch.int16)


def _block_function(function: Callable[..., Any], shape: tuple[int, int, int], compiled: bool) -> Callable[..., Any]:
    return _compiled(function, shape) if compiled else function


@lru_cache(maxsize=16)
def _compiled(function: Callable[..., Any], shape: tuple[int, int, int]) -> Callable[..., Any]:
    """The compiled twin of a block function, one for each block shape (frames, pixels, samples)."""
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
            inputs = (flat_poses[frame], flat_lens[frame], pixels[patch])
            shape = (len(rows), len(inputs[2]), len(offsets))
            draw = _block_function(_picture, shape, use_compiled)
            rgb[rows.start : stop, patch] = draw(*inputs, offsets, tables)[: stop - rows.start]
            if geometry:
                probe = _block_function(_centres, shape, use_compiled)
                for target, value in zip((depth, instance), probe(*inputs, tables), strict=True):
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
    patch = max(1, _CPU_RAYS // samples)
    for frame in range(frames):
        for start in range(0, pixels, patch):
            yield range(frame, frame + 1), slice(start, min(start + patch, pixels))
