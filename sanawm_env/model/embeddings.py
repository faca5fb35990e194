"""Positions and rays as the attention blocks use them: rotary angles, their rotation, and per-token ray transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanawm_env.kernels.encoding import rotate
from sanawm_env.kernels.ray_encode import ray_encode
from sanawm_env.kernels.rms_norm import rms_norm

THETA = 10_000.0


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, statistics and product in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """x [..., C]; with a rotation, x [B, T, S, C] is rotated head by head as well."""
        return rms_norm(x, self.weight, self.eps, None if rotation is None else (rotation.cos, rotation.sin))


class TimestepEmbedder(nn.Module):
    """Sinusoid of an integer noise level and a two-layer MLP; names as in the public checkpoints."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(frequencies, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep: Tensor) -> Tensor:
        """timestep: [B, T] in 0 .. 1000, truncated to integers as upstream does. Returns [B, T, C]."""
        half = self.linear_1.in_features // 2
        rates = torch.exp(-math.log(THETA) / half * torch.arange(half, device=timestep.device, dtype=torch.float32))
        angle = timestep.long().float()[..., None] * rates
        wave = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(functional.silu(self.linear_1(wave)))


@dataclass(frozen=True, eq=False)
class Rotation:
    """Cosine and sine of rotary angles, each [B, T, S, 1, lanes / 2] (or broadcastable to it), fp32."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, T, S, N, lanes] with each pair (2j, 2j + 1) rotated by angle j, in fp32."""
        return rotate(x, self.cos, self.sin)


@dataclass(frozen=True, eq=False)
class RotaryFrequencies:
    """Split of a head's pairs into time, row and column, and the camera branch's leading part of each (spec dit.md
    3.5).
    """

    head_dim: int

    @property
    def spatial(self) -> int:
        return self.head_dim // 6

    @property
    def temporal(self) -> int:
        return self.head_dim // 2 - 2 * self.spatial

    @property
    def camera_spatial(self) -> int:
        return self.head_dim // 2 // 6

    @property
    def camera_temporal(self) -> int:
        return self.head_dim // 4 - 2 * self.camera_spatial

    def grid_angles(self, grid: tuple[int, int], camera: bool, device: torch.device) -> Tensor:
        """Row and column angles [S, 2 * spatial], float64."""
        rate = _rates(self.spatial, device)[: self.camera_spatial if camera else self.spatial]
        rows, columns = (torch.arange(n, device=device, dtype=torch.float64)[:, None] * rate for n in grid)
        full = (*grid, rate.numel())
        return torch.cat([rows[:, None].expand(full), columns[None].expand(full)], dim=-1).flatten(0, 1)

    def time_angles(self, position: Tensor, camera: bool) -> Tensor:
        """Angles [..., temporal] of integer latent positions, float64: no table, no last position."""
        rate = _rates(self.temporal, position.device)[: self.camera_temporal if camera else self.temporal]
        return position.double()[..., None] * rate

    def rotation(self, position: Tensor, grid: tuple[int, int], *, camera: bool, time: bool) -> Rotation:
        """Rotation of tokens at latent positions [B, T] on a grid; without `time` the temporal pairs keep angle 0."""
        along = self.time_angles(position if time else torch.zeros_like(position), camera)[:, :, None]
        across = self.grid_angles(grid, camera, position.device)[None, None]
        full = (*position.shape, grid[0] * grid[1], -1)

        def joined(wave: Callable[[Tensor], Tensor]) -> Tensor:
            return torch.cat([wave(along).float().expand(full), wave(across).float().expand(full)], dim=-1)[
                :, :, :, None
            ]

        return Rotation(joined(torch.cos), joined(torch.sin))

    def time_rotation(self, position: Tensor, *, camera: bool) -> Rotation:
        """Rotation of the temporal pairs alone, for keys that were stored before it; position [B, T]."""
        angle = self.time_angles(position, camera)[:, :, None, None]
        return Rotation(angle.cos().float(), angle.sin().float())


def _rates(count: int, device: torch.device) -> Tensor:
    return THETA ** (-torch.arange(count, device=device, dtype=torch.float64) / count)


@dataclass(frozen=True, eq=False)
class RayEncoding:
    """UCPE encoding of one call's tokens: half of each head by ray transforms, half by the camera's rotary angles
    (spec dit.md 3.8.4).
    """

    to_ray: Tensor
    from_ray: Tensor
    rotation: Rotation

    def query(self, x: Tensor, *, shrink: bool = False) -> Tensor:
        """x [B, T, S, N, D] as queries, in its dtype; with `shrink`, no head's RMS exceeds that of x (`downscale`)."""
        return ray_encode(x, self.to_ray.transpose(-1, -2), self.rotation.cos, self.rotation.sin, shrink=shrink)

    def key(self, x: Tensor, *, shrink: bool = False) -> Tensor:
        """x as keys or values, likewise."""
        return ray_encode(x, self.from_ray, self.rotation.cos, self.rotation.sin, shrink=shrink)

    def output(self, x: Tensor) -> Tensor:
        """What attention made of encoded values, back from ray coordinates."""
        return ray_encode(x, self.to_ray, self.rotation.cos, self.rotation.sin, inverse=True)
