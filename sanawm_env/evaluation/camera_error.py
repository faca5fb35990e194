"""How far an estimated camera path is from the true one: RotErr, TransErr, CamMC of spec training.md 8.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sanawm_env.errors import PoseError
from sanawm_env.rigid import homogeneous, vector_from_rotation

# What the estimate may be moved by: a similarity, a rigid motion, or only that of its first pose to the true one.
Alignment = Literal["similarity", "rigid", "first"]


@dataclass(frozen=True, kw_only=True)
class CameraError:
    """Means over frames, once the estimate is aligned. rotation: RotErr, degrees. translation: TransErr, units of the
    truth. relative: TransErr over the length of the true path. matrix: CamMC. scale: by which the estimate was
    multiplied."""

    rotation: float
    translation: float
    relative: float
    matrix: float
    scale: float


def camera_error(estimate: np.ndarray, truth: np.ndarray, *, alignment: Alignment = "similarity") -> CameraError:
    """The error of poses [T, 4, 4] camera to world against the true ones, both seen from the first true one.

    alignment: "similarity" as the paper has it, by camera centres, under which half the speed is no error; "rigid",
    without scale, so that it is one; "first", no more than putting the first poses in one place, which a path without
    extent allows too. PoseError: other shapes, or a path that does not say how it is turned.
    """
    if estimate.shape != truth.shape or estimate.ndim != 3 or estimate.shape[1:] != (4, 4):
        raise PoseError(f"poses have shapes {estimate.shape} and {truth.shape}, expected [T, 4, 4] twice")
    truth = _from_first(truth)
    length = float(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum())
    if alignment == "first":
        aligned, scale = _from_first(estimate), 1.0
    else:
        rotation, shift, scale = align(estimate[:, :3, 3], truth[:, :3, 3], scaled=alignment == "similarity")
        aligned = homogeneous(rotation @ estimate[:, :3, :3], scale * estimate[:, :3, 3] @ rotation.T + shift)
    turned = np.swapaxes(truth[:, :3, :3], 1, 2) @ aligned[:, :3, :3]
    off = float(np.linalg.norm(aligned[:, :3, 3] - truth[:, :3, 3], axis=1).mean())
    return CameraError(
        rotation=float(np.degrees(np.linalg.norm(vector_from_rotation(turned), axis=-1)).mean()),
        translation=off,
        relative=off / length if length else np.inf,
        matrix=float(np.linalg.norm((aligned - truth)[:, :3], axis=(1, 2)).mean()),
        scale=scale,
    )


def _from_first(poses: np.ndarray) -> np.ndarray:
    seen: np.ndarray = np.linalg.inv(poses[0]) @ poses
    return seen


def align(points: np.ndarray, targets: np.ndarray, *, scaled: bool = True) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotation [3, 3], shift [3] and scale that bring points [T, 3] nearest to their targets (Umeyama); scale is 1
    unless `scaled`. PoseError: points that do not span a plane, which leave a rotation open."""
    centre, target = points.mean(0), targets.mean(0)
    left, sizes, right = np.linalg.svd((targets - target).T @ (points - centre))
    if not sizes[1] > 1e-9 * max(1.0, sizes[0]):
        raise PoseError(
            f"camera centres span no plane (singular values {sizes}), so nothing says how the path is turned"
        )
    mirror = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = left * mirror @ right
    scale = float(sizes @ mirror / ((points - centre) ** 2).sum()) if scaled else 1.0
    return rotation, target - scale * rotation @ centre, scale
