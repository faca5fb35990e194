"""What an agent is asked to do: reward and end of an episode, from camera poses and the known geometry of the start.

A task knows nothing of the model and never looks at generated frames. All functions are batched: B worlds, F frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from sanawm_env.config import from_mapping
from sanawm_env.errors import TaskError, nearest

if TYPE_CHECKING:
    from sanawm_env.rooms.collision import FloorPlan

Columns = dict[str, np.ndarray]


class SceneObject(Protocol):
    """What a task needs of an object of a room."""

    @property
    def instance(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def centre(self) -> tuple[float, float, float]: ...
    @property
    def radius(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Situation:
    """One world at its start.

    pose: [4, 4] camera-to-world. seed: of the world. objects: those of the room, None where there is no geometry.
    visible: pixels that each object covers in the first picture, by instance number. plan: the room's floor plan (of
    one row), None where there is no geometry.
    """

    pose: np.ndarray
    seed: int
    objects: Sequence[SceneObject] | None
    visible: Mapping[int, int]
    plan: FloorPlan | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What happened at each frame of a chunk, each [B, F]: reward (float64), success and collision (bool). columns:
    those of the task's that the chunk has changed."""

    reward: np.ndarray
    success: np.ndarray
    collision: np.ndarray
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Drive:
    """Free driving: no reward; hitting a wall or furniture ends the episode where the start has known geometry.

    body_radius: metres around the camera that must stay free. collision_penalty: taken from the reward at a collision.
    time_limit: seconds after which the episode is cut, None for never.
    """

    name: ClassVar[str] = "drive"
    has_goal: ClassVar[bool] = False
    body_radius: float = 0.15
    collision_penalty: float = 0.0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_positive(self, "body_radius", "time_limit")

    def begin(self, situations: Sequence[Situation]) -> Columns:
        """Task columns of new episodes, one row each."""
        return {}

    def evaluate(self, columns: Columns, before: np.ndarray, poses: np.ndarray, clearance: np.ndarray) -> Verdict:
        """Reward and events of a chunk.

        before: [B, 4, 4] pose ahead of the chunk; poses: [B, F, 4, 4]; clearance: [B, F] metres to the nearest surface
        in the horizontal plane, infinite without geometry.
        """
        collision = clearance < self.body_radius
        return Verdict(
            reward=-self.collision_penalty * collision, success=np.zeros_like(collision), collision=collision
        )

    def describe(self, columns: Columns, poses: np.ndarray) -> Columns:
        """Facts for `info` at the given poses [B, 4, 4]."""
        return {}

    def instructions(self, situations: Sequence[Situation]) -> list[str]:
        """What to do, in words, one a world."""
        return ["drive freely"] * len(situations)


