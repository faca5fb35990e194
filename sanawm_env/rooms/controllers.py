"""How robots and hand-held cameras move through a room: commands frame by frame, never closer than MARGIN to anything.

Controllers draw where they would like to go, look a little ahead on the floor plan, and pass their commands through the
product's action maps. A pose that would come too close is not taken: the linear part of that command is zeroed, which
leaves the position where it was, so a start in the clear stays in the clear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sanawm_env.actions import ActionMap, heading
from sanawm_env.rigid import CAMERA_FROM_BODY
from sanawm_env.rooms.collision import FloorPlan

MARGIN = 0.25  # metres kept from walls and furniture
_SAFE = MARGIN + 1e-3
_DECELERATION = 0.9  # m/s^2 used when slowing down before an obstacle
_ARCS = np.array([0.0, 0.35, -0.35, 0.7, -0.7, 1.0, -1.0])  # turn rates compared when steering, rad/s
_AHEAD = np.array([0.4, 0.8, 1.2])  # seconds; where an arc is looked at
_CLIMB = 0.4  # m/s, fastest change of height
HEIGHTS = (0.45, 0.45)  # metres kept from the floor and the ceiling in free flight


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """Random wishes of B rows over F frames: change [B, F] whether a new one is made, value [B, F, C] in [0, 1)."""

    change: np.ndarray
    value: np.ndarray


def held(wishes: Wishes) -> np.ndarray:
    """The wish in force at every frame [B, F, C]: the latest one made."""
    frames = np.where(wishes.change, np.arange(wishes.change.shape[1]), 0)
    latest = np.maximum.accumulate(frames, axis=1)
    return np.take_along_axis(wishes.value, latest[..., None], axis=1)


def _swing(mood: np.ndarray, size: np.ndarray, change: np.ndarray, *, calm: float, fastest: float) -> np.ndarray:
    """Turn rates [B, F], rad/s: slight in the share `calm` of wishes, else 0.3 to `fastest`; left, then right."""
    side = np.where((np.cumsum(change, axis=1) + (size[:, :1] > 0.5)) % 2 == 0, 1.0, -1.0)
    return side * np.where(mood < calm, 0.12 * size, 0.3 + (fastest - 0.3) * size)


def _lag(current: np.ndarray, target: np.ndarray, dt: float, seconds: float) -> np.ndarray:
    """Inertia: a first-order lag towards the target."""
    return current + (1.0 - np.exp(-dt / seconds)) * (target - current)


def _advance(
    action_map: ActionMap, plan: FloorPlan, pose: np.ndarray, command: np.ndarray, linear: int, fps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pose after one frame and the command taken, its first `linear` columns zeroed where it would come too close."""
    rest = action_map.initial(len(pose))
    moved = action_map.rollout(pose, rest, command[:, None], fps)[0][:, 0]
    gap = plan.distance(moved[:, None, 0, 3], moved[:, None, 2, 3])[:, 0]
    height, top = -moved[:, 1, 3], plan.half_size[:, 1]
    blocked = (gap < _SAFE) | (height < 0.3) | (height > top - 0.3)
    if not blocked.any():
        return moved, command
    command = command.copy()
    command[blocked, :linear] = 0.0
    stopped = action_map.rollout(pose[blocked], rest[blocked], command[blocked, None], fps)[0][:, 0]
    stopped[:, :3, 3] = pose[blocked, :3, 3]
    moved[blocked] = stopped
    return moved, command


