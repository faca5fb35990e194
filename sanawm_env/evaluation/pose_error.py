"""Where a generated frame was really taken from: render-and-compare against the ray-caster.

A frame that was asked for at some pose is compared with renders around that pose; the rigid offset that explains the
frame best is the pose error (training.md 9.8, without an estimation network). Gauss-Newton with numerical derivatives
on blurred, halved pictures, coarse to fine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Renders pictures, float [B, T, h, w, 3] in 0 .. 255, at poses [B, T, 4, 4] float64.
Renderer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One stage of the search: blur (pixels of the compared picture), derivative step (degrees, metres), iterations."""

    blur: float
    degrees: float
    metres: float
    iterations: int

    @property
    def sizes(self) -> Tensor:
        """Derivative step of each of the six unknowns, radians and metres."""
        return torch.tensor([math.radians(self.degrees)] * 3 + [self.metres] * 3, dtype=torch.float64)


LEVELS = (
    Level(blur=2.0, degrees=0.5, metres=0.02, iterations=4),
    Level(blur=0.8, degrees=0.25, metres=0.01, iterations=4),
)
# Residuals beyond this many grey levels count less and less (blurred or invented parts of the frame).
ROBUST_SCALE = 12.0
DAMPING = 1e-3
# In derivative steps: 4 degrees or 16 cm on the coarse level.
LONGEST_STEP = 8


def refine(frames: Tensor, poses: Tensor, renderer: Renderer, mask: Tensor) -> Tensor:
    """Offset of each frame's best-fitting pose, float64 [B, T, 6]: axis-angle (radians), then metres, in camera axes.

    frames: float [B, T, h, w, 3] in 0 .. 255. poses: [B, T, 4, 4] where the frames should have been taken. mask: bool
    [B, T, h, w], the pixels to compare. The best pose is pose @ as_matrix(offset).
    """
    offset = torch.zeros(*poses.shape[:2], 6, dtype=torch.float64, device=poses.device)
    for level in LEVELS:
        target, weight = _blurred(frames, level.blur), mask.to(frames.dtype)
        residual = _residual(offset, poses, renderer, target, level)
        slope = _slope(offset, poses, renderer, target, level)
        cost, damping = _cost(residual, weight), torch.full(offset.shape[:2], DAMPING, device=offset.device).double()
        for _ in range(level.iterations):
            candidate = offset + _newton_step(slope, residual, weight, damping) * level.sizes.to(offset.device)
            moved = _residual(candidate, poses, renderer, target, level)
            better = (new_cost := _cost(moved, weight)) < cost
            offset = torch.where(better[..., None], candidate, offset)
            residual = torch.where(better[..., None, None, None], moved, residual)
            cost = torch.where(better, new_cost, cost)
            damping = torch.where(better, damping / 4, damping * 16)
    return offset


def uncertainty(poses: Tensor, renderer: Renderer, mask: Tensor) -> Tensor:
    """One standard deviation of the rotation that `refine` finds, degrees [B, T], at best: the Cramer-Rao bound where
    frames differ from the truth by ROBUST_SCALE grey levels, alike in all colours and over a patch as wide as the blur.

    It is a matter of what there is to be seen and not of a frame: before a blank wall a turn and a step aside look the
    same, and the search ends anywhere. Arguments as of `refine`.
    """
    level = LEVELS[-1]
    still = torch.zeros(*poses.shape[:2], 6, dtype=torch.float64, device=poses.device)
    nothing = mask.new_zeros((), dtype=torch.float32)  # slopes do not depend on what is searched for
    slope = _slope(still, poses, renderer, nothing, level) / level.sizes.to(still)
    weighted = slope * mask.flatten(2).repeat_interleave(3, dim=-1)[..., None]
    noise = ROBUST_SCALE**2 * 3 * 4 * math.pi * level.blur**2
    floor = 1e-6 * torch.eye(6, dtype=torch.float64, device=poses.device)
    variance = torch.linalg.inv(weighted.transpose(-1, -2) @ slope / noise + floor).diagonal(dim1=-2, dim2=-1)
    return torch.rad2deg(variance[..., :3].sum(-1).sqrt())


def magnitude(offset: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation in degrees and translation in metres of offsets [..., 6]."""
    return torch.rad2deg(offset[..., :3].norm(dim=-1)), offset[..., 3:].norm(dim=-1)


def as_matrix(offset: Tensor) -> Tensor:
    """Rigid motions [..., 4, 4] of offsets [..., 6]: rotation by the axis-angle, then the translation."""
    x, y, z = offset[..., :3].unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    matrix = torch.eye(4, dtype=offset.dtype, device=offset.device).repeat(*offset.shape[:-1], 1, 1)
    matrix[..., :3, :3] = torch.linalg.matrix_exp(skew)
    matrix[..., :3, 3] = offset[..., 3:]
    return matrix


def _slope(offset: Tensor, poses: Tensor, renderer: Renderer, target: Tensor, level: Level) -> Tensor:
    """Change of the residual a derivative step, by central differences: [B, T, h w 3, 6].

    It is kept for a whole level: pictures change little over the offsets in question, and renders are what costs.
    """
    columns = []
    for axis, size in enumerate(level.sizes.tolist()):
        shift = torch.zeros_like(offset)
        shift[..., axis] = size
        ahead, behind = (_residual(offset + sign * shift, poses, renderer, target, level) for sign in (1, -1))
        columns.append((ahead - behind).flatten(2) / 2)
    return torch.stack(columns, dim=-1).double()


def _newton_step(slope: Tensor, residual: Tensor, weight: Tensor, damping: Tensor) -> Tensor:
    """Damped, robustly weighted least-squares step [B, T, 6], in derivative steps (which evens out radians and
    metres).
    """
    weights = weight[..., None] / (1 + (residual / ROBUST_SCALE) ** 2)
    weighted = slope * weights.flatten(2)[..., None]
    normal = weighted.transpose(-1, -2) @ slope
    gradient = (weighted * residual.flatten(2)[..., None]).sum(2)
    # Damping relative to each diagonal entry, and a floor for frames without a pixel to compare.
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    normal = normal + torch.diag_embed(diagonal * damping[..., None] + 1e-6)
    return -torch.linalg.solve(normal, gradient[..., None])[..., 0].clamp(-LONGEST_STEP, LONGEST_STEP)


def _residual(offset: Tensor, poses: Tensor, renderer: Renderer, target: Tensor, level: Level) -> Tensor:
    return _blurred(renderer(poses @ as_matrix(offset)), level.blur) - target


def _cost(residual: Tensor, weight: Tensor) -> Tensor:
    """Mean robust cost (Cauchy) of each frame, [B, T]."""
    cost = torch.log1p((residual / ROBUST_SCALE) ** 2).mean(-1) * weight
    return cost.sum((-2, -1)) / weight.sum((-2, -1)).clamp_min(1)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Images [B, T, h, w, 3] under a Gaussian blur, edges repeated."""
    radius = math.ceil(3 * sigma)
    offset = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    flat = images.flatten(0, 1).movedim(-1, 1).flatten(0, 1)[:, None]
    flat = functional.pad(flat, (radius,) * 4, mode="replicate")
    flat = functional.conv2d(functional.conv2d(flat, kernel[None, None, :, None]), kernel[None, None, None, :])
    return flat[:, 0].unflatten(0, (-1, 3)).movedim(1, -1).unflatten(0, images.shape[:2])
