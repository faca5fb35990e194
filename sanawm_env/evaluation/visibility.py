"""Which pixels of a later frame show surfaces that the first frame has seen."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sanawm_env.camera import invert_rigid

# A point counts as seen when its depth in frame 0 agrees with what frame 0 shows there, within this share.
DEPTH_TOLERANCE = 0.02
NEAREST = 1e-3
# What a frame shows says where it was taken only where at least this share of it was seen in the first picture.
ENOUGH_SEEN = 0.3


def enough_seen(seen: Tensor) -> Tensor:
    """Frames bool [B, T] of which the first picture has shown enough, by the pixels `seen` [B, T, H, W] in it."""
    return seen.float().mean((-2, -1)) >= ENOUGH_SEEN


def unproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Point of every pixel in camera axes, float64 [B, T, H, W, 3], from z-depth [B, T, H, W] in metres.

    intrinsics: [B, 4] fx, fy, cx, cy in pixels, pixel centres at integers.
    """
    fx, fy, cx, cy = (value[:, None, None, None] for value in intrinsics.double().unbind(-1))
    height, width = depth.shape[-2:]
    rows = torch.arange(height, dtype=torch.float64, device=depth.device)[:, None]
    columns = torch.arange(width, dtype=torch.float64, device=depth.device)[None]
    z = depth.double()
    return torch.stack([(columns - cx) / fx * z, (rows - cy) / fy * z, z], dim=-1)


def project(points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel (u, v) [B, ..., 2] and depth [B, ...] of points [B, ..., 3] in camera axes; behind, depth <= 0."""
    fx, fy, cx, cy = (value.reshape(-1, *(1,) * (points.ndim - 2)) for value in intrinsics.double().unbind(-1))
    x, y, z = points.unbind(-1)
    ahead = z.clamp_min(NEAREST)
    return torch.stack([fx * x / ahead + cx, fy * y / ahead + cy], dim=-1), z


def visible(depth: Tensor, poses: Tensor, first_depth: Tensor, first_pose: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels of frames t that frame 0 has seen, bool [B, T, H, W].

    A pixel's point is moved into frame 0; it was seen if it falls inside the picture and its depth there is that of
    frame 0 within 2 %. Frame 0 is read between pixels linearly in inverse depth, which is exact on planes.

    depth: [B, T, H, W] and first_depth: [B, H, W], z-depth in metres. poses: [B, T, 4, 4] and first_pose: [B, 4, 4],
    camera to world. intrinsics: [B, 4] in pixels.
    """
    motion = (invert_rigid(first_pose.double())[:, None] @ poses.double()).to(depth.device)
    intrinsics = intrinsics.to(depth.device)
    points = unproject(depth, intrinsics)
    moved = torch.einsum("btij,bthwj->bthwi", motion[..., :3, :3], points) + motion[:, :, None, None, :3, 3]
    pixel, z = project(moved, intrinsics)
    height, width = first_depth.shape[-2:]
    last = torch.tensor([width - 1, height - 1], dtype=pixel.dtype, device=pixel.device)
    # The picture ends half a pixel beyond the outermost centres.
    inside = ((pixel >= -0.5) & (pixel <= last + 0.5)).all(-1) & (z > NEAREST)
    shown = _sample((1 / first_depth.double())[:, None], pixel / last * 2 - 1).reciprocal()
    return inside & ((z - shown).abs() <= DEPTH_TOLERANCE * shown)


def _sample(maps: Tensor, places: Tensor) -> Tensor:
    """Maps [B, 1, H, W] at places [B, T, H, W, 2] in -1 .. 1 between corner centres, bilinear: [B, T, H, W]."""
    batch, frames, height, width, _ = places.shape
    flat = places.reshape(batch, frames * height, width, 2)
    values = functional.grid_sample(maps, flat, mode="bilinear", padding_mode="border", align_corners=True)
    return values.reshape(batch, frames, height, width)
