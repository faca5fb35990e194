"""Planning by search over forked futures, in the manner of model predictive control: plan, act one step, plan again."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from sanawm_env.errors import ConfigError, PolicyError, SpaceError
from sanawm_env.policies.futures import Cost, imagine


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """What all planners are told.

    horizon: steps H of a plan, a chunk of frames each. candidates: plans tried in each of so many iterations, for each
    world. spread: standard deviation of the first candidates, in halves of the action space's range. colour: noise over
    the steps of a plan has a power spectrum of 1 / frequency^colour; 0 is white, 2 smooth. discount: of a step's cost
    against that of the step before. at_once: futures of a world that are alive together, to bound memory; None for all.
    seed: of all draws.
    """

    horizon: int = 4
    candidates: int = 64
    iterations: int = 3
    spread: float = 0.5
    colour: float = 0.0
    discount: float = 0.95
    at_once: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("horizon", 1), ("candidates", 2), ("iterations", 1), ("at_once", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}, allowed is {least} or more.")
        if not 0 < self.discount <= 1:
            raise ConfigError(f"discount is {self.discount}, allowed are numbers above 0 and up to 1.")
        if not self.spread > 0 or not self.colour >= 0:
            raise ConfigError(f"spread is {self.spread}, colour {self.colour}; allowed are > 0 and >= 0.")


@dataclass(frozen=True, kw_only=True)
class PlannerState:
    """Of B worlds: plans [B, H, ...], where the next search begins (the last plan, shifted by a step); kept [B, k, H,
    ...], good candidates that are tried again; the random generator of each; and cost [B], what the last plan promised
    (NaN before there was one, infinite where every future was faulty and the last plan was followed instead).
    """

    plans: np.ndarray
    kept: np.ndarray
    generators: list[np.random.Generator]
    cost: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search under way in B worlds: mean and std [B, H, ...] of what is drawn next, kept [B, k, H, ...], and the best
    plan so far [B, H, ...] with its cost [B]."""

    mean: np.ndarray
    std: np.ndarray
    kept: np.ndarray
    plan: np.ndarray
    cost: np.ndarray


