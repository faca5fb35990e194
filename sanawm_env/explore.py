"""The task of seeing a whole room: reward for floor that comes into view, from camera poses and floor plan alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sanawm_env.errors import TaskError
from sanawm_env.tasks import Columns, Drive, Situation, Verdict, check_positive, no_geometry

if TYPE_CHECKING:
    from sanawm_env.rooms.collision import FloorPlan

EXTENT = 9.0  # metres on a side of the square around the room's middle that is divided into cells
RAYS = 61  # directions in which a frame looks for what hides the floor


@dataclass(frozen=True, kw_only=True)
class Explore(Drive):
    """See the floor of the room: cells of it count as seen once they lie in view, near enough, with nothing between.

    Reward is the share of the room's open floor that each frame sees for the first time (what the first picture shows
    is not paid), plus `success_bonus` when `coverage` of it is seen, less `collision_penalty` on hitting something.
    What is seen follows from poses and floor plan: furniture hides all behind it, however low it is, and the camera's
    tilt is ignored. cell: metres on a side of a cell. view_angle: horizontal, radians (a Rooms camera has 1.35).
    view_range: metres.
    """

    name: ClassVar[str] = "explore"
    coverage: float = 0.9
    success_bonus: float = 1.0
    collision_penalty: float = 1.0
    time_limit: float | None = 60.0
    cell: float = 0.25
    view_angle: float = 1.35
    view_range: float = 3.0

    def __post_init__(self) -> None:
        check_positive(self, "body_radius", "time_limit", "coverage", "cell", "view_angle", "view_range")
        for name, most in (("coverage", 1.0), ("cell", 1.0), ("view_angle", np.pi)):
            if getattr(self, name) > most:
                raise TaskError(f"{name} of task 'explore' is {getattr(self, name)!r}, allowed <= {most:g}; change it.")

    def begin(self, situations: Sequence[Situation]) -> Columns:
        """Task columns: floor plan footprints [B, K, 7] and half_size [B, 3]; open and seen [B, G, G] bool, cells of
        the floor, G a side, by x and z."""
        plans = [one.plan for one in situations if one.plan is not None]
        if len(plans) < len(situations):
            raise no_geometry(self)
        columns = {
            "footprints": np.concatenate([plan.footprints for plan in plans]),
            "half_size": np.concatenate([plan.half_size for plan in plans]),
        }
        columns["open"] = np.concatenate([self.open_floor(plan) for plan in plans])
        start = np.stack([one.pose for one in situations])[:, None]
        return columns | {"seen": self.in_view(columns, start)[:, 0]}

    def evaluate(self, columns: Columns, before: np.ndarray, poses: np.ndarray, clearance: np.ndarray) -> Verdict:
        seen = columns["seen"][:, None] | np.logical_or.accumulate(self.in_view(columns, poses), axis=1)
        share = _share(np.concatenate([columns["seen"][:, None], seen], axis=1), columns["open"][:, None])
        success = share[:, 1:] >= self.coverage
        collision = (clearance < self.body_radius) & ~success
        reward = np.diff(share, axis=1) + self.success_bonus * success - self.collision_penalty * collision
        return Verdict(reward=reward, success=success, collision=collision, columns={"seen": seen[:, -1]})

    def describe(self, columns: Columns, poses: np.ndarray) -> Columns:
        """coverage: [B] share of the open floor seen so far."""
        return {"coverage": _share(columns["seen"], columns["open"])}

    def instructions(self, situations: Sequence[Situation]) -> list[str]:
        return ["look at the whole floor of the room"] * len(situations)

    def open_floor(self, plan: FloorPlan) -> np.ndarray:
        """[B, G, G] whether the middle of each cell is inside the room and free."""
        x, z = self.cells()
        rows = np.broadcast_to(x.reshape(-1), (len(plan.half_size), x.size))
        free: np.ndarray = plan.distance(rows, np.broadcast_to(z.reshape(-1), rows.shape)) > 0
        return free.reshape(-1, *x.shape)

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """x and z [G, G] of the cells' middles, metres."""
        count = int(np.ceil(EXTENT / self.cell))
        middle = (np.arange(count) + 0.5 - count / 2) * self.cell
        x, z = np.meshgrid(middle, middle, indexing="ij")
        return x, z

    def in_view(self, columns: Columns, poses: np.ndarray) -> np.ndarray:
        """[B, F, G, G] whether each cell of open floor is in view of poses [B, F, 4, 4]."""
        from sanawm_env.rooms.collision import FloorPlan

        plan = FloorPlan(columns["footprints"], columns["half_size"])
        right, forward = poses[..., 0, 2], poses[..., 2, 2]
        ahead, (x, z) = np.arctan2(-right, forward), self.cells()
        fan = np.linspace(-self.view_angle / 2, self.view_angle / 2, RAYS)
        reach = plan.sight(poses[..., 0, 3], poses[..., 2, 3], ahead[..., None] + fan)
        away_x, away_z = x - poses[..., 0, 3, None, None], z - poses[..., 2, 3, None, None]
        off = np.arctan2(-away_x, away_z) - ahead[..., None, None]
        off = (off + np.pi) % (2 * np.pi) - np.pi
        ray = np.rint((off / self.view_angle + 0.5) * (RAYS - 1)).astype(np.int64)
        inside = (ray >= 0) & (ray < RAYS)
        flat = np.clip(ray, 0, RAYS - 1).reshape(*ray.shape[:2], -1)
        free = np.take_along_axis(reach, flat, axis=2).reshape(ray.shape)
        inside &= np.hypot(right, forward)[..., None, None] > 1e-6  # straight up or down shows no particular side
        visible = inside & (np.hypot(away_x, away_z) <= np.minimum(free, self.view_range))
        return visible & columns["open"][:, None]


def _share(seen: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Part of the open cells [..., G, G] that is seen, [...]."""
    return np.asarray(seen.sum(axis=(-2, -1)) / np.maximum(floor.sum(axis=(-2, -1)), 1))
