"""A module that is trained: its optimisers, its gradients, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sanawm_env.training.loop import make_optimisers, set_rate
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.scaling import Scaling, spread_like, whole

Rates = dict[str, Any]


class Learner:
    """A module with its optimisers. lr, muon_lr, plain, betas: of `make_optimisers`. clip: largest norm of a gradient.
    scaling: how a large module is trained; it is changed so here.
    """

    def __init__(
        self,
        module: nn.Module,
        ranks: Ranks,
        *,
        lr: float,
        muon_lr: float | None,
        clip: float,
        plain: Callable[[str], bool] = lambda _: False,
        betas: tuple[float, float] = (0.9, 0.98),
        scaling: Scaling = Scaling(),  # noqa: B008 - frozen
    ) -> None:
        scaling.apply(module, ranks, muon_lr)
        self.module, self.ranks, self.clip, self.scaling = module, ranks, clip, scaling
        self.optimisers = make_optimisers(module, lr=lr, muon_lr=muon_lr, plain=plain, betas=betas)
        self.norm = torch.zeros(())  # of the gradient of the last step
        self._gathered = 0

    def descend(self, loss: Tensor, rate: float) -> bool:
        """Adds the gradient of a loss; where that was the last batch of a step, takes the step at `rate` times the
        learning rates. Whether it did.
        """
        (loss / self.scaling.accumulate).backward()
        self._gathered += 1
        if self._gathered < self.scaling.accumulate:
            return False
        self._gathered = 0
        if not self.scaling.sharded:
            self.ranks.average_gradients(self.module)
        self.norm = whole(torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip))
        set_rate(self.optimisers, rate)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return True

    def state(self) -> dict[str, Any]:
        """Weights and optimisers, whole; every rank must ask for it."""
        parts: dict[str, Any] = whole(
            {"module": self.module.state_dict(), "optimisers": [x.state_dict() for x in self.optimisers]}
        )
        return parts

    def load(self, saved: dict[str, Any]) -> None:
        """Goes on from `state`; optimisers that it does not hold begin anew."""
        current = self.module.state_dict()
        self.module.load_state_dict({name: spread_like(x, current[name]) for name, x in saved["module"].items()})
        for optimiser, told in zip(self.optimisers, saved.get("optimisers", []), strict=False):
            optimiser.load_state_dict(told | {"state": self._spread(optimiser, told["state"])})

    def _spread(self, optimiser: torch.optim.Optimizer, state: dict[int, Any]) -> dict[int, Any]:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        return {
            index: {name: spread_like(x, parameters[index]) for name, x in kept.items()}
            for index, kept in state.items()
        }