class Planner(abc.ABC):
    """A policy that tries plans out in an environment, by forking it where it stands, and takes the first action of the
    best.

    env: the environment planned in, of one world or of B; only its present instant is read, nothing of it changes.
    Futures are of the environment itself, without wrappers, so that its own spaces are the planner's. The observation
    handed to `act` is not used. cost: see `futures.Cost`. Every world has a random generator that begins
    with the config's seed, so a batch plans what each of its worlds would plan alone. Worlds whose episode has ended
    are not planned for; they follow their last plan.

    Raises SpaceError for actions that are not bounded numbers.
    """

    kept_count: int = 0

    def __init__(self, env: Any, cost: Cost, config: PlannerConfig) -> None:
        self.env, self.cost, self.config = env.unwrapped, cost, config
        self.observation_space = getattr(self.env, "single_observation_space", self.env.observation_space)
        self.action_space = getattr(self.env, "single_action_space", self.env.action_space)
        space = self.action_space
        if not isinstance(space, Box) or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise SpaceError(
                f"planners search bounded numbers, the environment's action space is {space}; make it with an action "
                "map such as 'diff_drive' or 'twist'."
            )
        self.low, self.high = space.low.astype(np.float64), space.high.astype(np.float64)

    def initial_state(self, worlds: int) -> PlannerState:
        """Plans that stand in the middle of the action space. PolicyError for a number of worlds other than the
        environment's."""
        if worlds != (running := getattr(self.env, "num_envs", 1)):
            raise PolicyError(f"the planner was asked for {worlds} worlds, its environment has {running}; pass these.")
        plans = np.broadcast_to((self.low + self.high) / 2, (worlds, self.config.horizon, *self.low.shape)).copy()
        return PlannerState(
            plans=plans,
            kept=np.repeat(plans[:, None], self.kept_count, axis=1),
            generators=[np.random.default_rng(self.config.seed) for _ in range(worlds)],
            cost=np.full(worlds, np.nan),
        )

    def act(self, observation: Any, state: PlannerState) -> tuple[np.ndarray, PlannerState]:
        """Actions [B, ...] float32 of the coming step for every world, and the state after them."""
        worlds = np.arange(len(state.plans))
        awake = self._awake()
        plans, kept, cost = state.plans.copy(), state.kept.copy(), state.cost.copy()
        if len(awake):
            found = self._search(state, awake)
            plans[awake], kept[awake], cost[awake] = found.plan, found.kept, found.cost
        state = replace(state, plans=_shifted(plans, 1), kept=_shifted(kept, 2), cost=cost)
        return plans[worlds, 0].astype(self.action_space.dtype), state

    def reset(self, state: PlannerState, worlds: np.ndarray) -> PlannerState:
        """The state with fresh plans and generators in the worlds of the mask, bool [B]."""
        fresh = self.initial_state(len(state.plans))
        mask = np.asarray(worlds, bool)
        chosen = mask.reshape(-1, *[1] * (state.plans.ndim - 1))
        pairs = zip(mask, fresh.generators, state.generators, strict=True)
        return PlannerState(
            plans=np.where(chosen, fresh.plans, state.plans),
            kept=np.where(chosen[:, None], fresh.kept, state.kept),
            generators=[new if begun else old for begun, new, old in pairs],
            cost=np.where(mask, np.nan, state.cost),
        )

    def _awake(self) -> np.ndarray:
        """Numbers of the worlds to plan for, filled up with others to a power of two: a device then sees few sizes."""
        over = self.env.ended
        running = np.flatnonzero(~over)
        count = min(len(over), 1 << (len(running) - 1).bit_length()) if len(running) else 0
        return np.sort(np.concatenate([running, np.flatnonzero(over)[: count - len(running)]])).astype(np.int64)

    def _search(self, state: PlannerState, awake: np.ndarray) -> Search:
        env, config, plans = self.env, self.config, state.plans[awake]
        if len(awake) < len(state.plans):
            env = env.select(awake.tolist())
        search = Search(
            mean=plans,
            std=np.broadcast_to(config.spread * (self.high - self.low) / 2, plans.shape),
            kept=state.kept[awake],
            plan=plans,
            cost=np.full(len(plans), np.inf),
        )
        generators = [state.generators[world] for world in awake]
        for iteration in range(config.iterations):
            tried = self.propose(search, generators, iteration)
            costs = imagine(env, tried, self.cost, worlds=awake, discount=config.discount, at_once=config.at_once)
            search = self.learn(search, tried, costs)
        return search

    def draw(self, search: Search, generators: list[np.random.Generator], count: int) -> np.ndarray:
        """Candidates [B, count, H, ...] around the mean, within the action space."""
        shape = (count, *search.mean.shape[1:])
        white = np.stack([generator.standard_normal(shape) for generator in generators])
        drawn = search.mean[:, None] + search.std[:, None] * coloured(white, self.config.colour)
        return np.clip(drawn, self.low, self.high)

    @abc.abstractmethod
    def propose(self, search: Search, generators: list[np.random.Generator], iteration: int) -> np.ndarray:
        """Candidates [B, n, H, ...] to try next, the same number in each iteration."""

    @abc.abstractmethod
    def learn(self, search: Search, tried: np.ndarray, costs: np.ndarray) -> Search:
        """The search after candidates [B, n, H, ...] were found to cost [B, n]; infinite costs teach nothing."""


def best_of(search: Search, tried: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest plan so far [B, H, ...] and its cost [B]."""
    rows, best = np.arange(len(tried)), costs.argmin(axis=1)
    better = costs[rows, best] < search.cost
    chosen = better.reshape(-1, *[1] * (search.plan.ndim - 1))
    return np.where(chosen, tried[rows, best], search.plan), np.where(better, costs[rows, best], search.cost)


def coloured(white: np.ndarray, exponent: float) -> np.ndarray:
    """Noise of unit variance with a power spectrum of 1 / frequency^exponent over axis 2, from white noise [B, n, H,
    ...]. The mean over time counts as the lowest frequency, 1 / H."""
    steps = white.shape[2]
    if exponent == 0 or steps == 1:
        return white
    frequency = np.maximum(np.abs(np.fft.fftfreq(steps)), 1 / steps)
    gain = frequency ** (-exponent / 2)
    gain = (gain / np.sqrt(np.mean(gain**2))).reshape(-1, *[1] * (white.ndim - 3))
    return np.fft.ifft(np.fft.fft(white, axis=2) * gain, axis=2).real


def _shifted(plans: np.ndarray, axis: int) -> np.ndarray:
    """Plans a step later: the first action is gone, the last one is held for another step."""
    steps = plans.shape[axis]
    return plans.take(np.minimum(np.arange(1, steps + 1), steps - 1), axis=axis)
