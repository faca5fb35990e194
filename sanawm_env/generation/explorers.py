"""What moves the worlds: paths drawn ahead, as a robot or a hand would make them, or a policy that sees frames."""

from __future__ import annotations

import importlib
import inspect
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sanawm_env.actions import make_action_map
from sanawm_env.errors import ConfigError, nearest
from sanawm_env.generation.config import Generate
from sanawm_env.generation.plan import Plan
from sanawm_env.model.config import WorldConfig
from sanawm_env.policies.base import Policy
from sanawm_env.spaces import check_policy

if TYPE_CHECKING:
    from sanawm_env.vector_env import SanaWMVectorEnv

Paths = tuple[np.ndarray, np.ndarray]  # start poses [n, 4, 4], actions float32 [n, frames, 6]
GROUPS_AHEAD = 3  # one that begins, one whose starts are being made (`starts`), and one more


class Explorer(Protocol):
    """Gives a batch of worlds their actions."""

    def expect(self, plans: Sequence[Plan]) -> None:
        """These episodes will begin, in this order."""

    def poses(self, plans: Sequence[Plan]) -> np.ndarray | None:
        """Where the cameras of these episodes, which have not begun, start [n, 4, 4]; None for the world's choice."""

    def begin(self, slots: Sequence[int], plans: Sequence[Plan]) -> None:
        """Episodes begin in these slots."""

    def act(self, observation: Any, slots: int) -> np.ndarray:
        """Actions float32 of the coming step, with a row a slot; any for a slot in which no episode has begun."""

    def select(self, slots: Sequence[int]) -> None:
        """Goes on with these slots alone, which are 0, 1, ... from now on."""


def action_mode(config: Generate) -> str:
    """That of the job's environment: paths have an action a frame."""
    return "per_frame" if config.policy is None else config.action_mode


def make_explorer(config: Generate, env: SanaWMVectorEnv, planner: Executor | None) -> Explorer:
    """The explorer of a job. planner: as of `PathExplorer`. ConfigError: a kind of path that the action map cannot
    take, a policy that is none. SpaceError: a policy for other spaces than the environment's."""
    if config.policy is not None:
        return PolicyExplorer(make_policy(config, env), env.num_envs)
    return PathExplorer(config, env.model.config, planner)


def kinds_for(config: Generate) -> dict[str, float]:
    """Kinds of path for the job's action map, and how often each is drawn."""
    from sanawm_env.rooms.trajectories import ACTION_MAPS, MIXTURE

    fitting = {kind: share for kind, share in MIXTURE.items() if ACTION_MAPS[kind] == config.action_map}
    if config.kind is None and fitting:
        return fitting
    if config.kind not in fitting:
        maps = sorted(set(ACTION_MAPS.values()))
        told = nearest(str(config.kind), fitting) if fitting else f"paths are for {' and '.join(maps)}, name a policy."
        raise ConfigError(f"kind is {config.kind!r} and action_map {config.action_map!r}; {told}")
    return {config.kind: 1.0}


def draw_paths(plans: Sequence[Plan], kinds: dict[str, float], frames: int, fps: float) -> Paths:
    """Start poses [n, 4, 4] and actions float32 [n, frames, 6] of these episodes, each a function of its own plan.

    An episode that starts from a picture takes the actions of a path through a room that is not its own.
    """
    from sanawm_env.rooms import sample_scenes, sample_trajectories

    weights = np.cumsum(list(kinds.values())) / sum(kinds.values())
    drawn = [np.random.default_rng([one.path_seed, 1]).random() for one in plans]
    chosen = [list(kinds)[int(np.searchsorted(weights, value, side="right"))] for value in drawn]
    starts, actions = np.empty((len(plans), 4, 4)), np.empty((len(plans), frames, 6), np.float32)
    scenes = sample_scenes([one.path_seed if one.room is None else one.room for one in plans])
    for kind in sorted(set(chosen)):
        rows = [row for row, own in enumerate(chosen) if own == kind]
        seeds = [plans[row].path_seed for row in rows]
        paths = sample_trajectories(scenes.select(rows), seeds, frames, fps, kind)
        starts[rows], actions[rows] = paths.poses[:, 0], paths.actions
    return starts, actions


