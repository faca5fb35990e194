"""Camera paths as the 80-scene benchmark of SANA-WM has them (spec training.md 8.1): ten smooth templates (Simple) and
ten that stress the camera (Hard), through 11 to 15 waypoints, within caps of speed, turning, travel and clearance.

Positions: centripetal Catmull-Rom. Rotations: Squad. Both are walked at an even pace, measured in the caps (the arc
length of whichever of the two comes nearer to its own), then smoothed frame by frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sanawm_env.errors import ConfigError, PoseError
from sanawm_env.rigid import about_right, about_vertical, homogeneous, rotation_from_vector, vector_from_rotation

Split = Literal["simple", "hard"]
# Of points [N, 3] in the world, metres to what is nearest; the margin is kept from it.
Clearance = Callable[[np.ndarray], np.ndarray]
# Of places 0 .. 1 along the path [N]: x, y, z in any unit, then yaw to the right, pitch up and roll in degrees.
Template = Callable[[np.ndarray], tuple[np.ndarray | float, ...]]

SLOWER, TRIES = 0.7, 3  # a path that comes too near is slowed by 30 %, three times at most
WAYPOINTS = (11, 15)
JITTER = 0.02  # of the path's length, and in degrees a hundred times that
FINE = 24  # samples between two waypoints, for measuring lengths
SMOOTHINGS, SMOOTHING = 4, 0.5
SPARE = 0.98  # of the caps, so that sampling and smoothing stay below them
REVISIT_METRES, REVISIT_DEGREES, REVISITS = 0.5, 20.0, 5
_TURN = 2 * np.pi


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Limits of a path: turning in degrees/s, speed in m/s, travel in median depths of the first picture, and metres
    that stay free around the camera."""

    degrees_per_second: float = 12.0
    metres_per_second: float = 0.4
    depth_share: float = 0.6
    margin: float = 0.3

    def __post_init__(self) -> None:
        if min(self.degrees_per_second, self.metres_per_second, self.depth_share) <= 0 or self.margin < 0:
            raise ConfigError(f"caps are {self}, allowed are numbers above 0 (margin: 0 or more).")


def _wave(u: np.ndarray, times: float = 1.0) -> np.ndarray:
    return np.sin(_TURN * times * u)


def _zigzag(u: np.ndarray) -> np.ndarray:
    return 2 / np.pi * np.arcsin(_wave(u, 2))


# No template is a straight line: the centres of a straight path leave open how the path is turned about it.
SIMPLE: dict[str, Template] = {
    "forward": lambda u: (0.15 * _wave(u), 0, u, 10 * _wave(u), 0, 0),
    "backward": lambda u: (0.15 * _wave(u), 0, -u, -10 * _wave(u), 0, 0),
    "strafe_left": lambda u: (-u, 0, 0.2 * _wave(u, 0.5), 15 * _wave(u, 0.5), 0, 0),
    "strafe_right": lambda u: (u, 0, 0.2 * _wave(u, 0.5), -15 * _wave(u, 0.5), 0, 0),
    "arc_left": lambda u: (np.cos(1.2 * u), 0, np.sin(1.2 * u), -np.degrees(1.2 * u), 0, 0),
    "arc_right": lambda u: (-np.cos(1.2 * u), 0, np.sin(1.2 * u), np.degrees(1.2 * u), 0, 0),
    "orbit": lambda u: (np.sin(0.9 * u), 0, -np.cos(0.9 * u), -np.degrees(0.9 * u), 0, 0),
    "push_and_return": lambda u: (0.15 * _wave(u), 0, _wave(u, 0.5), 8 * _wave(u), 0, 0),
    "s_curve": lambda u: (-0.25 * np.cos(_TURN * u), 0, u, 20 * _wave(u), 0, 0),
    "walk_and_look": lambda u: (0.15 * _wave(u, 0.5), -0.05 * _wave(u, 0.5), 0.7 * u, 35 * _wave(u), 4 * _wave(u), 0),
}
HARD: dict[str, Template] = {
    "fast_yaw": lambda u: (0.3 * _wave(u), 0, 0.6 * u, 120 * _wave(u), 0, 0),
    "whip_pan": lambda u: (
        0.2 * _wave(u, 0.5),
        0,
        0.8 * u,
        40 * (np.tanh(14 * (u - 0.25)) - np.tanh(14 * (u - 0.75))),
        0,
        0,
    ),
    "vertical": lambda u: (0.2 * _wave(u, 0.5), -0.3 * _wave(u), 0.6 * u, 0, 6 * _wave(u), 0),
    "pitch": lambda u: (0.25 * _wave(u, 0.5), 0, 0.7 * u, 0, 35 * _wave(u), 0),
    "crane": lambda u: (0.15 * _wave(u, 0.5), -0.4 * u, 0.6 * u, 0, -30 * u, 0),
    "double_loop": lambda u: (-np.cos(2 * _TURN * u), 0, _wave(u, 2), 40 * _wave(u, 2), 0, 0),
    "figure_eight": lambda u: (_wave(u, 2), 0, 1.6 * _wave(u), 45 * _wave(u), 0, 0),
    "zigzag": lambda u: (0.35 * _zigzag(u), 0, u, 30 * _zigzag(u), 0, 0),
    "spiral": lambda u: (u * _wave(u, 1.5), -0.15 * u, u * np.cos(1.5 * _TURN * u), 60 * _wave(u, 1.5), 0, 0),
    "roll": lambda u: (0.25 * _wave(u), 0, 0.8 * u, 30 * _wave(u, 0.5), 0, 25 * _wave(u)),
}
TEMPLATES: dict[str, dict[str, Template]] = {"simple": SIMPLE, "hard": HARD}


