"""Distance from a point on the floor plan to the nearest wall or piece of furniture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sanawm_env.rooms.scenes import Scenes


def footprint_distance(footprints: Tensor, points: Tensor) -> Tensor:
    """Signed distance in metres (negative inside) of points (x, z) [..., N, 2] to footprints [..., K, 7]: [..., N, K].

    A footprint is a rectangle turned by the yaw and widened by a radius: cx, cz, hx, hz, cos, sin, radius.
    """
    cx, cz, hx, hz, cos, sin, radius = (footprints[..., None, :, i] for i in range(7))
    x, z = points[..., 0, None] - cx, points[..., 1, None] - cz
    over_x, over_z = (cos * x + sin * z).abs() - hx, (cos * z - sin * x).abs() - hz
    outside = torch.hypot(over_x.clamp(min=0.0), over_z.clamp(min=0.0))
    return outside + torch.maximum(over_x, over_z).clamp(max=0.0) - radius


def clearance(scenes: Scenes, positions: Tensor) -> Tensor:
    """Metres to the nearest wall or furniture in the horizontal plane, at any height; negative inside or outside the room.

    positions: [B, N, 3] in the room's frame (y down). Returns float32 [B, N] on the scenes' device.
    """
    points = positions.to(scenes.footprints)[..., (0, 2)]
    furniture = footprint_distance(scenes.footprints, points).amin(dim=-1)
    walls = (scenes.half_size[:, None, (0, 2)] - points.abs()).amin(dim=-1)
    return torch.minimum(furniture, walls)
