"""The scenes of the transfer benchmark: held-out rooms whose goal is seen at the start, and the shortest way there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.held_out import FIRST_SEED, SEEDS_EACH
from sanawm_env.model.config import WorldConfig
from sanawm_env.policies.floor_grid import CELL, cells, gaps, next_cells
from sanawm_env.rooms.collision import FloorPlan
from sanawm_env.start import ResetOptions, make_start
from sanawm_env.tasks import GoTo

_TOGETHER = 64
_APART = 0.03  # metres between points of a line at which room is looked for


@dataclass(frozen=True, kw_only=True)
class TransferScenes:
    """seeds: of the scenes, in order, the goal of each in its first picture. looked_at: how many seeds from FIRST_SEED
    on were looked at to find so many. shortest: metres of the shortest free way to within the task's reach, for each
    scene; 0 where there is none on the grid."""

    seeds: list[int]
    looked_at: int
    shortest: list[float]


def find_scenes(config: WorldConfig, task: GoTo, count: int, device: torch.device) -> TransferScenes:
    """The first `count` held-out scenes whose goal is seen at the start. ConfigError: there are not so many."""
    if not 1 <= count <= SEEDS_EACH // 2:
        raise ConfigError(f"scenes is {count}, allowed are 1 .. {SEEDS_EACH // 2}; ask for fewer.")
    seeds: list[int] = []
    shortest: list[float] = []
    for first in range(FIRST_SEED, FIRST_SEED + SEEDS_EACH, _TOGETHER):
        some = range(first, first + min(_TOGETHER, count))
        start = make_start(ResetOptions(), some, config, device)
        goals = task.begin(start.situations)
        for row, situation in enumerate(start.situations):
            if situation.visible.get(int(goals["goal_instance"][row]), 0) > 0:
                assert situation.plan is not None
                seeds.append(some[row])
                place, radius = goals["goal"][row], float(goals["goal_radius"][row])
                shortest.append(shortest_way(situation.plan, situation.pose[:3, 3], place, radius, task))
            if len(seeds) == count:
                looked_at = some[row] + 1 - FIRST_SEED
                return TransferScenes(seeds=seeds, looked_at=looked_at, shortest=shortest)
    raise ConfigError(f"only {len(seeds)} held-out scenes show their goal, asked for are {count}; ask for fewer.")


def shortest_way(plan: FloorPlan, start: np.ndarray, goal: np.ndarray, radius: float, task: GoTo) -> float:
    """Metres from a place to within reach of a circle around the goal, along free floor, 0 where there is no such way.

    plan: of one room. start, goal: [3] in its frame. Exact where the straight line is free; else along the expert's
    grid with corners cut, a cell (0.1 m) too long at most where it ends.
    """
    away = goal - start
    distance = float(np.hypot(away[0], away[2]))
    needed = max(0.0, distance - radius - task.reach)
    origin, target = start[[0, 2]], start[[0, 2]] + away[[0, 2]] * (needed / max(distance, 1e-9))
    if _clear(plan, origin, target[None], task.body_radius)[0]:
        return needed
    points = _way_on_grid(plan, origin, goal, radius + task.reach, task.body_radius)
    if points is None:
        return 0.0
    here, length = origin, 0.0
    while len(points):
        free = np.flatnonzero(_clear(plan, here, points, task.body_radius))
        onward = int(free[-1]) if len(free) else 0
        length += float(np.hypot(*(points[onward] - here)))
        here, points = points[onward], points[onward + 1 :]
    return length


def _way_on_grid(
    plan: FloorPlan, start: np.ndarray, goal: np.ndarray, within: float, closest: float
) -> np.ndarray | None:
    """Middles [n, 2] of the cells from a place [2] to the first one within so many metres of the goal."""
    gap, (x, z) = gaps(plan), cells()
    reached = np.hypot(x - goal[0], z - goal[2]) <= within
    # Room beyond the closest counts for nothing here: the shortest way, not the expert's.
    onward = next_cells(gap, reached[None], closest, closest + 1e-6)[0]
    middles = np.stack([x, z], axis=-1)
    away = np.hypot(*(middles - start).T)
    cell = int(np.where(gap[0] >= closest, away, np.inf).argmin())
    way = [cell]
    while onward[cell] != cell:
        cell = int(onward[cell])
        way.append(cell)
    return middles[way] if reached[cell] else None


def _clear(plan: FloorPlan, start: np.ndarray, ends: np.ndarray, room: float) -> np.ndarray:
    """Whether straight lines from a place [2] to others [n, 2] keep clear, all but the first cell's length."""
    longest = float(np.hypot(*(ends - start).T).max())
    share = np.linspace(0.0, 1.0, max(2, int(longest / _APART) + 1))[:, None, None]
    line = start + share * (ends - start)
    free = plan.distance(line[None, ..., 0].reshape(1, -1), line[None, ..., 1].reshape(1, -1)).reshape(line.shape[:2])
    begun = np.hypot(*np.moveaxis(line - start, -1, 0)) <= CELL
    return np.asarray(((free >= room) | begun).all(axis=0))
