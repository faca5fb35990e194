"""Rigid motions in NumPy, float64, batched over leading axes: rotation vectors, 4x4 poses, body velocities.

Axes are OpenCV's (x right, y down, z forward) unless a name says body: x forward, y left, z up, as robots have them
(REP 103).
"""

from __future__ import annotations

import numpy as np

# Columns are the body axes (forward, left, up) written in camera axes.
CAMERA_FROM_BODY = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


def cross_matrix(vector: np.ndarray) -> np.ndarray:
    """[..., 3, 3] matrices whose product with w is the cross product of `vector` [..., 3] with w."""
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    return _matrices([[zero, -z, y], [z, zero, -x], [-y, x, zero]])


def rotation_from_vector(vector: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3] in radians (Rodrigues' formula)."""
    cross = cross_matrix(vector)
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    first, second, _ = _series(angle)
    return np.eye(3) + first * cross + second * (cross @ cross)


def vector_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """Rotation vectors [..., 3] of length at most pi, radians, of rotation matrices [..., 3, 3]."""
    skew = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1) / 2
    length = np.linalg.norm(sine, axis=-1)
    cosine = (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2
    angle = np.arctan2(length, cosine)
    scale = np.where(length > 1e-9, angle / np.maximum(length, 1e-12), 1.0)
    # Close to half a turn the skew part vanishes; the axis is then the largest column of R + 1.
    half = (cosine < 0) & (length < 1e-6)
    return np.where(half[..., None], _half_turn(rotation, angle, sine), sine * scale[..., None])


def motion_from_twist(linear: np.ndarray, angular: np.ndarray) -> np.ndarray:
    """Motion [..., 4, 4] of a body that keeps its own velocity for one unit of time (exponential map of SE(3)).

    linear: [..., 3] metres, angular: [..., 3] radians, both in the axes of the moving body.
    """
    cross = cross_matrix(angular)
    angle = np.linalg.norm(angular, axis=-1)[..., None, None]
    _, second, third = _series(angle)
    travel = np.eye(3) + second * cross + third * (cross @ cross)
    return homogeneous(rotation_from_vector(angular), (travel @ linear[..., None])[..., 0])


def homogeneous(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """[..., 4, 4] from rotations [..., 3, 3] and translations [..., 3]."""
    pose = np.zeros((*translation.shape[:-1], 4, 4))
    pose[..., :3, :3] = rotation
    pose[..., :3, 3] = translation
    pose[..., 3, 3] = 1
    return pose


def about_vertical(angle: np.ndarray) -> np.ndarray:
    """Rotations [..., 3, 3] about +y, which points down; positive angles, in radians, turn right."""
    sine, cosine, zero, one = np.sin(angle), np.cos(angle), np.zeros_like(angle), np.ones_like(angle)
    return _matrices([[cosine, zero, sine], [zero, one, zero], [-sine, zero, cosine]])


def about_right(angle: np.ndarray) -> np.ndarray:
    """Rotations [..., 3, 3] about +x, which points right; positive angles, in radians, look up."""
    sine, cosine, zero, one = np.sin(angle), np.cos(angle), np.zeros_like(angle), np.ones_like(angle)
    return _matrices([[one, zero, zero], [zero, cosine, -sine], [zero, sine, cosine]])


def body_velocity(before: np.ndarray, after: np.ndarray, fps: float) -> np.ndarray:
    """[..., 6] velocity between two successive camera poses [..., 4, 4], in body axes of the camera.

    Columns: forward, left, up in m/s, then roll, pitch, yaw rate in rad/s about these axes (yaw positive to the left).
    It is the mean over the frame: displacement and rotation vector times fps.
    """
    turned = np.swapaxes(before[..., :3, :3], -1, -2)
    shift = (turned @ (after[..., :3, 3] - before[..., :3, 3])[..., None])[..., 0]
    angles = vector_from_rotation(turned @ after[..., :3, :3])
    return np.concatenate([shift @ CAMERA_FROM_BODY, angles @ CAMERA_FROM_BODY], axis=-1) * fps


def _matrices(rows: list[list[np.ndarray]]) -> np.ndarray:
    """[..., 3, 3] from its entries [...], row by row."""
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _series(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sin(a)/a, (1 - cos a)/a^2 and (a - sin a)/a^3, by their series near zero."""
    small = angle < 1e-4
    a = np.where(small, 1.0, angle)
    square = angle * angle
    first = np.where(small, 1 - square / 6, np.sin(a) / a)
    second = np.where(small, 0.5 - square / 24, (1 - np.cos(a)) / (a * a))
    third = np.where(small, 1 / 6 - square / 120, (a - np.sin(a)) / (a * a * a))
    return first, second, third


def _half_turn(rotation: np.ndarray, angle: np.ndarray, sine: np.ndarray) -> np.ndarray:
    symmetric = (rotation + np.swapaxes(rotation, -1, -2)) / 2 + np.eye(3)
    largest = np.argmax(np.linalg.norm(symmetric, axis=-2), axis=-1)
    axis = np.take_along_axis(symmetric, largest[..., None, None], axis=-1)[..., 0]
    axis = axis / np.maximum(np.linalg.norm(axis, axis=-1, keepdims=True), 1e-12)
    sign = np.where((axis * sine).sum(-1, keepdims=True) < 0, -1.0, 1.0)
    return sign * axis * angle[..., None]
