"""What every stage does around its loss: resume, go on until the clock says stop, average the weights, save, and say
where the result comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sanawm_env.benchmarks.machine import commit
from sanawm_env.errors import ConfigError
from sanawm_env.training.learner import Learner
from sanawm_env.training.loop import Ema, WallClock, load_checkpoint, rate_factor, save_checkpoint
from sanawm_env.training.paths import PathPlanner
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.scaling import Scaling, spread_like, whole

SEEDS_A_RANK = 100_000_000


class Settings(Protocol):
    """Settings that every stage has.

    out: folder of the checkpoint and the result. minutes: wall clock of this run, compiling apart; total_minutes: of
    the whole schedule, over all runs (None: this run is all). batch: clips a step, on each GPU. lr, muon_lr, warmup,
    clip, ema: of the optimisers (muon_lr None: AdamW alone) and the average. first_seed: of the training rooms.
    max_steps: of this run.
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

    plain: names of parameters that AdamW takes although they are matrices. scaling: how a large module is trained.
    betas: of AdamW. beside: others that learn with it and lie in the same checkpoint, without an average. progress:
    share of the schedule, 0 .. 1, as all ranks see it.
    """

    def __init__(
        self,
        settings: Settings,
        module: nn.Module,
        checkpoint: str,
        ranks: Ranks,
        plain: Callable[[str], bool] = lambda _: False,
        *,
        scaling: Scaling = Scaling(),  # noqa: B008 - frozen
        betas: tuple[float, float] = (0.9, 0.98),
        beside: Mapping[str, Learner] | None = None,
    ) -> None:
        self.settings, self.ranks, self.device = settings, ranks, ranks.device
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        self.path = settings.out / checkpoint
        saved = load_checkpoint(self.path, self.device) or {}
        self.module, self.beside = module, dict(beside or {})
        self.learner = Learner(
            module,
            ranks,
            lr=settings.lr,
            muon_lr=settings.muon_lr,
            clip=settings.clip,
            plain=plain,
            betas=betas,
            scaling=scaling,
        )
        if saved:
            self._check_beside(saved.get("beside", {}))
            self.learner.load(saved)
        for name, learner in self.beside.items() if saved else ():
            learner.load(saved["beside"][name])
        self.ema = Ema(module, settings.ema)
        if saved:
            kept = {name: spread_like(x, self.ema.state[name]) for name, x in saved["ema"].items()}
            self.ema.state, self.ema.updates = kept, saved["step"]
        self.step = self.first_step = int(saved.get("step", 0))
        self.progress = 0.0
        self._seeds_of_earlier_plans = int(saved.get("used_seeds", 0))
        self._planner: PathPlanner | None = None
        torch.manual_seed(settings.seed + 1 + 1000 * self.first_step + ranks.index)
        spent, compiled = (float(saved.get(name, 0.0)) for name in ("seconds", "compiling"))
        self.clock = WallClock(settings.minutes, settings.total_minutes, spent, compiled)

    def _check_beside(self, saved: Mapping[str, Any]) -> None:
        theirs, ours = (" and ".join(sorted(names)) or "nothing" for names in (saved, self.beside))
        if theirs != ours:
            raise ConfigError(
                f"{self.path} was trained with {theirs}, asked for is {ours}; go on with the former, or choose another "
                "out=."
            )

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
        """One step of the optimisers and of the average along the gradient of `loss`, with several batches a step once
        the last of them is here; returns the norm of the last step's gradient.
        """
        if self.learner.descend(loss, self.rate):
            self.ema.update(self.module)
            self.step += 1
        return self.learner.norm

    @property
    def rate(self) -> float:
        """Factor of the learning rates at this step."""
        return rate_factor(self.progress, self.step - self.first_step, self.settings.warmup)

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, whole; every rank must ask for them."""
        state: dict[str, Tensor] = whole(self.ema.state)
        return state

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
        """Writes the checkpoint, whole or not at all, on rank 0; every rank must call it."""
        parts = self.learner.state() | {"ema": self.averaged()}
        parts["beside"] = {name: learner.state() for name, learner in self.beside.items()}
        if self.ranks.is_first:
            told = {"step": self.step, "used_seeds": self.used_seeds}
            times = {"seconds": self.clock.seconds, "compiling": self.clock.compiling}
            save_checkpoint(self.path, **parts, **told, **times)

    def provenance(self, validation_seeds: tuple[int, int], metrics: dict[str, Any]) -> dict[str, Any]:
        """Where the averaged weights come from, as JSON; seeds from the first to the last one, both included."""
        settings: Any = self.settings
        told = {name: str(x) if isinstance(x, Path) else x for name, x in dataclasses.asdict(settings).items()}
        last_seed = settings.first_seed + SEEDS_A_RANK * (self.ranks.count - 1) + self.used_seeds - 1
        return {
            "stage": type(settings).__name__.removesuffix("Training").lower(),
            "steps": self.step,
            "batch": settings.batch * self.ranks.count,
            "devices": self.ranks.count,
            "minutes": round(self.clock.seconds / 60, 2),
            "compiling_minutes": round(self.clock.compiling / 60, 2),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "commit": commit(),
            "training_seeds": [settings.first_seed, last_seed],
            "validation_seeds": list(validation_seeds),
            "settings": told | {"out": settings.out.name},
            "metrics": metrics,
        }
