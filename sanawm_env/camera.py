"""Camera geometry: rigid poses, intrinsics, Pluecker rays and the ray transforms of the camera branch.

Axes are OpenCV's (x right, y down, z forward); a pose is camera-to-world, 4x4, metres. Pixels are counted at their
centres with integer coordinates: the ray of pixel (u, v) is ((u - cx) / fx, (v - cy) / fy, 1). Pure functions; see spec
dit.md 3.10 and 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.errors import PoseError

RIGID_TOLERANCE = 1e-3


def check_rigid(poses: Tensor, name: str = "poses") -> Tensor:
    """The given camera-to-world matrices [..., 4, 4], once each is found to be a rigid motion.

    Raises PoseError for a wrong shape, a value that is not finite, a rotation that is not orthonormal with determinant
    +1, or a last row other than (0, 0, 0, 1).
    """
    if poses.shape[-2:] != (4, 4):
        raise PoseError(
            f"{name} has shape {tuple(poses.shape)}, allowed is [..., 4, 4]; pass camera-to-world matrices."
        )
    if not bool(torch.isfinite(poses).all()):
        raise PoseError(f"{name} holds NaN or infinity, allowed are finite numbers; check how the poses were made.")
    rotation = poses[..., :3, :3].double()
    gram = rotation.transpose(-1, -2) @ rotation - torch.eye(3, dtype=torch.float64, device=poses.device)
    skew = float(gram.abs().max()) if gram.numel() else 0.0
    if skew > RIGID_TOLERANCE or bool((torch.linalg.det(rotation) < 0).any()):
        raise PoseError(
            f"{name} is not rigid: |R^T R - I| reaches {skew:.2g} or det R < 0, allowed {RIGID_TOLERANCE} and +1; "
            "normalise the rotations (scipy Rotation.from_matrix does) and remove scale or mirroring."
        )
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=poses.dtype, device=poses.device)
    if bool(((poses[..., 3, :] - last).abs() > RIGID_TOLERANCE).any()):
        raise PoseError(f"{name} has a last row other than (0, 0, 0, 1); pass homogeneous camera-to-world matrices.")
    return poses


def check_intrinsics(intrinsics: Tensor) -> Tensor:
    """The given (fx, fy, cx, cy) [B, 4], once all are finite and the focal lengths positive. Raises PoseError."""
    if not bool(torch.isfinite(intrinsics).all()) or bool((intrinsics[:, :2] <= 0).any()):
        raise PoseError(
            f"intrinsics are {intrinsics.tolist()}, allowed are finite numbers with fx, fy > 0; "
            "give fx, fy, cx, cy in pixels."
        )
    return intrinsics


def invert_rigid(poses: Tensor) -> Tensor:
    """Inverse of rigid 4x4 matrices [..., 4, 4] in closed form."""
    rotation = poses[..., :3, :3].transpose(-1, -2)
    inverse = torch.zeros_like(poses)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -_turned(rotation, poses[..., :3, 3])
    inverse[..., 3, 3] = 1
    return inverse


def relative_poses(origin: Tensor, poses: Tensor) -> Tensor:
    """Poses [B, T, 4, 4] seen from `origin` [B, 4, 4]; computed in float64, as accumulated paths need it."""
    back = invert_rigid(origin.double())[:, None]
    return (back[..., None] * poses.double()[..., None, :, :]).sum(-2)


def latent_intrinsics(intrinsics: Tensor, stride: int) -> Tensor:
    """(fx, fy, cx, cy) [..., 4] in latent pixels from those in frame pixels; no half-pixel shift (spec dit.md 5.2)."""
    return intrinsics / stride


def pixel_rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Unit ray of each pixel in camera axes, [B, height * width, 3], from intrinsics [B, 4] in units of these
    pixels.
    """
    fx, fy, cx, cy = intrinsics.float().unbind(-1)
    rows = torch.arange(height, device=intrinsics.device, dtype=torch.float32)
    columns = torch.arange(width, device=intrinsics.device, dtype=torch.float32)
    x = (columns[None] - cx[:, None]) / fx[:, None]
    y = (rows[None] - cy[:, None]) / fy[:, None]
    batch = intrinsics.shape[0]
    rays = torch.stack(
        [
            x[:, None, :].expand(batch, height, width),
            y[:, :, None].expand(batch, height, width),
            torch.ones_like(x[:, None, :]).expand(batch, height, width),
        ],
        dim=-1,
    )
    return torch.nn.functional.normalize(rays.flatten(1, 2), dim=-1)


def plucker_rays(poses: Tensor, rays: Tensor) -> Tensor:
    """Pluecker coordinates (direction, moment) of every ray of every frame, [B, T, S, 6], world axes.

    poses: [B, T, 4, 4] camera to world. rays: [B, S, 3] unit rays in camera axes.
    """
    direction = _turned(poses[..., None, :3, :3].float(), rays[:, None])
    origin = poses[..., None, :3, 3].float().expand_as(direction)
    return torch.cat([direction, torch.linalg.cross(origin, direction, dim=-1)], dim=-1)


def ray_transforms(poses: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """World-to-ray transform of every token and its inverse, each [B, T, S, 4, 4] in fp32 (spec dit.md 3.10).

    poses: [B, T, 4, 4] camera to world; rays: [B, S, 3] unit rays in camera axes. The ray frame looks along the ray
    (z), its x axis is the camera's y axis crossed with the ray.
    """
    rotation = poses[..., :3, :3].float()
    position = poses[..., :3, 3].float()
    z = _unit(_turned(rotation[:, :, None], rays[:, None]))
    down = rotation[..., None, :, 1].expand_as(z)
    x = _unit(torch.linalg.cross(down, z, dim=-1))
    y = _unit(torch.linalg.cross(z, x, dim=-1))
    to_ray = torch.stack([x, y, z], dim=-2)
    centre = position[..., None, :].expand_as(z)
    forth = _homogeneous(to_ray, -_turned(to_ray, centre)[..., None])
    return forth, _homogeneous(to_ray.transpose(-1, -2), centre[..., None])


def _turned(rotation: Tensor, vector: Tensor) -> Tensor:
    """rotation [..., 3, 3] times vector [..., 3], term by term.

    A library's product of such small matrices rounds by how many there are and how many threads share them, and a
    world would depend on its batch.
    """
    x, y, z = (vector[..., None, i] for i in range(3))
    return rotation[..., 0] * x + rotation[..., 1] * y + rotation[..., 2] * z


def _unit(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp_min(1e-6)


def _homogeneous(rotation: Tensor, translation: Tensor) -> Tensor:
    top = torch.cat([rotation, translation], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], dim=-2)
