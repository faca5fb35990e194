"""Action maps of robots that move in any direction: a base on omnidirectional wheels, a quadrotor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sanawm_env.actions import ActionMap, Wheeled, check_at_least, follow, heading, level
from sanawm_env.errors import ActionError, nearest
from sanawm_env.rigid import about_vertical, homogeneous, rotation_from_vector

GRAVITY = 9.81
CAMERAS = ("gimbal", "fixed")


@dataclass(frozen=True, kw_only=True)
class Holonomic(Wheeled):
    """A base on omnidirectional wheels: speeds forward and to the left and a turn rate, integrated exactly along the
    arc. Options as of Wheeled; max_speed is of each direction.
    """

    name: ClassVar[str] = "holonomic"
    motion_size: ClassVar[int] = 3

    @property
    def columns(self) -> tuple[str, ...]:
        return ("forward", "left", "w")

    @property
    def units(self) -> tuple[str, ...]:
        return ("m/s", "m/s", "rad/s")

    @property
    def high(self) -> np.ndarray:
        return np.array([self.max_speed, self.max_speed, self.max_turn])

    def advance(
        self, pose: np.ndarray, motion: np.ndarray, action: np.ndarray, dt: float
    ) -> tuple[np.ndarray, np.ndarray]:
        velocity = follow(motion, action, dt, self.time_constant)
        return self.roll(pose, velocity[:, 0], velocity[:, 1], velocity[:, 2], dt), velocity


@dataclass(frozen=True, kw_only=True)
class Quadrotor(ActionMap):
    """A quadrotor whose autopilot follows a velocity: forward, left, up along its heading, and a turn rate.

    Velocity lags behind the action by `time_constant` seconds (63 % of a change). camera "gimbal": it keeps the tilt of
    its start pose. "fixed": it leans with the craft, whose thrust carries its weight and gives its acceleration; the
    lean lags by `lean_time_constant` and is at most `max_lean` radians. The start pose is taken as level flight.
    max_speed, max_climb in m/s, max_turn in rad/s. Motion: velocity in world axes, turn rate, lean (rotation about
    world x and z).
    """

    name: ClassVar[str] = "quadrotor"
    motion_size: ClassVar[int] = 6
    max_speed: float = 1.0
    max_climb: float = 1.0
    max_turn: float = 1.0
    time_constant: float = 0.3
    camera: str = "gimbal"
    lean_time_constant: float = 0.1
    max_lean: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(self, ("max_speed", "max_climb", "max_turn", "max_lean"), "time_constant", "lean_time_constant")
        if self.camera not in CAMERAS:
            raise ActionError(f"camera of action map 'quadrotor' is {self.camera!r}; {nearest(self.camera, CAMERAS)}")

    @property
    def columns(self) -> tuple[str, ...]:
        return ("forward", "left", "up", "yaw")

    @property
    def units(self) -> tuple[str, ...]:
        return ("m/s", "m/s", "m/s", "rad/s")

    @property
    def high(self) -> np.ndarray:
        return np.array([self.max_speed, self.max_speed, self.max_climb, self.max_turn])

    def advance(
        self, pose: np.ndarray, motion: np.ndarray, action: np.ndarray, dt: float
    ) -> tuple[np.ndarray, np.ndarray]:
        upright = _leaning(-motion[:, 4:]) @ pose[:, :3, :3]
        ahead = heading(homogeneous(upright, pose[:, :3, 3]))
        wanted = action[:, :1] * level(ahead) + action[:, 1:2] * level(ahead + np.pi / 2)
        wanted[:, 1] = -action[:, 2]  # y points down
        velocity = follow(motion[:, :3], wanted, dt, self.time_constant)
        turn_rate = follow(motion[:, 3], action[:, 3], dt, self.time_constant)
        lean = follow(motion[:, 4:], self._lean((velocity - motion[:, :3]) / dt), dt, self.lean_time_constant)
        rotation = _leaning(lean) @ about_vertical(-turn_rate * dt) @ upright
        moved = homogeneous(rotation, pose[:, :3, 3] + velocity * dt)
        return moved, np.concatenate([velocity, turn_rate[:, None], lean], axis=1)

    def _lean(self, acceleration: np.ndarray) -> np.ndarray:
        """[B, 2] lean at which thrust gives the horizontal part of an acceleration [B, 3] in m/s^2."""
        if self.camera == "gimbal":
            return np.zeros((len(acceleration), 2))
        across = np.stack([-acceleration[:, 2], acceleration[:, 0]], axis=1)
        size = np.linalg.norm(across, axis=1, keepdims=True)
        angle = np.minimum(np.arctan2(size, GRAVITY), self.max_lean)
        return across / np.maximum(size, 1e-12) * angle


def _leaning(lean: np.ndarray) -> np.ndarray:
    """Rotations [B, 3, 3] about a horizontal axis, from its x and z parts [B, 2] in radians."""
    return rotation_from_vector(np.stack([lean[:, 0], np.zeros(len(lean)), lean[:, 1]], axis=1))
