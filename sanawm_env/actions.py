"""Action maps: from an agent's actions to the camera poses of the coming frames.

Poses are camera-to-world, 4x4, OpenCV axes, metres, in a world whose y axis points down. Signs follow robots: forward,
left and up are positive, and a positive turn is to the left. NumPy in float64, batched over worlds; nothing here knows
of the model.
"""

from __future__ import annotations

import abc
import ast
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sanawm_env.errors import ActionError, nearest
from sanawm_env.rigid import (
    CAMERA_FROM_BODY,
    about_vertical,
    homogeneous,
    motion_from_twist,
    rotation_from_vector,
    vector_from_rotation,
)


@dataclass(frozen=True, kw_only=True)
class ActionMap(abc.ABC):
    """Base of all action maps.

    Letters in shapes: B worlds, F frames, A columns of an action, k numbers carried from one frame to the next.
    """

    name: ClassVar[str]
    motion_size: ClassVar[int] = 0

    @property
    def kind(self) -> str:
        """What an action is: "continuous" (within low .. high), "binary" (keys up or down), "choice" (one number)."""
        return "continuous"

    @property
    @abc.abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Name of each column of an action."""

    @property
    @abc.abstractmethod
    def units(self) -> tuple[str, ...]:
        """Unit of each column."""

    @property
    def high(self) -> np.ndarray:
        """[A] largest value of each column."""
        return np.ones(self.size)

    @property
    def low(self) -> np.ndarray:
        """[A] smallest value of each column."""
        return -self.high

    @property
    def size(self) -> int:
        return len(self.columns)

    def initial(self, batch: int) -> np.ndarray:
        """[B, k] motion carried between frames, at rest."""
        return np.zeros((batch, self.motion_size))

    def read(self, action: Any) -> np.ndarray:
        """The action as an array of numbers; a map that takes other forms of action (a 4x4 pose) converts them here."""
        return np.asarray(action)

    def hold(self, pose: np.ndarray, action: np.ndarray, frames: int) -> np.ndarray:
        """One action a world [B, A] spread over the frames of a chunk [B, F, A]."""
        return np.repeat(action[:, None], frames, axis=1)

    def limit(self, actions: np.ndarray, *, strict: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Actions [B, ..., A] within the limits, and how many numbers were clipped in each world, int64 [B].

        Raises ActionError on NaN or infinity, on a value that a key or a choice cannot have, and with `strict` on any
        value outside.
        """
        actions = self._numbers(actions)
        inside = np.clip(actions, self.low, self.high)
        # A limit that went through float32, as Gymnasium's spaces do, is still inside.
        changed = np.abs(inside - actions) > 1e-6 * np.maximum(1.0, np.abs(self.high))
        if changed.any() and (strict or self.kind != "continuous"):
            where = tuple(np.argwhere(changed)[0])
            column = int(where[-1])
            remedy = (
                "scale the action, or use strict=False to clip" if self.kind == "continuous" else "change the action"
            )
            raise ActionError(
                f"action column {self.columns[column]!r} is {actions[where]:g}, allowed is {self.low[column]:g} .. "
                f"{self.high[column]:g} {self.units[column]}; {remedy}."
            )
        return inside, changed.reshape(len(actions), -1).sum(axis=1)

    def _numbers(self, actions: np.ndarray) -> np.ndarray:
        numbers = real_numbers(actions)
        if numbers.ndim < 2 or numbers.shape[-1] != self.size:
            raise ActionError(
                f"actions have shape {numbers.shape}, expected [worlds, ..., {self.size}] for map {self.name!r} "
                f"({', '.join(self.columns)})."
            )
        if not np.isfinite(numbers).all():
            wrong = np.argwhere(~np.isfinite(numbers))
            worlds = ", ".join(str(world) for world in np.unique(wrong[:, 0]))
            raise ActionError(
                f"action column {self.columns[int(wrong[0, -1])]!r} is {numbers[tuple(wrong[0])]} (worlds with such "
                f"actions: {worlds}), allowed are finite numbers; check the policy for NaN."
            )
        if self.kind != "continuous" and (numbers != np.round(numbers)).any():
            raise ActionError(
                f"action holds a fraction, allowed are whole numbers for map {self.name!r}; pass integers."
            )
        return numbers

    def rollout(
        self, pose: np.ndarray, motion: np.ndarray, actions: np.ndarray, fps: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Poses of the coming frames.

        pose: [B, 4, 4] of the current frame. motion: [B, k] from `initial` or the last rollout. actions: [B, F, A]
        within the limits. fps: frames a second. Returns poses [B, F, 4, 4], row j where frame j is seen, and the new
        motion. Inputs are not changed.
        """
        current, carried = np.array(pose, dtype=np.float64), np.array(motion, dtype=np.float64)
        actions = np.asarray(actions, dtype=np.float64)
        poses = np.empty((*actions.shape[:2], 4, 4))
        for frame in range(actions.shape[1]):
            current, carried = self.advance(current, carried, actions[:, frame], 1.0 / fps)
            poses[:, frame] = current
        return poses, carried

    @abc.abstractmethod
    def advance(
        self, pose: np.ndarray, motion: np.ndarray, action: np.ndarray, dt: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """One frame of `rollout`: pose [B, 4, 4], motion [B, k], action [B, A], dt in seconds."""


def real_numbers(action: Any) -> np.ndarray:
    """The action as float64 of the same shape; raises ActionError on text, objects and complex numbers."""
    given = np.asarray(action)
    # NumPy would drop the imaginary part with no more than a warning.
    if np.iscomplexobj(given):
        raise ActionError(
            f"action holds {given.ravel()[:1].tolist()} ({given.dtype}), allowed are real numbers; pass action.real."
        )
    try:
        return given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ActionError(f"action {action!r} is not numeric, allowed are numbers; pass an array of them.") from error


def follow(velocity: np.ndarray, target: np.ndarray, dt: float, time_constant: float) -> np.ndarray:
    """Velocity after dt seconds of a first-order lag towards the target; a time constant of 0 follows at once."""
    return target if time_constant == 0 else velocity + (1 - np.exp(-dt / time_constant)) * (target - velocity)


@dataclass(frozen=True, kw_only=True)
class Twist(ActionMap):
    """Velocity of the camera in its own body axes (x forward, y left, z up; REP 103), integrated exactly on SE(3).

    max_linear in m/s, max_angular in rad/s; time_constant: seconds in which 63 % of a change of velocity is reached, 0
    for at once.
    """

    name: ClassVar[str] = "twist"
    motion_size: ClassVar[int] = 6
    max_linear: float = 1.0
    max_angular: float = 1.0
    time_constant: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(self, ("max_linear", "max_angular"), "time_constant")

    @property
    def columns(self) -> tuple[str, ...]:
        return ("forward", "left", "up", "roll", "pitch", "yaw")

    @property
    def units(self) -> tuple[str, ...]:
        return ("m/s",) * 3 + ("rad/s",) * 3

    @property
    def high(self) -> np.ndarray:
        return np.array([self.max_linear] * 3 + [self.max_angular] * 3)

    def advance(
        self, pose: np.ndarray, motion: np.ndarray, action: np.ndarray, dt: float
    ) -> tuple[np.ndarray, np.ndarray]:
        velocity = follow(motion, action, dt, self.time_constant)
        linear, angular = velocity[:, :3] @ CAMERA_FROM_BODY.T, velocity[:, 3:] @ CAMERA_FROM_BODY.T
        return pose @ motion_from_twist(linear * dt, angular * dt), velocity


@dataclass(frozen=True, kw_only=True)
class Wheeled(ActionMap):
    """A robot on level ground with a camera on it, whose height and tilt stay those of its start pose.

    The mount says where the camera sits from the robot's middle: mount_forward and mount_left in metres, mount_yaw in
    radians (0 looks ahead, positive to the left). max_speed in m/s, max_turn in rad/s; time_constant in seconds, see
    Twist.
    """

    max_speed: float = 1.0
    max_turn: float = 1.0
    time_constant: float = 0.0
    mount_forward: float = 0.0
    mount_left: float = 0.0
    mount_yaw: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(self, ("max_speed", "max_turn"), "time_constant")

    def roll(
        self, pose: np.ndarray, forward: np.ndarray, sideways: np.ndarray | float, turn: np.ndarray, dt: float
    ) -> np.ndarray:
        """Camera poses [B, 4, 4] after dt seconds at speeds [B] forward and to the left and turn rates [B], exactly."""
        turned, ahead = turn * dt, heading(pose) + self.mount_yaw
        # np.sinc(x) is sin(pi x) / (pi x): straight is no case of its own. The chord points half-way into the turn.
        share, middle = np.sinc(turned / (2 * np.pi)), ahead + turned / 2
        shift = (forward * dt * share)[:, None] * level(middle)
        shift = shift + (sideways * dt * share)[:, None] * level(middle + np.pi / 2)
        to_camera = self.mount_forward * level(ahead) + self.mount_left * level(ahead + np.pi / 2)
        rotation = about_vertical(-turned)
        moved = pose[:, :3, 3] - to_camera + shift + (rotation @ to_camera[..., None])[..., 0]
        return homogeneous(rotation @ pose[:, :3, :3], moved)


@dataclass(frozen=True, kw_only=True)
class DiffDrive(Wheeled):
    """A robot on two wheels, its middle that of the axle: forward speed v and turn rate w. Options as of Wheeled."""

    name: ClassVar[str] = "diff_drive"
    motion_size: ClassVar[int] = 2

    @property
    def columns(self) -> tuple[str, ...]:
        return ("v", "w")

    @property
    def units(self) -> tuple[str, ...]:
        return ("m/s", "rad/s")

    @property
    def high(self) -> np.ndarray:
        return np.array([self.max_speed, self.max_turn])

    def advance(
        self, pose: np.ndarray, motion: np.ndarray, action: np.ndarray, dt: float
    ) -> tuple[np.ndarray, np.ndarray]:
        velocity = follow(motion, action, dt, self.time_constant)
        return self.roll(pose, velocity[:, 0], 0.0, velocity[:, 1], dt), velocity


def heading(pose: np.ndarray) -> np.ndarray:
    """[B] angle of the camera's view in the horizontal plane, radians: 0 along world +z, positive to the left (towards
    -x).

    Raises ActionError for a camera that looks straight up or down.
    """
    x, z = pose[..., 0, 2], pose[..., 2, 2]
    if (np.hypot(x, z) < 1e-6).any():
        raise ActionError(
            "the camera looks straight up or down, which has no heading; start it tilted less, or use map 'twist'."
        )
    return np.arctan2(-x, z)


def level(angle: np.ndarray) -> np.ndarray:
    """Horizontal unit vectors [B, 3] of a heading."""
    return np.stack([-np.sin(angle), np.zeros_like(angle), np.cos(angle)], axis=-1)


@dataclass(frozen=True, kw_only=True)
class Pose(ActionMap):
    """Camera poses given outright, as position and rotation vector; 4x4 camera-to-world matrices are taken as well.

    mode "delta": motion of each frame seen from the frame before it, in camera axes (x right, y down, z forward).
    mode "absolute": pose in the caller's world; one held for a chunk is approached steadily, reached with its last
    frame. max_linear in metres, max_angular in radians a number; 1 and 1 by default for "delta", 100 and pi for
    "absolute".
    """

    name: ClassVar[str] = "pose"
    mode: str = "delta"
    max_linear: float | None = None
    max_angular: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("absolute", "delta"):
            raise ActionError(
                f"mode of action map 'pose' is {self.mode!r}; {nearest(str(self.mode), ('absolute', 'delta'))}"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return ("x", "y", "z", "rotation_x", "rotation_y", "rotation_z")

    @property
    def units(self) -> tuple[str, ...]:
        return ("m",) * 3 + ("rad",) * 3

    @property
    def high(self) -> np.ndarray:
        linear, angular = (1.0, 1.0) if self.mode == "delta" else (100.0, np.pi)
        linear = linear if self.max_linear is None else self.max_linear
        return np.array([linear] * 3 + [angular if self.max_angular is None else self.max_angular] * 3)

    def read(self, action: Any) -> np.ndarray:
        given = np.asarray(action)
        return pose_vector(given) if given.shape[-2:] == (4, 4) else given

    def hold(self, pose: np.ndarray, action: np.ndarray, frames: int) -> np.ndarray:
        if self.mode == "delta":
            return super().hold(pose, action, frames)
        part = (np.arange(1, frames + 1) / frames)[None, :, None]
        start, turned = pose[:, None, :3, 3], pose[:, None, :3, :3]
        turn = vector_from_rotation(np.swapaxes(turned, -1, -2) @ rotation_from_vector(action[:, None, 3:]))
        rotation = turned @ rotation_from_vector(part * turn)
        path = np.concatenate([start + part * (action[:, None, :3] - start), vector_from_rotation(rotation)], axis=-1)
        path[:, -1] = action
        return path

    def advance(
        self, pose: np.ndarray, motion: np.ndarray, action: np.ndarray, dt: float
    ) -> tuple[np.ndarray, np.ndarray]:
        given = homogeneous(rotation_from_vector(action[:, 3:]), action[:, :3])
        return (pose @ given if self.mode == "delta" else given), motion


def pose_vector(poses: np.ndarray) -> np.ndarray:
    """[..., 6] position and rotation vector of camera-to-world matrices [..., 4, 4]; ActionError if not rigid."""
    poses = real_numbers(poses)
    rotation = poses[..., :3, :3]
    off = np.abs(np.swapaxes(rotation, -1, -2) @ rotation - np.eye(3)).max(initial=0.0)
    wrong_row = np.abs(poses[..., 3, :] - [0, 0, 0, 1]).max(initial=0.0)
    if not max(off, wrong_row) < 1e-3 or (np.linalg.det(rotation) < 0).any():
        raise ActionError(
            f"pose is not rigid: |R^T R - I| is {off:.2g}, the last row is off by {wrong_row:.2g}, allowed 0.001 "
            "and no mirroring; normalise the rotation."
        )
    return np.concatenate([poses[..., :3, 3], vector_from_rotation(rotation)], axis=-1)


def make_action_map(name: str, **options: Any) -> ActionMap:
    """The action map `name` ("twist", "diff_drive", "holonomic", "quadrotor", "keys", "pose", "kinematic_chain") with
    the given options, its dataclass fields.

    Raises ActionError on an unknown name or option, naming the nearest known one.
    """
    maps = _maps()
    if name not in maps:
        raise ActionError(f"unknown action map {name!r}; {nearest(str(name), maps)}")
    known = [field.name for field in dataclasses.fields(maps[name])]
    needed = [field.name for field in dataclasses.fields(maps[name]) if field.default is dataclasses.MISSING]
    if missing := [option for option in needed if option not in options]:
        raise ActionError(f"action map {name!r} needs {', '.join(missing)}; pass them as its options.")
    for option in options:
        if option not in known:
            raise ActionError(f"unknown option {option!r} of action map {name!r}; {nearest(option, known)}")
    return maps[name](**options)


def _maps() -> dict[str, type[ActionMap]]:
    from sanawm_env.keys import Keys
    from sanawm_env.kinematic_chain import KinematicChain
    from sanawm_env.vehicles import Holonomic, Quadrotor

    return {cls.name: cls for cls in (Twist, DiffDrive, Holonomic, Quadrotor, Keys, Pose, KinematicChain)}


def read_action_map(text: str) -> ActionMap:
    """The action map whose `repr` is `text`, as episode stores keep it. ActionError where it is none."""
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
        options = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        maps = {cls.__name__: name for name, cls in _maps().items()}
        return make_action_map(maps[call.func.id], **options)
    except (SyntaxError, AssertionError, KeyError, ValueError) as error:
        raise ActionError(f"{text!r} is no action map, allowed is the repr of one; restore it.") from error


def check_at_least(chosen: ActionMap, positive: tuple[str, ...], *not_negative: str) -> None:
    """Raises ActionError unless the named fields are finite and positive, respectively not negative."""
    for name in (*positive, *not_negative):
        value = getattr(chosen, name)
        if not np.isfinite(value) or value < 0 or (name in positive and value == 0):
            allowed = "> 0" if name in positive else ">= 0"
            raise ActionError(
                f"{name} of action map {chosen.name!r} is {value!r}, allowed {allowed}; change the option."
            )
