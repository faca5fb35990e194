"""A driver that knows the floor plan and shows the shortest way to a goal: for demonstrations, and to compare with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sanawm_env.errors import ConfigError, SpaceError
from sanawm_env.policies.floor_grid import CELL, SIDE, cell_of, cells, gaps, next_cells
from sanawm_env.rigid import CAMERA_FROM_BODY
from sanawm_env.rooms.collision import FloorPlan

_PROBES = 12  # points of a straight line at which room is looked for
_SLOWER = np.array([1.0, 0.7, 0.4, 0.2, 0.0])  # shares of the speed that are tried where the way is not clear


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """How the expert drives.

    speed in m/s, turn in rad/s: at most. arrive: metres from the goal's footprint at which it has arrived. closest:
    metres that stay free around the camera on the way, where the start allows it; roomy: as many as it likes to have.
    straight: metres that stay free along a short cut. ahead: metres of its way that it looks for short cuts.
    """

    speed: float = 0.7
    turn: float = 0.8
    arrive: float = 0.4
    closest: float = 0.18
    roomy: float = 0.45
    straight: float = 0.26
    ahead: float = 2.5

    def __post_init__(self) -> None:
        for name in ("speed", "turn", "arrive", "closest", "ahead"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} of the expert is {getattr(self, name)!r}, allowed > 0; change it.")
        if not self.closest <= self.straight <= self.roomy or self.closest == self.roomy:
            raise ConfigError(
                f"closest {self.closest:g}, straight {self.straight:g} and roomy {self.roomy:g} of the expert, allowed "
                "are rising numbers; change them."
            )


@dataclass(frozen=True, kw_only=True)
class Ways:
    """What the expert keeps of B worlds: known [B], whether a way is planned; gap [B, cells] in metres; onward
    [B, cells], the next cell from each; plan, footprints [B, K, 7] and half sizes [B, 3] of the rooms."""

    known: np.ndarray
    gap: np.ndarray
    onward: np.ndarray
    plan: FloorPlan | None


class Expert:
    """Drives to the goal of task `goto` along the shortest way that keeps clear of furniture. A `Policy`.

    env: the vector environment that it acts in, which it asks for rooms; its observations must be "dict" ones of a task
    with a goal, its action map `diff_drive`, held for a chunk. The pictures are not looked at. Actions depend on a
    world's room, pose and goal alone. SpaceError where the environment does not fit.
    """

    def __init__(self, env: Any, config: ExpertConfig | None = None) -> None:
        self.env, self.config = env, config or ExpertConfig()
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        drive = env.action_map
        fits = drive.name == "diff_drive" and not (drive.time_constant or drive.mount_forward or drive.mount_left)
        if not fits or drive.mount_yaw or self.action_space.shape != (2,):
            raise SpaceError(
                f"the expert drives 'diff_drive' without lag or mount, held for a chunk, the environment has {drive!r} "
                f"and actions {self.action_space}; make it with the defaults of action_map and action_mode."
            )
        if not {"pose", "goal"} <= set(getattr(self.observation_space, "spaces", ())):
            raise SpaceError(
                f"the expert needs the pose and a goal, observations are {self.observation_space}; make the "
                "environment with observation='dict' and task='goto'."
            )

    def initial_state(self, worlds: int) -> Ways:
        """No way is planned."""
        count = SIDE * SIDE
        return Ways(
            known=np.zeros(worlds, bool),
            gap=np.zeros((worlds, count), np.float32),
            onward=np.zeros((worlds, count), np.int32),
            plan=None,
        )

    def reset(self, state: Ways, worlds: np.ndarray) -> Ways:
        """Forgets the ways of these worlds."""
        return replace(state, known=state.known & ~worlds)

    def act(self, observation: Any, state: Ways) -> tuple[np.ndarray, Ways]:
        """Actions (v, w) float32 [B, 2] of the coming chunk."""
        pose, goal = (_numbers(observation[key]) for key in ("pose", "goal"))
        pose = pose.reshape(-1, 3, 4)
        goal = pose[:, :, :3] @ (goal @ CAMERA_FROM_BODY.T)[..., None]
        goal = goal[..., 0] + pose[:, :, 3]
        if not state.known.all():
            state = self._plan(state, goal)
        return self.show(pose, goal, state), state

    def show(self, pose: np.ndarray, goal: np.ndarray, state: Ways) -> np.ndarray:
        """What it would do for a chunk, float32 [B, 2], at poses [B, 3, 4] of the rooms for which a state has ways, on
        the way to goals [B, 3] in the rooms' frames."""
        assert state.plan is not None
        ahead = self._target(state, pose[:, 0, 3], pose[:, 2, 3])
        return self._steer(state.plan, pose, ahead, goal).astype(np.float32)

    def _plan(self, state: Ways, goal: np.ndarray) -> Ways:
        """Ways for the worlds that have none."""
        scenes = self.env.scenes
        if scenes is None:
            raise SpaceError("the expert needs rooms, these worlds started from a picture; start them in rooms.")
        rows, plan = np.flatnonzero(~state.known), FloorPlan.of(scenes)
        gap, onward = state.gap.copy(), state.onward.copy()
        own = plan.rows(rows)
        gap[rows] = gaps(own)
        x, z = cells()
        away = np.hypot(x - goal[rows, 0, None], z - goal[rows, 2, None]) - _radius(own, goal[rows])[:, None]
        config = self.config
        onward[rows] = next_cells(gap[rows], away <= config.arrive, config.closest, config.roomy)
        return Ways(known=np.ones_like(state.known), gap=gap, onward=onward, plan=plan)

    def _target(self, state: Ways, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Where to steer [B, 2]: the farthest point of the way that a straight line reaches with room on its sides."""
        config, world = self.config, np.arange(len(x))[:, None]
        count = round(config.ahead / CELL)
        way = np.empty((len(x), count), np.int64)
        cell = _free_cell(state.gap, x, z, config.closest)
        for step in range(count):
            cell = state.onward[world[:, 0], cell]
            way[:, step] = cell
        middle_x, middle_z = cells()
        to_x, to_z = middle_x[way], middle_z[way]
        share = np.linspace(0.0, 1.0, _PROBES + 1)[1:]
        line_x = x[:, None, None] + share * (to_x - x[:, None])[..., None]
        line_z = z[:, None, None] + share * (to_z - z[:, None])[..., None]
        room = state.gap[world[..., None], cell_of(line_x, line_z)].min(axis=-1)
        own = state.gap[world[:, 0], cell_of(x, z)]
        clear = room >= np.minimum(config.straight, own - CELL / 4)[:, None]
        farthest = np.where(clear, np.arange(count), 1).max(axis=1)
        return np.stack([to_x[world[:, 0], farthest], to_z[world[:, 0], farthest]], axis=-1)

    def _steer(self, plan: FloorPlan, pose: np.ndarray, target: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Actions [B, 2] towards a target, slower where something is in the way."""
        config, env = self.config, self.env
        seconds = env.frames_per_step / env.fps
        to_x, to_z = target[:, 0] - pose[:, 0, 3], target[:, 1] - pose[:, 2, 3]
        # At the end of the way nothing is left to steer to but the goal itself.
        near = np.hypot(to_x, to_z) < CELL
        to_x, to_z = (np.where(near, goal[:, i] - pose[:, i, 3], to) for i, to in ((0, to_x), (2, to_z)))
        bearing = np.arctan2(pose[:, 2, 2] * -to_x + pose[:, 0, 2] * to_z, pose[:, 0, 2] * to_x + pose[:, 2, 2] * to_z)
        turn = np.clip(bearing / seconds, -config.turn, config.turn)
        # What is left of the bearing half-way through the turn says how much of the speed leads towards the target.
        left = np.abs(bearing) - np.abs(turn) * seconds / 2
        speed = config.speed * np.clip(np.cos(left), 0.0, 1.0) ** 3
        whole = np.concatenate([pose, np.broadcast_to([[[0.0, 0.0, 0.0, 1.0]]], (len(pose), 1, 4))], axis=1)
        return np.stack([speed * self._clear_share(plan, whole, speed, turn), turn], axis=-1)

    def _clear_share(self, plan: FloorPlan, pose: np.ndarray, speed: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """The largest share [B] of the speed with which the coming chunk keeps clear."""
        rows, tried = len(pose), len(_SLOWER)
        actions = np.stack([speed[:, None] * _SLOWER, np.repeat(turn[:, None], tried, axis=1)], axis=-1)
        held = np.repeat(actions.reshape(rows * tried, 1, 2), self.env.frames_per_step, axis=1)
        start = np.repeat(pose, tried, axis=0)
        rest = self.env.action_map.initial(rows * tried)
        path = self.env.action_map.rollout(start, rest, held, self.env.fps)[0].reshape(rows, -1, 4, 4)
        room = plan.distance(path[..., 0, 3], path[..., 2, 3]).reshape(rows, tried, -1).min(axis=-1)
        own = plan.distance(pose[:, None, 0, 3], pose[:, None, 2, 3])
        clear = room >= np.minimum(self.config.closest, own - 0.005)
        clear[:, -1] = True
        return _SLOWER[clear.argmax(axis=1)]


def _numbers(given: Any) -> np.ndarray:
    """An array or a tensor on any device as float64."""
    return np.asarray(given.cpu() if hasattr(given, "cpu") else given, np.float64)


def _radius(plan: FloorPlan, goal: np.ndarray) -> np.ndarray:
    """Radius [B] of the circle around the footprint whose middle is nearest to each goal."""
    prints = plan.footprints
    nearest = np.hypot(prints[..., 0] - goal[:, 0, None], prints[..., 1] - goal[:, 2, None]).argmin(axis=1)
    own = prints[np.arange(len(goal)), nearest]
    return np.hypot(own[:, 2], own[:, 3]) + own[:, 6]


def _free_cell(gap: np.ndarray, x: np.ndarray, z: np.ndarray, closest: float) -> np.ndarray:
    """The nearest cell [B] that is not barred."""
    middle_x, middle_z = cells()
    away = np.hypot(middle_x - x[:, None], middle_z - z[:, None])
    return np.where(gap >= closest, away, np.inf).argmin(axis=1)
