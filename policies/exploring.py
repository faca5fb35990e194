"""Policies that explore, to gather data: smooth random walks, coverage of the floor, ways there and back, mixtures.

All are for robots on wheels (map diff_drive, actions (v, w), also per frame) and observation="dict", of which they read
the pose alone. What they draw follows from their seed and the first pose of an episode, so a row depends on nothing but
its own observations. Paths that keep clear of everything because they are drawn ahead on the floor plan are no
policies: `sanawm generate kind=...` has them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sanawm_env.actions import DiffDrive
from sanawm_env.errors import ConfigError, SpaceError
from sanawm_env.explore import Explore
from sanawm_env.policies.base import Policy
from sanawm_env.rooms.collision import FloorPlan
from sanawm_env.rooms.controllers import MARGIN

CALM = 0.5  # share of wishes that go almost straight ahead
LAG = 0.6  # part of the way to a wish that a command goes in a step
PACE = 0.6  # of the greatest speed, when looking for what has not been seen
TURNS = np.linspace(-1.0, 1.0, 7)  # of the greatest turn rate, compared with one another
AHEAD = 3  # steps that are looked ahead
SECONDS = 0.8  # of a step of Rooms
NOWHERE = 1e4  # metres; where the floor plan of an unknown place has its only thing, and its walls


class Exploring:
    """What they share: spaces, and what an episode draws."""

    def __init__(self, observation_space: Any, action_space: Any, *, seed: int = 0) -> None:
        shape = getattr(action_space, "shape", None)
        if not shape or shape[-1] != 2 or len(shape) > 2 or "pose" not in getattr(observation_space, "spaces", {}):
            raise SpaceError(
                f"exploring policies read observation='dict' and drive by (v, w); the spaces are {observation_space} "
                f"and {action_space}: make the environment with observation='dict' and action_map='diff_drive'."
            )
        self.observation_space, self.action_space, self.seed = observation_space, action_space, seed
        self.high = action_space.high.reshape(-1, 2)[0].astype(np.float64)

    def actions(self, commands: np.ndarray) -> np.ndarray:
        """Commands (v, w) [B, 2] of the coming step as the action space has them."""
        rows = np.clip(commands, -self.high, self.high).astype(np.float32)
        shape = (len(rows), *self.action_space.shape)
        return rows if len(shape) == 2 else np.broadcast_to(rows[:, None], shape).copy()

    def generator(self, pose: np.ndarray, purpose: int) -> np.random.Generator:
        """Of the episode that begins at a pose [12]."""
        begun = zlib.crc32(np.ascontiguousarray(pose, np.float32).tobytes())
        return np.random.default_rng([self.seed, begun, purpose])


@dataclass(kw_only=True)
class Walk:
    """Of B episodes: their generators, None before the first step; wish and command (v, w) [B, 2]."""

    draws: list[np.random.Generator | None]
    wish: np.ndarray
    command: np.ndarray


class SmoothWalk(Exploring):
    """Wishes of a speed and a turn rate that change now and then, followed with inertia. It sees no walls.

    lasts: steps that a wish lasts in the mean.
    """

    def __init__(self, observation_space: Any, action_space: Any, *, seed: int = 0, lasts: float = 2.5) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        if not lasts >= 1:
            raise ConfigError(f"lasts is {lasts!r}, allowed is a number of steps >= 1.")
        self.lasts = lasts

    def initial_state(self, worlds: int) -> Walk:
        return Walk(draws=[None] * worlds, wish=np.zeros((worlds, 2)), command=np.zeros((worlds, 2)))

    def act(self, observation: Any, state: Walk) -> tuple[np.ndarray, Walk]:
        poses = as_array(observation["pose"])
        for row, draws in enumerate(state.draws):
            first = draws is None
            own = state.draws[row] = self.generator(poses[row], 1) if draws is None else draws
            change, *drawn = own.random(5)
            if first or change < 1 / self.lasts:
                state.wish[row] = self._wish(*drawn)
        state.command = state.command + LAG * (state.wish - state.command)
        return self.actions(state.command), state

    def reset(self, state: Walk, worlds: np.ndarray) -> Walk:
        state.wish[worlds] = state.command[worlds] = 0.0
        state.draws = [None if begun else draws for draws, begun in zip(state.draws, worlds)]
        return state

    def _wish(self, pace: float, mood: float, size: float, side: float) -> np.ndarray:
        turn = 0.15 * size if mood < CALM else 0.3 + 0.5 * size
        return self.high * (0.25 + 0.5 * pace, turn if side < 0.5 else -turn)


@dataclass(kw_only=True)
class Coverage:
    """Of B episodes: columns as of task `Explore` (floor plan, open cells and those seen), rooms int64 [B], -1 where
    the floor plan is not known, turn [B] to the last side."""

    columns: dict[str, np.ndarray]
    rooms: np.ndarray
    turn: np.ndarray


class Frontier(Exploring):
    """Drives to where most floor comes into view that it has not seen, among a few arcs.

    What is seen follows from poses, as for the task `Explore`. By itself it knows no floor plan: nothing hides the
    floor, it sees no walls, and remembers where it has looked. Told the rooms (`enter`, as `sanawm generate` does), it
    knows their floor plan: what hides the floor, and how to keep clear. seconds: of a step.
    """

    def __init__(self, observation_space: Any, action_space: Any, *, seed: int = 0, seconds: float = SECONDS) -> None:
        super().__init__(observation_space, action_space, seed=seed)
        self.view, self.map = Explore(), DiffDrive(max_speed=self.high[0], max_turn=self.high[1])
        self.seconds = seconds

    def initial_state(self, worlds: int) -> Coverage:
        thing = np.array([NOWHERE, NOWHERE, 0.0, 0.0, 1.0, 0.0, 0.0])
        cells = self.view.cells()[0].shape
        columns = {
            "footprints": np.tile(thing, (worlds, 13, 1)),
            "half_size": np.full((worlds, 3), NOWHERE),
            "open": np.ones((worlds, *cells), bool),
            "seen": np.zeros((worlds, *cells), bool),
        }
        return Coverage(columns=columns, rooms=np.full(worlds, -1), turn=np.ones(worlds))

    def enter(self, state: Coverage, rooms: np.ndarray) -> Coverage:
        """Knows the floor plans of these rooms, int64 [B], from now on; -1 leaves a row as it is."""
        from sanawm_env.rooms import sample_scenes

        new = np.flatnonzero((rooms >= 0) & (rooms != state.rooms))
        if len(new):
            plan = FloorPlan.of(sample_scenes(rooms[new].tolist()))
            told = {"footprints": plan.footprints, "half_size": plan.half_size, "open": self.view.open_floor(plan)}
            for name, rows in told.items():
                state.columns[name][new] = rows
            state.rooms[new] = rooms[new]
        return state

    def act(self, observation: Any, state: Coverage) -> tuple[np.ndarray, Coverage]:
        pose = as_poses(observation["pose"])
        columns = state.columns
        columns["seen"] |= self.view.in_view(columns, pose[:, None])[:, 0]
        worlds, arcs = len(pose), len(TURNS)
        commands = np.stack([np.full(arcs, PACE), TURNS], axis=1) * self.high
        # One more: on the spot, to the side of the last turn.
        commands = np.concatenate([np.tile(commands, (worlds, 1, 1)), np.zeros((worlds, 1, 2))], axis=1)
        commands[:, -1, 1] = 0.8 * self.high[1] * np.where(state.turn < 0, -1.0, 1.0)
        held = np.repeat(commands.reshape(-1, 1, 2), 2 * AHEAD, axis=1)
        start = np.repeat(pose, arcs + 1, axis=0)
        ways, _ = self.map.rollout(start, self.map.initial(len(start)), held, 2 / self.seconds)
        ways = ways.reshape(worlds, -1, 4, 4)
        gap = FloorPlan(columns["footprints"], columns["half_size"]).distance(ways[..., 0, 3], ways[..., 2, 3])
        # Of two steps.
        clear: np.ndarray = np.all(gap.reshape(worlds, arcs + 1, -1)[..., :4] > MARGIN + 0.05, axis=2)
        clear[:, -1] = True
        ends = ways.reshape(worlds, arcs + 1, 2 * AHEAD, 4, 4)[:, :, 1::2].reshape(worlds, -1, 4, 4)
        fresh = self.view.in_view(columns, ends) & ~columns["seen"][:, None]
        fresh = fresh.reshape(worlds, arcs + 1, AHEAD, *fresh.shape[2:]).any(axis=2).sum(axis=(-2, -1))
        # Of equals the straighter way, and turning on the spot where no other is better.
        score = np.where(clear, fresh - 0.5 * np.abs(np.append(TURNS, 3.0)), -np.inf)
        best = commands[np.arange(worlds), score.argmax(axis=1)]
        state.turn = np.where(best[:, 1] == 0, state.turn, best[:, 1])
        return self.actions(best), state

    def reset(self, state: Coverage, worlds: np.ndarray) -> Coverage:
        fresh = self.initial_state(len(worlds))
        for name, rows in state.columns.items():
            rows[worlds] = fresh.columns[name][worlds]
        state.rooms[worlds], state.turn[worlds] = -1, 1.0
        return state


@dataclass(kw_only=True)
class Legs:
    """Of B episodes: state of the policy that leads there, its actions of this leg [leg, B, ...], steps since the leg
    began [B]."""

    there: Any
    taken: np.ndarray
    step: np.ndarray


class ThereAndBack:
    """`leg` steps of another policy, the same way back in reverse, then its next leg: what was seen is seen again.

    Exact for maps without inertia (time_constant 0), whose opposite action undoes an action.
    """

    def __init__(self, there: Policy[Any], leg: int = 4) -> None:
        if leg < 1:
            raise ConfigError(f"leg is {leg!r}, allowed is a number of steps >= 1.")
        self.there, self.leg = there, leg
        self.observation_space, self.action_space = there.observation_space, there.action_space

    def initial_state(self, worlds: int) -> Legs:
        taken = np.zeros((self.leg, worlds, *self.action_space.shape), np.float32)
        return Legs(there=self.there.initial_state(worlds), taken=taken, step=np.zeros(worlds, np.int64))

    def act(self, observation: Any, state: Legs) -> tuple[np.ndarray, Legs]:
        actions, state.there = self.there.act(observation, state.there)
        rows, back = np.arange(len(actions)), state.step >= self.leg
        state.taken[state.step[~back], rows[~back]] = actions[~back]
        undone = -state.taken[2 * self.leg - 1 - state.step[back], rows[back]]
        actions[back] = undone[:, ::-1] if undone.ndim == 3 else undone
        state.step = (state.step + 1) % (2 * self.leg)
        return actions, state

    def reset(self, state: Legs, worlds: np.ndarray) -> Legs:
        state.there, state.step[worlds] = self.there.reset(state.there, worlds), 0
        return state

    def enter(self, state: Legs, rooms: np.ndarray) -> Legs:
        """As of `Frontier`."""
        return replace(state, there=entered(self.there, state.there, rooms))


@dataclass(kw_only=True)
class Mixed:
    """Of B episodes: the states of all parts, and which part each is left to, -1 before the first step."""

    parts: list[Any]
    chosen: np.ndarray = field(repr=False)


class Mixture(Exploring):
    """Each episode is left to one of several policies, drawn with these shares."""

    def __init__(self, parts: Sequence[tuple[Policy[Any], float]], *, seed: int = 0) -> None:
        if not parts or not all(share > 0 for _, share in parts):
            raise ConfigError(f"shares are {[share for _, share in parts]}, allowed are one or more above 0.")
        super().__init__(parts[0][0].observation_space, parts[0][0].action_space, seed=seed)
        self.policies = [policy for policy, _ in parts]
        self.bounds = np.cumsum([share for _, share in parts]) / sum(share for _, share in parts)

    def initial_state(self, worlds: int) -> Mixed:
        return Mixed(parts=[policy.initial_state(worlds) for policy in self.policies], chosen=np.full(worlds, -1))

    def act(self, observation: Any, state: Mixed) -> tuple[np.ndarray, Mixed]:
        poses = as_array(observation["pose"])
        for row in np.flatnonzero(state.chosen < 0):
            state.chosen[row] = np.searchsorted(self.bounds, self.generator(poses[row], 2).random(), side="right")
        acted = [policy.act(observation, part) for policy, part in zip(self.policies, state.parts)]
        actions = np.stack([actions for actions, _ in acted])[state.chosen, np.arange(len(poses))]
        return actions, replace(state, parts=[part for _, part in acted])

    def reset(self, state: Mixed, worlds: np.ndarray) -> Mixed:
        state.chosen[worlds] = -1
        parts = [policy.reset(part, worlds) for policy, part in zip(self.policies, state.parts)]
        return replace(state, parts=parts)

    def enter(self, state: Mixed, rooms: np.ndarray) -> Mixed:
        """As of `Frontier`."""
        parts = [entered(policy, part, rooms) for policy, part in zip(self.policies, state.parts)]
        return replace(state, parts=parts)


def mixture(observation_space: Any, action_space: Any, *, seed: int = 0) -> Mixture:
    """Half coverage, a third smooth walks, the rest walks there and back."""
    spaces = (observation_space, action_space)
    walk = SmoothWalk(*spaces, seed=seed)
    back = ThereAndBack(SmoothWalk(*spaces, seed=seed + 1))
    return Mixture([(Frontier(*spaces, seed=seed), 3.0), (walk, 2.0), (back, 1.0)], seed=seed)


def entered(policy: Any, state: Any, rooms: np.ndarray) -> Any:
    """The state of a policy that is told the rooms, int64 [B], if it asks for them."""
    return policy.enter(state, rooms) if hasattr(policy, "enter") else state


def as_array(rows: Any) -> np.ndarray:
    """Rows of an observation, which may be tensors, as an array."""
    return rows.cpu().numpy() if hasattr(rows, "cpu") else np.asarray(rows)


def as_poses(rows: Any) -> np.ndarray:
    """[B, 4, 4] float64 of an observation's poses [B, 12]."""
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = as_array(rows).reshape(-1, 3, 4)
    return poses