@dataclass(frozen=True, kw_only=True)
class GoTo(Drive):
    """Reach a coloured object of the room: come within `reach` metres of it without hitting anything.

    Reward is the metres by which each frame brings the camera closer to the object, plus `success_bonus` on reaching
    it, less `collision_penalty` on hitting something. Distances are horizontal, to the circle around the object's
    footprint. The object is drawn from the world's seed among those seen in the first picture and not yet reached
    (among all, if none is seen); colour, kind and instance narrow the choice.
    """

    name: ClassVar[str] = "goto"
    has_goal: ClassVar[bool] = True
    reach: float = 0.5
    success_bonus: float = 1.0
    collision_penalty: float = 1.0
    time_limit: float | None = 30.0
    colour: str | None = None
    kind: str | None = None
    instance: int | None = None

    def __post_init__(self) -> None:
        check_positive(self, "body_radius", "time_limit", "reach")

    def begin(self, situations: Sequence[Situation]) -> Columns:
        """Task columns: goal [B, 3] in metres, goal_radius [B], goal_instance [B], distance [B] at the latest frame."""
        goals = [self._choose(situation) for situation in situations]
        goal = np.array([chosen.centre for chosen in goals], dtype=np.float64)
        radius = np.array([chosen.radius for chosen in goals], dtype=np.float64)
        return {
            "goal": goal,
            "goal_radius": radius,
            "goal_instance": np.array([chosen.instance for chosen in goals], dtype=np.int64),
        }

    def evaluate(self, columns: Columns, before: np.ndarray, poses: np.ndarray, clearance: np.ndarray) -> Verdict:
        path = np.concatenate([before[:, None], poses], axis=1)[..., :3, 3]
        distance = _distance(path, columns["goal"][:, None], columns["goal_radius"][:, None])
        success = distance[:, 1:] <= self.reach
        collision = (clearance < self.body_radius) & ~success
        reward = -np.diff(distance, axis=1) + self.success_bonus * success - self.collision_penalty * collision
        return Verdict(reward=reward, success=success, collision=collision)

    def describe(self, columns: Columns, poses: np.ndarray) -> Columns:
        distance = _distance(poses[:, :3, 3], columns["goal"], columns["goal_radius"])
        return {"goal": columns["goal"].copy(), "distance": distance}

    def instructions(self, situations: Sequence[Situation]) -> list[str]:
        goals = [self._choose(situation) for situation in situations]
        return [f"go to the {goal.colour} {goal.kind}" for goal in goals]

    def _choose(self, situation: Situation) -> SceneObject:
        if situation.objects is None:
            raise no_geometry(self)
        wanted = {"colour": self.colour, "kind": self.kind, "instance": self.instance}
        fits = [
            one
            for one in situation.objects
            if all(value is None or getattr(one, key) == value for key, value in wanted.items())
        ]
        if not fits:
            known = ", ".join(f"{one.instance} {one.colour} {one.kind}" for one in situation.objects) or "none"
            raise TaskError(
                f"no object fits { ({k: v for k, v in wanted.items() if v is not None}) }; "
                f"this room has: {known}. Ask for one of these, or pass another scene."
            )
        apart = [one for one in fits if self._start_distance(one, situation) > self.reach] or fits
        seen = [one for one in apart if situation.visible.get(one.instance, 0) > 0] or apart
        return seen[int(np.random.default_rng([situation.seed, 1]).integers(len(seen)))]

    def _start_distance(self, one: SceneObject, situation: Situation) -> float:
        return float(_distance(situation.pose[:3, 3], np.array(one.centre), np.array(one.radius)))


def _distance(position: np.ndarray, goal: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Horizontal metres from positions [..., 3] to circles around goals [..., 3], never negative."""
    away = position - goal
    return np.maximum(np.hypot(away[..., 0], away[..., 2]) - radius, 0.0)


def no_geometry(task: Drive) -> TaskError:
    """The error of a task whose world was started without known geometry."""
    return TaskError(
        f"task {task.name!r} needs known geometry, and a world started from an image has none; use task='drive', or "
        "start from a room with options={'scene': seed}."
    )


def make_task(given: Drive | str | Mapping[str, Any]) -> Drive:
    """A task from itself, from its name ("drive", "goto", "explore"), or from a mapping of its fields with its name
    under "name".

    Raises TaskError on an unknown name, ConfigError on an unknown field; both name the nearest known one.
    """
    if isinstance(given, Drive):
        return given
    tasks = _tasks()
    fields = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    name = fields.pop("name", None)
    if name not in tasks:
        raise TaskError(f"unknown task {name if fields else given!r}; {nearest(str(name), tasks)}")
    return from_mapping(tasks[name], fields)


def _tasks() -> dict[str, type[Drive]]:
    from sanawm_env.explore import Explore

    return {cls.name: cls for cls in (Drive, GoTo, Explore)}


def task_fields(task: Drive) -> dict[str, Any]:
    """The mapping from which `make_task` makes an equal task."""
    return {"name": task.name, **dataclasses.asdict(task)}


def check_positive(task: Drive, *names: str) -> None:
    for name in names:
        value = getattr(task, name)
        if value is not None and not value > 0:
            raise TaskError(f"{name} of task {task.name!r} is {value!r}, allowed > 0; change it.")
