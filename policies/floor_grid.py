"""Shortest ways over floor plans: a grid of cells, the cost to a goal from each, and the next cell on the way there."""

from __future__ import annotations

import numpy as np

from sanawm_env.rooms.collision import FloorPlan

CELL = 0.1  # metres
SIDE = 88  # cells a side, 8.8 m: rooms are at most 8.4 m wide
_MOVES = np.array(
    [(x, z) for x in (-2, -1, 0, 1, 2) for z in (-2, -1, 0, 1, 2) if max(abs(x), abs(z)) == 1 or abs(x * z) == 2]
)  # the 8 neighbours and the 8 knight's moves, so that ways turn by about 27 degrees
_PAD = 2
_FAR = 1e6


def cells() -> tuple[np.ndarray, np.ndarray]:
    """x and z [SIDE * SIDE] of the cells' middles, metres from the room's middle; x is the slower index."""
    middle = (np.arange(SIDE) + 0.5 - SIDE / 2) * CELL
    x, z = np.meshgrid(middle, middle, indexing="ij")
    return x.ravel(), z.ravel()


def cell_of(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Number of the cell in which points lie, the nearest one for points outside."""
    column, row = (np.clip(np.floor(value / CELL + SIDE / 2).astype(np.int64), 0, SIDE - 1) for value in (x, z))
    return column * SIDE + row


def gaps(plan: FloorPlan) -> np.ndarray:
    """Metres [B, cells] from every cell's middle to the nearest wall or furniture."""
    x, z = cells()
    rows = len(plan.half_size)
    return plan.distance(np.broadcast_to(x, (rows, len(x))), np.broadcast_to(z, (rows, len(z))))


def next_cells(gap: np.ndarray, goal: np.ndarray, closest: float, roomy: float) -> np.ndarray:
    """The next cell on the cheapest way to a goal, int32 [B, cells]; its own where there is none and at the goal.

    gap: [B, cells] metres that are free around each. goal: bool [B, cells]. closest: cells with less room are barred.
    roomy: metres from which on more room is no better; a metre at the closest costs five.
    """
    narrow = np.clip((roomy - gap) / (roomy - closest), 0.0, 1.0)
    toll = np.where(gap < closest, _FAR, 1.0 + 4.0 * narrow**2).reshape(-1, SIDE, SIDE)
    cost = np.where(goal & (gap >= closest), 0.0, _FAR).reshape(-1, SIDE, SIDE)
    lengths = CELL * np.hypot(_MOVES[:, 0], _MOVES[:, 1])
    tolls = [length * (toll + _moved(toll, move)) / 2 for move, length in zip(_MOVES, lengths)]
    while True:
        before = cost
        for move, price in zip(_MOVES, tolls):
            cost = np.minimum(cost, _moved(cost, move) + price)
        if np.array_equal(cost, before):
            break
    options = np.stack([_moved(cost, move) + price for move, price in zip(_MOVES, tolls)])
    best = options.argmin(axis=0)
    here = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    onward = here + (_MOVES @ np.array([SIDE, 1]))[best]
    reached = (cost <= 0) | (options.min(axis=0) >= _FAR)
    return np.where(reached, here, onward).reshape(len(gap), -1).astype(np.int32)


def _moved(values: np.ndarray, move: np.ndarray) -> np.ndarray:
    """At every cell the value [B, SIDE, SIDE] of the cell that a move leads to, far beyond the edge."""
    padded = np.pad(values, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)), constant_values=_FAR)
    first, second = (_PAD + int(step) for step in move)
    return padded[:, first : first + SIDE, second : second + SIDE]