def _run(
    pose: np.ndarray, frames: int, command_at: Callable[[int, np.ndarray, np.ndarray], np.ndarray], size: int,
    action_map: ActionMap, plan: FloorPlan, linear: int, fps: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Poses [B, frames + 1, 4, 4] and commands [B, frames, size]; controller: (frame, pose, last) -> command."""
    poses, commands = [pose], []
    last = np.zeros((len(pose), size))
    for frame in range(frames):
        pose, last = _advance(action_map, plan, pose, command_at(frame, pose, last), linear, fps)
        poses.append(pose)
        commands.append(last)
    taken = np.stack(commands, axis=1) if commands else np.zeros((len(pose), 0, size))
    return np.stack(poses, axis=1), taken


def drive(
    start: np.ndarray, frames: int, wishes: Wishes, action_map: ActionMap, plan: FloorPlan, fps: float
) -> tuple[np.ndarray, np.ndarray]:
    """A robot on wheels with inertia: forward at a wished speed, turning as wished, steering round what is ahead.

    Returns poses [B, frames + 1, 4, 4] and commands (v, w) [B, frames, 2].
    """
    wish = held(wishes)
    halts = (wish[..., 0] < 0.12) & (np.maximum.accumulate(wishes.change, axis=1))  # never the first wish
    speed = np.where(halts, 0.0, 0.35 + 0.5 * wish[..., 1])
    turn = np.where(halts, 0.0, _swing(wish[..., 2], wish[..., 3], wishes.change, calm=0.55, fastest=0.65))
    sway = np.where(halts, 0.0, 0.03 * (2.0 * wishes.value[..., 4] - 1.0))

    def command_at(frame: int, pose: np.ndarray, last: np.ndarray) -> np.ndarray:
        steered, room = _steer(plan, pose, speed[:, frame], turn[:, frame])
        # Where nothing ahead is free the robot turns on the spot until something is.
        steered = np.where(room < 0.1, np.where(last[:, 1] < 0.0, -0.6, 0.6), steered)
        steered = np.where(halts[:, frame], 0.0, steered)
        dt = 1.0 / fps
        w = np.clip(_lag(last[:, 1], steered, dt, 0.25) + sway[:, frame], -1.0, 1.0)
        v = _lag(last[:, 0], speed[:, frame], dt, 0.35)
        v = np.minimum(v, np.sqrt(2.0 * _DECELERATION * np.maximum(room, 0.0)))
        return np.stack((np.clip(v, 0.0, 1.0), w), axis=-1)

    return _run(start, frames, command_at, 2, action_map, plan, 1, fps)


def _steer(plan: FloorPlan, pose: np.ndarray, speed: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn rate [B] nearest the wished one among arcs with room, and metres [B] of room along it."""
    arcs = np.concatenate((turn[:, None], np.broadcast_to(_ARCS, (len(turn), len(_ARCS)))), axis=1)
    pace = np.maximum(speed, 0.4)[:, None, None]
    left = 0.5 * arcs[..., None] * _AHEAD
    angle = heading(pose)[:, None, None] + left
    chord = pace * _AHEAD * np.sinc(left / np.pi)
    x = pose[:, 0, 3, None, None] - chord * np.sin(angle)
    z = pose[:, 2, 3, None, None] + chord * np.cos(angle)
    gap = plan.distance(x.reshape(len(pose), -1), z.reshape(len(pose), -1)).reshape(x.shape)
    score = np.minimum(gap, 0.6).min(axis=-1) + 0.15 * np.minimum(gap, 0.6).mean(axis=-1)
    best = np.argmax(score - 0.12 * np.abs(arcs - turn[:, None]), axis=1)[:, None]
    clear = np.maximum.accumulate(gap[np.arange(len(gap)), best[:, 0]] < MARGIN + 0.05, axis=1)
    room = 0.05 + np.where(clear, 0.0, pace[:, 0] * 0.4).sum(axis=1)
    return np.take_along_axis(arcs, best, axis=1)[:, 0], room


def fly(
    start: np.ndarray, frames: int, wishes: Wishes, action_map: ActionMap, plan: FloorPlan, fps: float, *, still: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A camera in the hand: six degrees of freedom, roll within 0.2 rad, pitch within 0.45; `still`: on the spot.

    Returns poses [B, frames + 1, 4, 4] and commands (twist in body axes) [B, frames, 6].
    """
    wish = 2.0 * held(wishes) - 1.0
    travel = np.zeros((*wish.shape[:2], 3))
    if not still:
        travel = np.stack((0.25 + 0.5 * wish[..., 0], 0.4 * wish[..., 1], 0.35 * wish[..., 2]), axis=-1)
    calm, fastest = (0.35, 0.65) if still else (0.6, 0.55)
    yaw_rate = _swing(0.5 + 0.5 * wish[..., 1], 0.5 + 0.5 * wish[..., 3], wishes.change, calm=calm, fastest=fastest)
    pitch, roll = 0.25 * wish[..., 4] - 0.05, 0.10 * wish[..., 5]

    def command_at(frame: int, pose: np.ndarray, last: np.ndarray) -> np.ndarray:
        up = -pose[:, 1, :3] @ CAMERA_FROM_BODY  # the world's up in body axes
        turn = yaw_rate[:, frame, None] * up
        turn[:, 1] += 1.2 * (np.arcsin(np.clip(up[:, 0], -1.0, 1.0)) - pitch[:, frame])
        turn[:, 0] -= 1.2 * (np.arctan2(up[:, 1], up[:, 2]) - roll[:, frame])
        linear = _avoid(plan, pose, travel[:, frame]) if not still else travel[:, frame]
        command = _lag(last, np.concatenate((linear, turn), axis=1), 1.0 / fps, 0.35)
        return np.clip(command, -1.0, 1.0)

    return _run(start, frames, command_at, 6, action_map, plan, 3, fps)


def _avoid(plan: FloorPlan, pose: np.ndarray, travel: np.ndarray) -> np.ndarray:
    """Body velocity [B, 3] (forward, left, up) without what leads towards things near, and with a gentle push away."""
    x, z, step = pose[:, 0, 3, None], pose[:, 2, 3, None], 0.02
    gap = plan.distance(x + np.array([0.0, step, -step, 0.0, 0.0]), z + np.array([0.0, 0.0, 0.0, step, -step]))
    slope = np.stack((gap[:, 1] - gap[:, 2], gap[:, 3] - gap[:, 4]), axis=-1)
    away = np.zeros((len(pose), 3))
    away[:, (0, 2)] = slope / np.maximum(np.linalg.norm(slope, axis=-1, keepdims=True), 1e-9)
    body = pose[:, :3, :3] @ CAMERA_FROM_BODY
    world = (body @ travel[..., None])[..., 0]
    toward = np.minimum((world * away).sum(axis=-1), 0.0)
    near = np.clip((0.75 - gap[:, 0]) / 0.4, 0.0, 1.0)
    world = world + away * (0.35 * near - near * toward)[:, None]
    height, top = -pose[:, 1, 3], plan.half_size[:, 1]
    lowest, highest = HEIGHTS[0] + 0.15, top - HEIGHTS[1] - 0.15
    over = np.maximum(height - highest, 0.0) - np.maximum(lowest - height, 0.0)
    world[:, 1] = np.clip(world[:, 1], -_CLIMB, _CLIMB) + 2.0 * over
    return (np.swapaxes(body, -1, -2) @ world[..., None])[..., 0]