def template_of(split: Split, number: int) -> str:
    """The template that clip `number` of a split follows: they come in turns."""
    names = list(TEMPLATES[split])
    return names[number % len(names)]


def make_path(
    split: Split,
    name: str,
    start: np.ndarray,
    median_depth: float,
    frames: int,
    fps: float,
    *,
    seed: int,
    clearance: Clearance,
    caps: Caps | None = None,
) -> tuple[np.ndarray, float] | None:
    """Poses float64 [1 + frames, 4, 4] camera to world of a template from pose `start` [4, 4] on, and the share of its
    travel that is left of it after slowing down; None where it comes too near even then.

    start: without roll, y of the world pointing down. median_depth: metres, of what is seen from there. seed: of the
    waypoints' number and places. PoseError: another start, or no frames.
    """
    caps = caps or Caps()
    if frames < 2 or start.shape != (4, 4) or abs(start[1, 0]) > 1e-6:
        raise PoseError(f"start is {start.tolist()}, frames {frames}; allowed are a pose without roll and 2 frames.")
    rng = np.random.default_rng([seed, list(TEMPLATES[split]).index(name)])
    shape = _waypoints(TEMPLATES[split][name], rng)
    share = 1.0
    for _ in range(TRIES + 1):
        poses = _within(shape, start, share * caps.depth_share * median_depth, frames, fps, caps)
        if clearance(poses[:, :3, 3]).min() >= caps.margin:
            return poses, share
        share *= SLOWER
    return None


def revisits(poses: np.ndarray) -> list[tuple[int, int]]:
    """Up to 5 pairs of frames of a path [T, 4, 4], closest first, at which the camera is back: less than 0.5 m and 20
    degrees apart, with a frame in between that is not. No frame is in two pairs."""
    metres = np.linalg.norm(poses[:, None, :3, 3] - poses[None, :, :3, 3], axis=-1)
    turned = np.einsum("aji,bjk->abik", poses[:, :3, :3], poses[:, :3, :3])
    degrees = np.degrees(np.linalg.norm(vector_from_rotation(turned), axis=-1))
    near = (metres < REVISIT_METRES) & (degrees < REVISIT_DEGREES)
    away = np.minimum.accumulate(np.where(np.triu(near), 1, np.tri(len(poses), k=-1)), axis=1) == 0
    first, second = np.nonzero(near & away & np.triu(np.ones_like(near), 1))
    cost = metres[first, second] / REVISIT_METRES + degrees[first, second] / REVISIT_DEGREES
    found: list[tuple[int, int]] = []
    for row in np.argsort(cost, kind="stable"):
        pair = (int(first[row]), int(second[row]))
        if not any(set(pair) & set(one) for one in found):
            found.append(pair)
        if len(found) == REVISITS:
            break
    return found


def _waypoints(template: Template, rng: np.random.Generator) -> np.ndarray:
    """Waypoints [N, 6] of a path of length 1, from the origin: x, y, z, yaw, pitch, roll in degrees."""
    count = int(rng.integers(WAYPOINTS[0], WAYPOINTS[1] + 1))
    rows = np.stack([np.broadcast_to(x, count) for x in template(np.linspace(0, 1, count))], axis=-1).astype(float)
    rows[:, :3] /= np.linalg.norm(np.diff(rows[:, :3], axis=0), axis=-1).sum()
    rows[1:-1] += JITTER * np.array([1, 0.5, 1, 100, 50, 0]) * rng.uniform(-1, 1, size=(count - 2, 6))
    return rows - rows[0]


def _within(shape: np.ndarray, start: np.ndarray, travel: float, frames: int, fps: float, caps: Caps) -> np.ndarray:
    """The path through waypoints [N, 6] at an even pace, as long and as far turned as the caps and its time let it."""
    seconds = frames / fps
    speed, turning = SPARE * caps.metres_per_second, np.radians(SPARE * caps.degrees_per_second)
    curve = _Curve(shape, start, 1.0, 1.0)
    metres, radians = (lengths.sum() for lengths in curve.lengths())
    far = SPARE * min(travel, speed * seconds) / metres
    turned = min(1.0, turning * seconds / max(radians, 1e-9))
    for _ in range(8):
        curve = _Curve(shape, start, far, turned)
        metres_each, radians_each = curve.lengths()
        effort = np.maximum(metres_each / speed, radians_each / turning)
        poses = _smooth(curve.at(_even(effort, frames)))
        over = max(_peak(poses, fps) / np.array([caps.metres_per_second, np.radians(caps.degrees_per_second)]))
        if effort.sum() <= seconds and over <= 1:
            return poses
        less = 0.995 * min(seconds / effort.sum(), 1 / over)
        far, turned = far * less, turned * less
    return poses