class PathExplorer:
    """Drives along paths of `rooms.trajectories`, which keep clear of walls and furniture.

    planner: processes that draw paths ahead of their episodes, a group at a time; the first group, which cannot wait
    for them to start, and all of them with None, are drawn here. A path is the same in any group.
    """

    def __init__(self, config: Generate, world: WorldConfig, planner: Executor | None) -> None:
        self.kinds, self.fps, self.frames = kinds_for(config), world.fps, world.frames_per_chunk
        self.steps = math.ceil(config.frames / self.frames)
        self.columns = make_action_map(config.action_map).size
        self.group, self.planner = config.batch, planner
        self._started = False
        self._expected: deque[Plan] = deque()
        self._drawn: dict[int, tuple[Future[Paths], int]] = {}  # the paths of a group and the row in them, by episode
        self._actions: list[np.ndarray] = []  # [steps, F, A] of each slot
        self._step = np.zeros(0, int)

    def expect(self, plans: Sequence[Plan]) -> None:
        self._expected.extend(plans)
        self._draw_ahead()

    def poses(self, plans: Sequence[Plan]) -> np.ndarray | None:
        if plans[0].room is None:
            return None
        drawn = [self._drawn[one.number] for one in plans]
        return np.stack([paths.result()[0][row] for paths, row in drawn])

    def begin(self, slots: Sequence[int], plans: Sequence[Plan]) -> None:
        missing = max(slots) + 1 - len(self._actions)
        self._actions += [np.zeros((self.steps, self.frames, self.columns), np.float32)] * missing
        self._step = np.concatenate([self._step, np.zeros(max(missing, 0), int)])
        for slot, one in zip(slots, plans):
            paths, row = self._drawn.pop(one.number)
            self._actions[slot] = paths.result()[1][row].reshape(self.steps, self.frames, -1)[..., : self.columns]
            self._step[slot] = 0
        self._draw_ahead()

    def act(self, observation: Any, slots: int) -> np.ndarray:
        taken = [own[step % self.steps] for own, step in zip(self._actions, self._step)]
        self._step += 1
        return np.stack(taken + [np.zeros_like(taken[0])] * (slots - len(taken)))

    def select(self, slots: Sequence[int]) -> None:
        self._actions, self._step = [self._actions[slot] for slot in slots], self._step[list(slots)]

    def _draw_ahead(self) -> None:
        """So that those which begin next, as many as a batch at most, are known or being drawn."""
        enough = self.group * (1 if self.planner is None else GROUPS_AHEAD)
        while self._expected and len(self._drawn) < enough:
            plans = [self._expected.popleft() for _ in range(min(self.group, len(self._expected)))]
            task = (plans, self.kinds, self.steps * self.frames, self.fps)
            if self.planner is not None and self._started:
                drawn = self.planner.submit(draw_paths, *task)
            else:
                drawn = Future()
                drawn.set_result(draw_paths(*task))
                self._started = True
            self._drawn |= {one.number: (drawn, row) for row, one in enumerate(plans)}


class PolicyExplorer:
    """Asks a policy. An episode depends on its plan alone as long as the policy looks at each row by itself."""

    def __init__(self, policy: Policy[Any], worlds: int) -> None:
        self.policy = policy
        self._state = policy.initial_state(worlds)
        self._begun = np.zeros(worlds, bool)
        self._room = np.full(worlds, -1)
        # Which of the policy's rows each slot has; rows without a slot are shown what slot 0 sees.
        self._rows = np.arange(worlds)

    def expect(self, plans: Sequence[Plan]) -> None:
        return None

    def poses(self, plans: Sequence[Plan]) -> None:
        return None

    def begin(self, slots: Sequence[int], plans: Sequence[Plan]) -> None:
        rows = self._rows[list(slots)]
        self._begun[rows] = True
        self._room[rows] = [-1 if one.room is None else one.room for one in plans]

    def act(self, observation: Any, slots: int) -> np.ndarray:
        if self._begun.any():
            self._state = self.policy.reset(self._state, self._begun.copy())
            self._begun[:] = False
            if hasattr(self.policy, "enter"):
                self._state = self.policy.enter(self._state, self._room.copy())
        shown = np.zeros(len(self._room), np.int64)
        shown[self._rows] = np.arange(slots)
        seen = {name: x[shown] for name, x in observation.items()} if isinstance(observation, dict) else None
        actions, self._state = self.policy.act(observation[shown] if seen is None else seen, self._state)
        return np.asarray(actions, np.float32)[self._rows]

    def select(self, slots: Sequence[int]) -> None:
        self._rows = self._rows[list(slots)]


class Stateless:
    """A plain callable as a policy: observations in, actions out."""

    observation_space = action_space = None

    def __init__(self, acts: Callable[[Any], Any]) -> None:
        self.acts = acts

    def initial_state(self, worlds: int) -> None:
        return None

    def act(self, observation: Any, state: None) -> tuple[Any, None]:
        return self.acts(observation), None

    def reset(self, state: None, worlds: np.ndarray) -> None:
        return None


def make_policy(config: Generate, env: SanaWMVectorEnv) -> Policy[Any]:
    """The policy that a job names: one as of `policies.base`, what makes one of spaces and `policy_options`, or a plain
    callable. ConfigError where there is none, SpaceError for one made for other spaces."""
    policy: Any = find_policy(str(config.policy))
    made = hasattr(policy, "act") and not isinstance(policy, type)
    if not made and "action_space" not in inspect.signature(policy).parameters:
        return Stateless(policy)
    if not made:
        try:
            policy = policy(env.single_observation_space, env.single_action_space, **config.policy_options)
        except TypeError as error:
            told = dict(config.policy_options)
            raise ConfigError(f"policy_options {told} do not fit {config.policy}: {error}.") from None
    check_policy(policy, env)
    checked: Policy[Any] = policy
    return checked


def find_policy(name: str) -> Any:
    """What `module:name` names. ConfigError where it is nothing that acts."""
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"policy {name!r} cannot be imported ({error}); name it as module:callable.") from error
    if not callable(found) and not hasattr(found, "act"):
        raise ConfigError(f"policy {name!r} is no callable; name it as module:callable.")
    return found
