"""Model predictive path integral control (Williams et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sanawm_env.errors import ConfigError
from sanawm_env.policies.futures import Cost
from sanawm_env.policies.planner import Planner, PlannerConfig, Search


@dataclass(frozen=True, kw_only=True)
class MPPIConfig(PlannerConfig):
    """temperature: how far from the best a candidate may be and still count, in standard deviations of the candidates'
    costs; small follows the best one alone. shrink: by which noise gets smaller each iteration. Noise over a plan is
    smooth unless told otherwise."""

    colour: float = 2.0
    temperature: float = 0.1
    shrink: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or not 0 < self.shrink <= 1:
            raise ConfigError(
                f"temperature is {self.temperature}, shrink {self.shrink}; allowed are > 0, and above 0 up to 1."
            )


class MPPI(Planner):
    """Follows the mean of all plans tried, each weighted by exp(-cost / temperature).

    The mean is a plan that was itself not tried in the last iteration; its cost is therefore given as the mean of
    theirs, with the same weights.
    """

    def __init__(self, env: Any, cost: Cost, config: MPPIConfig | None = None) -> None:
        self.chosen = MPPIConfig() if config is None else config
        super().__init__(env, cost, self.chosen)

    def propose(self, search: Search, generators: list[np.random.Generator], iteration: int) -> np.ndarray:
        drawn = self.draw(search, generators, self.config.candidates - 1)
        return np.concatenate([search.mean[:, None], drawn], axis=1)

    def learn(self, search: Search, tried: np.ndarray, costs: np.ndarray) -> Search:
        weight = self._weights(costs)
        known = weight.sum(axis=1) > 0
        spread = weight.reshape(*weight.shape, *[1] * (tried.ndim - 2))
        mean = np.where(known.reshape(-1, *[1] * (tried.ndim - 2)), (spread * tried).sum(axis=1), search.mean)
        promised = np.where(weight > 0, weight * np.where(weight > 0, costs, 0.0), 0.0).sum(axis=1)
        cost = np.where(known, promised, np.inf)
        return replace(search, mean=mean, std=search.std * self.chosen.shrink, plan=mean, cost=cost)

    def _weights(self, costs: np.ndarray) -> np.ndarray:
        """[B, n], of sum 1 in each world; 0 for infinite costs, all 0 where there is no other."""
        sound = np.isfinite(costs)
        count = np.maximum(sound.sum(axis=1, keepdims=True), 1)
        finite = np.where(sound, costs, 0.0)
        mean = finite.sum(axis=1, keepdims=True) / count
        deviation = np.sqrt((np.where(sound, costs - mean, 0.0) ** 2).sum(axis=1, keepdims=True) / count)
        best = np.where(sound, costs, np.inf).min(axis=1, keepdims=True)
        above = np.where(sound, costs - np.where(np.isfinite(best), best, 0.0), 0.0)
        weight = sound * np.exp(-above / np.maximum(self.chosen.temperature * deviation, 1e-12))
        return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
