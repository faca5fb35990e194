"""The camera of a MuJoCo model as `RecordCamera` wants it. Import this before MuJoCo draws its first picture."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

from sanawm_env.errors import ConfigError, nearest
from sanawm_env.rigid import homogeneous
from sanawm_env.wrappers.record import Camera

# Without a GPU, MuJoCo draws with Mesa, which brings an LLVM, and so does triton: a process that loads triton's after
# Mesa's is killed by a segmentation fault, the other way round it lives. Our models import triton, some time.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

# MuJoCo's cameras look along -z with x to the right and y up; columns are OpenCV's axes written in those.
MUJOCO_FROM_OPENCV = np.diag([1.0, -1.0, -1.0])


def mujoco_camera(name: str, size: tuple[int, int]) -> Camera:
    """Pose and intrinsics of the camera `name` of an environment with `model` and `data`, as Gymnasium's MuJoCo
    environments have them. size: height and width of the rendered picture. ConfigError: no such camera."""

    def camera(env: Any) -> tuple[np.ndarray, np.ndarray]:
        number = _number(env.model, name)
        return camera_pose(env.data, number), camera_intrinsics(env.model, number, size)

    return camera


def camera_pose(data: Any, camera: int) -> np.ndarray:
    """[4, 4] camera to world, OpenCV axes, metres; of an `MjData` whose kinematics are up to date."""
    rotation = np.array(data.cam_xmat[camera], np.float64).reshape(3, 3)
    return homogeneous(rotation @ MUJOCO_FROM_OPENCV, np.array(data.cam_xpos[camera], np.float64))


def camera_intrinsics(model: Any, camera: int, size: tuple[int, int]) -> np.ndarray:
    """(fx, fy, cx, cy) in pixels of a picture of this height and width, counted from the centre of the upper left one.

    A camera with a field of view has square pixels and its axis in the middle; one with a sensor has the focal lengths
    and the principal point that the model gives.
    """
    height, width = size
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    sensor = np.array(model.cam_sensorsize[camera], np.float64)
    if sensor[1] > 0:
        focal, shift = np.split(np.array(model.cam_intrinsic[camera], np.float64), 2)
        scale = np.array([width, height]) / sensor
        return np.concatenate([focal * scale, middle - shift * scale])  # a positive shift moves the picture back
    focal_length = height / 2 / math.tan(math.radians(float(model.cam_fovy[camera])) / 2)
    return np.array([focal_length, focal_length, *middle])


def _number(model: Any, name: str) -> int:
    names = [model.camera(k).name for k in range(model.ncam)]
    if name not in names:
        raise ConfigError(f"the model has no camera {name!r}; {nearest(name, names)}")
    return names.index(name)