def _even(effort: np.ndarray, frames: int) -> np.ndarray:
    """Where on the curve frames 0 .. frames are, so that all steps take the same effort; in waypoints."""
    total = np.concatenate([[0.0], np.cumsum(np.maximum(effort, 1e-12))])
    return np.interp(np.linspace(0, total[-1], frames + 1), total, np.arange(len(total)) / FINE)


def _peak(poses: np.ndarray, fps: float) -> np.ndarray:
    """Highest speed, m/s, and turning, rad/s."""
    turned = np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3]
    steps = (
        np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1),
        np.linalg.norm(vector_from_rotation(turned), axis=-1),
    )
    return np.array([step.max() for step in steps]) * fps


def _smooth(poses: np.ndarray) -> np.ndarray:
    """Laplacian smoothing: every frame is moved towards the middle of its neighbours; the ends stay."""
    rotation, place = poses[:, :3, :3], poses[:, :3, 3]
    for _ in range(SMOOTHINGS):
        place = np.concatenate([place[:1], place[1:-1] + SMOOTHING / 2 * np.diff(place, 2, axis=0), place[-1:]])
        inner = rotation[1:-1]
        pulls = [vector_from_rotation(np.swapaxes(inner, 1, 2) @ other) for other in (rotation[:-2], rotation[2:])]
        inner = inner @ rotation_from_vector(SMOOTHING / 2 * (pulls[0] + pulls[1]))
        rotation = np.concatenate([rotation[:1], inner, rotation[-1:]])
    return homogeneous(rotation, place)


class _Curve:
    """Poses through waypoints [N, 6] laid out from a start, positions and angles multiplied by a factor each."""

    def __init__(self, shape: np.ndarray, start: np.ndarray, far: float, turned: float) -> None:
        ahead = start[:3, 2]
        heading, tilt = np.arctan2(ahead[0], ahead[2]), np.arcsin(np.clip(-ahead[1], -1, 1))
        yaw, pitch, roll = turned * np.radians(shape[:, 3:]).T
        spun = rotation_from_vector(roll[:, None] * np.array([0.0, 0.0, 1.0]))
        self._points = start[:3, 3] + far * shape[:, :3] @ about_vertical(np.array(heading)).T
        self._rotations = about_vertical(heading + yaw) @ about_right(tilt + pitch) @ spun

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Metres and radians of every fine step [(N - 1) FINE]."""
        poses = self.at(np.arange((len(self._points) - 1) * FINE + 1) / FINE)
        turned = np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3]
        metres = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1)
        return metres, np.linalg.norm(vector_from_rotation(turned), axis=-1)

    def at(self, place: np.ndarray) -> np.ndarray:
        """Poses [K, 4, 4] at places 0 .. N - 1 [K]; whole numbers are waypoints."""
        segment = np.minimum(place.astype(int), len(self._points) - 2)
        part = (place - segment)[:, None]
        return homogeneous(squad(self._rotations, segment, part), catmull_rom(self._points, segment, part))


def catmull_rom(points: np.ndarray, segment: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Centripetal Catmull-Rom curve through points [N, D] at part [K, 1] (0 .. 1) of segments [K]: [K, D]; beyond the
    ends the outermost points are mirrored."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    gaps = np.maximum(np.linalg.norm(np.diff(padded, axis=0), axis=-1) ** 0.5, 1e-6)
    knots = np.concatenate([[0.0], np.cumsum(gaps)])
    corners = [padded[segment + k] for k in range(4)]
    times = [knots[segment + k][:, None] for k in range(4)]
    t = times[1] + part * (times[2] - times[1])
    for spans in (((0, 1), (1, 2), (2, 3)), ((0, 2), (1, 3)), ((1, 2),)):  # Barry and Goldman's pyramid
        corners = [
            ((times[b] - t) * corners[k] + (t - times[a]) * corners[k + 1]) / (times[b] - times[a])
            for k, (a, b) in enumerate(spans)
        ]
    return corners[0]


def squad(rotations: np.ndarray, segment: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Spherical quadrangle curve (Shoemake) through rotations [N, 3, 3] at part [K, 1] of segments [K]: [K, 3, 3]."""
    padded = np.concatenate([rotations[:1], rotations, rotations[-1:]])
    back = np.swapaxes(rotations, 1, 2)
    bend = vector_from_rotation(back @ padded[2:]) + vector_from_rotation(back @ padded[:-2])
    inner = rotations @ rotation_from_vector(-bend / 4)
    outer = _slerp(rotations[segment], rotations[segment + 1], part)
    return _slerp(outer, _slerp(inner[segment], inner[segment + 1], part), 2 * part * (1 - part))


def _slerp(one: np.ndarray, other: np.ndarray, part: np.ndarray) -> np.ndarray:
    return one @ rotation_from_vector(part * vector_from_rotation(np.swapaxes(one, 1, 2) @ other))
