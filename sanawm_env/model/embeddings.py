"""Positions and rays as the attention blocks use them: rotary angles, their rotation, and per-token ray transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

THETA = 10_000.0


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, statistics and product in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


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

    def __call__(self, x: Tensor, *, inverse: bool = False) -> Tensor:
        """x [B, T, S, N, lanes] with each pair (2j, 2j + 1) rotated by angle j, in fp32."""
        sin = -self.sin if inverse else self.sin
        if x.device.type == "cpu":  # complex numbers take one pass over memory where the real form takes six
            pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(pairs * torch.complex(self.cos, sin)).flatten(-2)
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([even * self.cos - odd * sin, even * sin + odd * self.cos], dim=-1).flatten(-2)


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


def transform_rays(x: Tensor, matrix: Tensor) -> Tensor:
    """Groups of four lanes of x [B, T, S, N, L] multiplied by each token's 4x4 matrix [B, T, S, 4, 4], fp32."""
    groups = x.float().unflatten(-1, (-1, 4))
    if x.device.type == "cpu":
        flat = groups.flatten(3, 4)
        return (flat @ matrix.transpose(-1, -2)).reshape(x.shape)
    # A product of thousands of 4x4 matrices is slow as a batched GEMM on a GPU; as a sum it fuses with its neighbours.
    return (groups[..., None, :] * matrix[:, :, :, None, None]).sum(-1).flatten(-2)


@dataclass(frozen=True, eq=False)
class RayEncoding:
    """UCPE encoding of one call's tokens: half of each head by ray transforms, half by the camera's rotary angles
    (spec dit.md 3.8.4).
    """

    to_ray: Tensor
    from_ray: Tensor
    rotation: Rotation

    def query(self, x: Tensor) -> Tensor:
        return self._encode(x, self.to_ray.transpose(-1, -2), inverse=False)

    def key(self, x: Tensor) -> Tensor:
        return self._encode(x, self.from_ray, inverse=False)

    def output(self, x: Tensor) -> Tensor:
        return self._encode(x, self.to_ray, inverse=True)

    def _encode(self, x: Tensor, matrix: Tensor, *, inverse: bool) -> Tensor:
        half = x.shape[-1] // 2
        return torch.cat([transform_rays(x[..., :half], matrix), self.rotation(x[..., half:], inverse=inverse)], dim=-1)


def downscale(encoded: Tensor, plain: Tensor) -> Tensor:
    """`encoded` shrunk, a token and head at a time, so that its RMS does not exceed that of `plain` (spec dit.md
    3.8.4).
    """
    rms = [torch.sqrt(x.float().square().mean(-1, keepdim=True) + 1e-6) for x in (plain, encoded)]
    return encoded * (rms[0] / rms[1].clamp_min(1e-6)).clamp_max(1.0)
