"""The cross-entropy method, plain (de Boer et al., 2005) and improved (iCEM, Pinneri et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sanawm_env.errors import ConfigError
from sanawm_env.policies.futures import Cost
from sanawm_env.policies.planner import Planner, PlannerConfig, Search, best_of


@dataclass(frozen=True, kw_only=True)
class CEMConfig(PlannerConfig):
    """elites: best candidates, whose mean and deviation the next ones are drawn from. momentum: share of the old mean
    and deviation in the new."""

    elites: int = 8
    momentum: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.elites <= self.candidates:
            raise ConfigError(f"elites is {self.elites}, allowed are 1 .. {self.candidates}, the candidates.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}, allowed are 0 and up to 1, without 1.")


@dataclass(frozen=True, kw_only=True)
class ICEMConfig(CEMConfig):
    """kept: elites that are tried again in the next iteration and, shifted by a step, in the next plan. Noise over a
    plan is smooth unless told otherwise."""

    colour: float = 2.0
    kept: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.kept <= min(self.elites, self.candidates - 2):
            raise ConfigError(
                f"kept is {self.kept}, allowed are 0 .. {min(self.elites, self.candidates - 2)}: not more than the "
                "elites, and two candidates must be left to draw."
            )


class CEM(Planner):
    """Draws plans from a normal distribution and moves it to the best of them, over a few iterations.

    The first candidate of each iteration is the mean itself, which at first is the last plan, shifted. The plan
    followed is the best that was tried, not the mean: between two ways around an obstacle lies the obstacle.
    """

    def __init__(self, env: Any, cost: Cost, config: CEMConfig | None = None) -> None:
        self.chosen = CEMConfig() if config is None else config
        super().__init__(env, cost, self.chosen)

    def propose(self, search: Search, generators: list[np.random.Generator], iteration: int) -> np.ndarray:
        known = np.concatenate([search.mean[:, None], search.kept], axis=1)
        drawn = self.draw(search, generators, self.config.candidates - known.shape[1])
        return np.concatenate([known, drawn], axis=1)

    def learn(self, search: Search, tried: np.ndarray, costs: np.ndarray) -> Search:
        order = np.argsort(costs, axis=1, kind="stable")[:, : self.chosen.elites]
        rows = np.arange(len(tried))[:, None]
        elites, sound = tried[rows, order], np.isfinite(costs[rows, order])
        weight = sound.reshape(*sound.shape, *[1] * (tried.ndim - 2)).astype(np.float64)
        count = weight.sum(axis=1)
        mean = (weight * elites).sum(axis=1) / np.maximum(count, 1)
        std = np.sqrt((weight * (elites - mean[:, None]) ** 2).sum(axis=1) / np.maximum(count, 1))
        old = np.where(count > 0, self.chosen.momentum, 1.0)
        plan, cost = best_of(search, tried, costs)
        return replace(
            search,
            mean=old * search.mean + (1 - old) * mean,
            std=old * search.std + (1 - old) * std,
            kept=elites[:, : self.kept_count],
            plan=plan,
            cost=cost,
        )


class ICEM(CEM):
    """CEM with noise that is smooth over a plan, and elites that are tried again.

    Of the paper's parts, the shrinking population is left out: futures of one number are one shape, which a GPU
    records once.
    """

    def __init__(self, env: Any, cost: Cost, config: ICEMConfig | None = None) -> None:
        config = ICEMConfig() if config is None else config
        self.kept_count = config.kept
        super().__init__(env, cost, config)
