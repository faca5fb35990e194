"""Plans tried out: futures of an environment's present instant, stepped along candidates and scored. All planners
search through this one function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sanawm_env.errors import ConfigError, PolicyError

if TYPE_CHECKING:
    from torch import Tensor

FAULT = "model_fault"


@dataclass(frozen=True, kw_only=True)
class Imagined:
    """What one step of N futures gave.

    futures: their vector environment. observation, reward [N], info: as its step returned them. world: [N] which world
    of the environment each is a future of. step, steps: number of the step and how many the plans have.
    """

    futures: Any
    observation: Any
    reward: np.ndarray
    info: dict[str, Any]
    world: np.ndarray
    step: int
    steps: int

    @property
    def last(self) -> bool:
        """Whether this is the last step of the plans."""
        return self.step == self.steps - 1


class Cost(Protocol):
    """What a step of a future costs; a plan's cost is the sum over its steps.

    decode: whether it looks at pictures. Without, futures are of the plan tier: latents, poses and rewards.
    """

    decode: bool

    def __call__(self, imagined: Imagined) -> np.ndarray | Tensor:
        """[N] costs, on any device; +infinity for what must never be chosen. NaN and -infinity are refused."""


def imagine(
    env: Any,
    plans: np.ndarray,
    cost: Cost,
    *,
    worlds: np.ndarray | None = None,
    discount: float = 1.0,
    at_once: int | None = None,
) -> np.ndarray:
    """Costs float64 [B, n] of n plans for each of the B worlds of an environment, which stays untouched.

    env: an environment, or a vector environment, with `fork`. plans: [B, n, H, ...], actions of H steps. worlds: [B]
    numbers by which the cost knows the worlds, 0 .. B - 1 by default. discount: by which each later step counts less.
    at_once: futures of a world that are alive together, all n if None.

    A future in which the model fails (latents that are not finite) costs +infinity. One in which the episode ends goes
    on without reward, so that its return is kept; what its later pictures cost is for the cost to say.
    Raises PolicyError on costs that are NaN, -infinity or of a wrong shape.
    """
    candidates = plans.shape[1]
    size = candidates if at_once is None else min(at_once, candidates)
    names = np.arange(len(plans)) if worlds is None else worlds
    parts = [
        _follow(env, plans[:, first : first + size], cost, names, discount) for first in range(0, candidates, size)
    ]
    return np.concatenate(parts, axis=1)


def _follow(env: Any, plans: np.ndarray, cost: Cost, worlds: np.ndarray, discount: float) -> np.ndarray:
    """`imagine` for futures that are alive together."""
    batch, count, steps = plans.shape[:3]
    futures = env.unwrapped.fork(count, decode=cost.decode)
    try:
        if futures.num_envs != batch * count:
            raise ConfigError(
                f"plans are for {batch} worlds, the environment runs {futures.num_envs // count}; pass plans [B, n, H, "
                "...] with a row for each world."
            )
        total: Any = 0.0
        for step in range(steps):
            actions = plans[:, :, step].reshape(batch * count, *plans.shape[3:])
            observation, reward, _, _, info = futures.step(actions)
            imagined = Imagined(
                futures=futures,
                observation=observation,
                reward=reward,
                info=info,
                world=np.repeat(worlds, count),
                step=step,
                steps=steps,
            )
            given = cost(imagined)
            if tuple(given.shape) != (batch * count,):
                raise PolicyError(
                    f"{type(cost).__name__} gave costs of shape {tuple(given.shape)}, expected ({batch * count},): one "
                    "a future."
                )
            total = total + discount**step * given
    finally:
        futures.close()
    costs = np.where(info["truncation_reason"] == FAULT, np.inf, _on_host(total))
    _check(costs, cost, np.repeat(worlds, count))
    return costs.reshape(batch, count)


def _on_host(total: np.ndarray | Tensor) -> np.ndarray:
    return np.asarray(total if isinstance(total, np.ndarray) else total.detach().cpu().numpy(), np.float64)


def _check(costs: np.ndarray, cost: Cost, world: np.ndarray) -> None:
    wrong = np.flatnonzero(np.isnan(costs) | (costs == -np.inf))
    if len(wrong):
        first = int(wrong[0])
        raise PolicyError(
            f"{type(cost).__name__} gave {costs[first]} for {len(wrong)} of {len(costs)} futures, the first of world "
            f"{int(world[first])}; allowed are numbers, and +infinity for what must never be chosen."
        )
