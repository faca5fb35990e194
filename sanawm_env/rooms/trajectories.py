"""Camera paths through rooms, as a robot or a hand would make them, integrated with the product's action maps.

Kinds: diff_drive (a robot on wheels with inertia, round obstacles), free (six degrees of freedom), look_around (turning
and nodding on the spot), still, loop (laps of a circle, the same views every lap), there_and_back (64 frames out, the
same 64 back in reverse, again and again). Without a kind, each seed draws one (MIXTURE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sanawm_env.actions import DiffDrive, Twist
from sanawm_env.errors import SceneError, nearest
from sanawm_env.rigid import about_right, about_vertical, homogeneous
from sanawm_env.rooms.collision import FloorPlan
from sanawm_env.rooms.controllers import MARGIN, Wishes, drive, fly
from sanawm_env.rooms.draws import Draws
from sanawm_env.rooms.scenes import Scenes

# Standing still is a part of diff_drive here: a whole clip of it would only say that a copy is a perfect prediction.
MIXTURE: dict[str, float] = {
    "diff_drive": 0.54,
    "free": 0.26,
    "look_around": 0.09,
    "loop": 0.05,
    "there_and_back": 0.06,
    "still": 0.0,
}
LEG = 64  # frames of one way of there_and_back
ACTION_MAPS = {kind: "twist" if kind in ("free", "look_around") else "diff_drive" for kind in MIXTURE}
_DOMAIN = 2
_STARTS, _YAWS = 96, 8
_WISHES = 6
_WISH_SECONDS = 1.4  # mean time between two wishes


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """B paths of F frames.

    poses: float64 [B, F + 1, 4, 4], camera to room, row 0 the start. actions: float64 [B, F, 6], row k leads from pose
    k to pose k + 1 through the default map named in action_maps: twist uses six columns, diff_drive the first two.
    """

    poses: np.ndarray
    actions: np.ndarray
    kinds: tuple[str, ...]
    action_maps: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What B paths draw, NumPy: kind [B], starts [B, 96, 3], yaws [B, 8], tastes [B, 6], wishes over F frames."""

    kind: np.ndarray
    starts: np.ndarray
    yaws: np.ndarray
    tastes: np.ndarray
    wishes: Wishes


def sample_trajectories(
    scenes: Scenes, seeds: Sequence[int] | Tensor, frames: int, fps: float, kind: str | None = None
) -> Trajectory:
    """One collision-free path in each room: at least 0.25 m (MARGIN) from walls and furniture in the horizontal plane.

    A path depends on its room, its seed, fps and kind; the first frames do not depend on how many follow. Raises
    SceneError.
    """
    if len(seeds) != len(scenes):
        raise SceneError(f"{len(seeds)} seeds for {len(scenes)} scenes; pass one seed per scene")
    if kind is not None and kind not in MIXTURE:
        raise SceneError(f"unknown kind of trajectory {kind!r}; {nearest(kind, MIXTURE)}")
    drawn, plan = _draw(seeds, frames, fps), FloorPlan.of(scenes)
    names = list(MIXTURE)
    kinds = [names[number] for number in drawn.kind] if kind is None else [kind] * len(scenes)
    start = _starts(plan, drawn)
    poses, actions = np.empty((len(kinds), frames + 1, 4, 4)), np.zeros((len(kinds), frames, 6))
    for name in names:
        rows = np.array([row for row, own in enumerate(kinds) if own == name], dtype=np.int64)
        if len(rows):
            path, taken = _path(name, rows, start[rows], plan.rows(rows), drawn, frames, fps)
            poses[rows], actions[rows, :, : taken.shape[-1]] = path, taken
    return Trajectory(
        poses=poses, actions=actions, kinds=tuple(kinds), action_maps=tuple(ACTION_MAPS[name] for name in kinds)
    )


def _draw(seeds: Sequence[int] | Tensor, frames: int, fps: float) -> _Drawn:
    draws = Draws(torch.as_tensor(seeds, dtype=torch.int64).reshape(-1).cpu(), _DOMAIN)
    shares = torch.tensor(list(MIXTURE.values())).cumsum(0)
    kind = (draws.uniform(1) >= shares[:-1]).sum(dim=1)
    starts = draws.uniform(_STARTS, 3).double().numpy()
    yaws = draws.uniform(_YAWS, low=-np.pi, high=np.pi).double().numpy()
    tastes = draws.uniform(6).double().numpy()
    # Drawn last and frame by frame, so that a longer path begins like a shorter one.
    noise = draws.uniform(frames, _WISHES + 1).double().numpy()
    change = noise[..., 0] < 1.0 / (_WISH_SECONDS * fps)
    change[:, :1] = False  # frame 0 has a wish without making a new one
    wishes = Wishes(change=change, value=noise[..., 1:])
    return _Drawn(kind=kind.numpy(), starts=starts, yaws=yaws, tastes=tastes, wishes=wishes)


