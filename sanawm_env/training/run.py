"""What every stage does around its loss: resume, go on until the clock says stop, average the weights, save, and say
where the result comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sanawm_env.benchmarks.machine import commit
from sanawm_env.training.loop import (
    Ema,
    WallClock,
    load_checkpoint,
    make_optimisers,
    rate_factor,
    save_checkpoint,
    set_rate,
)
from sanawm_env.training.paths import PathPlanner
from sanawm_env.training.ranks import Ranks

SEEDS_A_RANK = 100_000_000


class Settings(Protocol):
    """Settings that every stage has.

    out: folder of the checkpoint and the result. minutes: wall clock of this run; total_minutes: of the whole schedule,
    over all runs (None: this run is all). batch: clips a step, on each GPU. lr, muon_lr, warmup, clip, ema: of the
    optimisers (muon_lr None: AdamW alone) and the average. first_seed: of the training rooms. max_steps: of this run.
    """

    @property
    def out(self) -> Path: ...
    @property
    def minutes(self) -> float: ...
    @property
    def total_minutes(self) -> float | None: ...
    @property
    def batch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def muon_lr(self) -> float | None: ...
    @property
    def warmup(self) -> int: ...
    @property
    def clip(self) -> float: ...
    @property
    def ema(self) -> float: ...
    @property
    def first_seed(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def max_steps(self) -> int | None: ...


class Run:
    """One run of a stage over `module`, resumed from `out`/`checkpoint` when that is there.

    plain: names of parameters that AdamW takes although they are matrices. progress: share of the schedule, 0 .. 1, as
    all ranks see it.
    """

    def __init__(
        self,
        settings: Settings,
        module: nn.Module,
        checkpoint: str,
        ranks: Ranks,
        plain: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.settings, self.ranks, self.device = settings, ranks, ranks.device
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        self.path = settings.out / checkpoint
        saved = load_checkpoint(self.path, self.device) or {}
        self.module = module
        if saved:
            module.load_state_dict(saved["module"])
        self.ema = Ema(module, settings.ema)
        if saved:
            self.ema.state, self.ema.updates = saved["ema"], saved["step"]
        self.step = self.first_step = int(saved.get("step", 0))
        self.progress = 0.0
        self.optimisers = make_optimisers(module, lr=settings.lr, muon_lr=settings.muon_lr, plain=plain)
        for optimiser, state in zip(self.optimisers, saved.get("optimisers", []), strict=False):
            optimiser.load_state_dict(state)
        self._seeds_of_earlier_plans = int(saved.get("used_seeds", 0))
        self._planner: PathPlanner | None = None
        torch.manual_seed(settings.seed + 1 + 1000 * self.first_step + ranks.index)
        self.clock = WallClock(settings.minutes, settings.total_minutes, float(saved.get("seconds", 0.0)))

    def goes_on(self) -> bool:
        """Whether to take another step. Rank 0's clock decides for all: a rank that stopped alone would leave the
        others waiting.
        """
        limit = self.settings.max_steps
        over = self.clock.expired or (limit is not None and self.step - self.first_step >= limit)
        told = self.ranks.agree(2.0 if over else self.clock.progress)
        self.progress = min(told, 1.0)
        return told <= 1.0

    def descend(self, loss: Tensor) -> Tensor:
        """One step of the optimisers and of the average along the gradient of `loss`; returns the gradient's norm."""
        settings = self.settings
        loss.backward()
        self.ranks.average_gradients(self.module)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip)
        set_rate(self.optimisers, rate_factor(self.progress, self.step - self.first_step, settings.warmup))
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.module)
        self.step += 1
        return norm

    def autocast(self) -> torch.autocast:
        """bf16 on a GPU, nothing on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def plan(self, *, batch: int, frames: int, fps: float, workers: int) -> PathPlanner:
        """A planner over rooms that this run has not seen; the one before is closed."""
        self.close()
        first_seed = self.settings.first_seed + SEEDS_A_RANK * self.ranks.index + self.used_seeds
        self._planner = PathPlanner(batch=batch, frames=frames, fps=fps, first_seed=first_seed, workers=workers)
        return self._planner

    @property
    def used_seeds(self) -> int:
        """Rooms drawn so far on this rank, over all runs."""
        first, behind = self._planner.used if self._planner else (0, 0)
        return self._seeds_of_earlier_plans + behind - first

    def close(self) -> None:
        """Ends the planning processes."""
        if self._planner is not None:
            self._planner.close()
            self._seeds_of_earlier_plans, self._planner = self.used_seeds, None

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        save_checkpoint(
            self.path,
            module=self.module.state_dict(),
            ema=self.ema.state,
            optimisers=[optimiser.state_dict() for optimiser in self.optimisers],
            step=self.step,
            used_seeds=self.used_seeds,
            seconds=self.clock.seconds,
        )

    def provenance(self, validation_seeds: tuple[int, int], metrics: dict[str, Any]) -> dict[str, Any]:
        """Where the averaged weights come from, as JSON; seeds from the first to the last one, both included."""
        settings: Any = self.settings
        told = {name: str(x) if isinstance(x, Path) else x for name, x in dataclasses.asdict(settings).items()}
        last_seed = settings.first_seed + SEEDS_A_RANK * (self.ranks.count - 1) + self.used_seeds - 1
        return {
            "steps": self.step,
            "batch": settings.batch * self.ranks.count,
            "devices": self.ranks.count,
            "minutes": round(self.clock.seconds / 60, 2),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "commit": commit(),
            "training_seeds": [settings.first_seed, last_seed],
            "validation_seeds": list(validation_seeds),
            "settings": told | {"out": settings.out.name},
            "metrics": metrics,
        }
