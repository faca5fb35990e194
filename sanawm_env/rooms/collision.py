"""Distance from a point on the floor plan to the nearest wall or piece of furniture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
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
    beyond_x, beyond_z = over_x.clamp(min=0.0), over_z.clamp(min=0.0)
    outside = (beyond_x * beyond_x + beyond_z * beyond_z).sqrt()
    return outside + torch.maximum(over_x, over_z).clamp(max=0.0) - radius


def clearance(scenes: Scenes, positions: Tensor) -> Tensor:
    """Metres to the nearest wall or furniture in the horizontal plane, at any height; negative inside or outside.

    positions: [B, N, 3] in the room's frame (y down). Returns float32 [B, N] on the scenes' device.
    """
    points = positions.to(scenes.footprints)[..., (0, 2)]
    furniture = footprint_distance(scenes.footprints, points).amin(dim=-1)
    walls = (scenes.half_size[:, None, (0, 2)] - points.abs()).amin(dim=-1)
    return torch.minimum(furniture, walls)


class FloorPlan:
    """The same distance in NumPy float64, for controllers that ask frame by frame. Rows are rooms."""

    def __init__(self, footprints: np.ndarray, half_size: np.ndarray):
        """footprints [B, K, 7], half_size [B, 3]"""
        self.footprints, self.half_size = footprints, half_size
        self._columns = [np.ascontiguousarray(footprints[:, None, :, i]) for i in range(7)]

    @classmethod
    def of(cls, scenes: Scenes) -> FloorPlan:
        return cls(scenes.footprints.cpu().double().numpy(), scenes.half_size.cpu().double().numpy())

    def rows(self, index: np.ndarray) -> FloorPlan:
        return FloorPlan(self.footprints[index], self.half_size[index])

    def distance(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Metres [B, N] from points x, z [B, N] to the nearest wall or furniture; negative inside or outside."""
        cx, cz, hx, hz, cos, sin, radius = self._columns
        from_x, from_z = x[..., None] - cx, z[..., None] - cz
        over_x, over_z = np.abs(cos * from_x + sin * from_z) - hx, np.abs(cos * from_z - sin * from_x) - hz
        beyond_x, beyond_z = np.maximum(over_x, 0.0), np.maximum(over_z, 0.0)
        inside = np.minimum(np.maximum(over_x, over_z), 0.0)
        furniture = (np.sqrt(beyond_x * beyond_x + beyond_z * beyond_z) + inside - radius).min(axis=-1)
        walls = np.minimum(self.half_size[:, 0, None] - np.abs(x), self.half_size[:, 2, None] - np.abs(z))
        return np.minimum(furniture, walls)

    def sight(self, x: np.ndarray, z: np.ndarray, along: np.ndarray) -> np.ndarray:
        """Metres [B, N, R] from points x, z [B, N] inside the room to the first wall or furniture along directions
        [B, N, R], angles as `actions.heading` has them: 0 along +z, positive towards -x. Round furniture counts as the
        square around it."""
        cx, cz, hx, hz, cos, sin, radius = (column[..., None, :] for column in self._columns)
        from_x, from_z = x[..., None, None] - cx, z[..., None, None] - cz
        step_x, step_z = -np.sin(along)[..., None], np.cos(along)[..., None]
        first = _slab(cos * from_x + sin * from_z, cos * step_x + sin * step_z, hx + radius)
        second = _slab(cos * from_z - sin * from_x, cos * step_z - sin * step_x, hz + radius)
        enter, leave = np.maximum(first[0], second[0]), np.minimum(first[1], second[1])
        furniture = np.where((enter <= leave) & (leave > 0), np.maximum(enter, 0.0), np.inf).min(axis=-1)
        ends = [
            _slab(place[..., None], step[..., 0], self.half_size[:, axis, None, None])[1]
            for place, step, axis in ((x, step_x, 0), (z, step_z, 2))
        ]
        return np.minimum(furniture, np.minimum(*ends))


def _slab(place: np.ndarray, step: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Along a ray, where it enters and leaves the slab -half .. half."""
    step = np.where(np.abs(step) < 1e-12, 1e-12, step)
    one, other = (-half - place) / step, (half - place) / step
    return np.minimum(one, other), np.maximum(one, other)