def _starts(plan: FloorPlan, drawn: _Drawn) -> np.ndarray:
    """Start poses [B, 4, 4]: the first drawn place well in the clear, facing the longest of a few views."""
    x = (2.0 * drawn.starts[..., 0] - 1.0) * plan.half_size[:, 0, None]
    z = (2.0 * drawn.starts[..., 1] - 1.0) * plan.half_size[:, 2, None]
    gap = plan.distance(x, z)
    pick = np.argmax(np.minimum(gap, 0.5), axis=1)
    if (gap[np.arange(len(pick)), pick] < MARGIN + 0.01).any():
        row = int(np.argmin(gap.max(axis=1)))
        raise SceneError(f"no free place to start in the scene of row {row}; take another seed")
    index = (np.arange(len(pick)), pick)
    x, z = x[index], z[index]
    reach = np.array([0.5, 1.0, 1.5, 2.0])
    yaw = drawn.yaws[..., None]
    ahead = plan.distance(
        (x[:, None, None] - np.sin(yaw) * reach).reshape(len(x), -1),
        (z[:, None, None] + np.cos(yaw) * reach).reshape(len(x), -1),
    ).reshape(len(x), _YAWS, -1)
    view = np.argmax((np.minimum.accumulate(ahead, axis=-1) > 0.3).sum(axis=-1), axis=1)
    heading = drawn.yaws[np.arange(len(x)), view]
    height, pitch = 0.7 + 0.8 * drawn.tastes[:, 0], 0.05 - 0.25 * drawn.tastes[:, 1]
    return homogeneous(about_vertical(-heading) @ about_right(pitch), np.stack((x, -height, z), axis=-1))


def _path(
    kind: str, rows: np.ndarray, start: np.ndarray, plan: FloorPlan, drawn: _Drawn, frames: int, fps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Poses [B, frames + 1, 4, 4] and actions [B, frames, A] of one kind."""
    wishes = Wishes(change=drawn.wishes.change[rows], value=drawn.wishes.value[rows])
    if kind == "diff_drive":
        return drive(start, frames, wishes, DiffDrive(), plan, fps)
    if kind in ("free", "look_around"):
        return fly(start, frames, wishes, Twist(), plan, fps, still=kind == "look_around")
    if kind == "loop":
        return _loop(plan, start, drawn.starts[rows], drawn.tastes[rows], frames, fps)
    if kind == "there_and_back":
        return _there_and_back(*drive(start, min(frames, LEG), wishes, DiffDrive(), plan, fps), frames)
    return np.repeat(start[:, None], frames + 1, axis=1), np.zeros((len(rows), frames, 2))


def _there_and_back(poses: np.ndarray, actions: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The leg, then its poses in reverse with the opposite actions, repeated; even turns of the leg repeat exactly."""
    number = np.arange(frames + 1) % (2 * LEG)
    step = number[:-1]
    back = step >= LEG
    taken = np.where(back, 2 * LEG - 1 - step, step)
    sign = np.where(back, -1.0, 1.0)[None, :, None]
    return poses[:, np.where(number > LEG, 2 * LEG - number, number)], sign * actions[:, taken]


def _loop(
    plan: FloorPlan, start: np.ndarray, places: np.ndarray, tastes: np.ndarray, frames: int, fps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Laps of the widest free circle among a few places, forward along it, at 0.25 to 0.45 rad/s."""
    x = (2.0 * places[..., 0] - 1.0) * plan.half_size[:, 0, None]
    z = (2.0 * places[..., 1] - 1.0) * plan.half_size[:, 2, None]
    gap = plan.distance(x, z)
    index = (np.arange(len(start)), np.argmax(np.minimum(gap, 1.3), axis=1))
    turn = (0.25 + 0.2 * tastes[:, 2]) * np.where(tastes[:, 3] < 0.5, -1.0, 1.0)
    widest = np.minimum(gap[index] - MARGIN - 0.02, 0.8 / np.abs(turn))
    radius = widest * (0.6 + 0.4 * tastes[:, 4])
    pose = start.copy()
    forward = start[:, (0, 2), 2]
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    # The centre of a turn to the left lies to the left of the way ahead: (-forward z, forward x).
    side = np.sign(turn) * radius
    pose[:, 0, 3], pose[:, 2, 3] = x[index] + side * forward[:, 1], z[index] - side * forward[:, 0]
    actions = np.repeat(np.stack((np.abs(turn) * radius, turn), axis=-1)[:, None], frames, axis=1)
    drive_map = DiffDrive()
    later, _ = drive_map.rollout(pose, drive_map.initial(len(pose)), actions, fps)
    return np.concatenate((pose[:, None], later), axis=1), actions
