"""Stage `ablation`: the same small denoiser of Rooms trained in one of the forms of `model/forms.py`, and judged.

What a form is worth at equal compute is told by runs of equal `operations`; what it took otherwise by its line: steps,
milliseconds a step, minutes, operations a clip.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sanawm_env.benchmarks.machine import append_line, machine, peak_memory, read_lines, reset_peak, synchronise
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.form_scores import MEASURES, Judging, judge
from sanawm_env.evaluation.world_figures import mean_of
from sanawm_env.model.chunks import clip_chunks
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.forms import reform, reshaped, split
from sanawm_env.model.initialise import initialise
from sanawm_env.placement import find_dtype
from sanawm_env.training.denoiser import DenoiserStage, DenoiserTraining
from sanawm_env.training.latents import ClipBank, Drawn
from sanawm_env.training.loop import WallClock
from sanawm_env.training.objective import mixture_loss, streamed_loss
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.run import Run
from sanawm_env.world import WorldModel

LOOKED_AT_EVERY = 10  # steps between two looks at the loss, each of which waits for the device
OF_RUN = ("form", "width", "depth", "seed", "mixture_share", "batch", "latents")


@dataclass(frozen=True, kw_only=True)
class AblationTraining(DenoiserTraining):
    """Settings of an ablation.

    form: of `model/forms.py`, several joined by "+". width, depth: of the denoiser. minutes: the budget, over all runs;
    steps, operations (multiplications and additions of all clips, outside the scan over frames): others, the schedule
    ends with the first that is spent. mixture_share: 1 trains by the one-pass mixture alone. lines: file to which the
    result is appended as a line of JSON. judging: on what.
    """

    form: str = "gdn"
    width: int = 192
    depth: int = 6
    batch: int = 8
    steps: int | None = None
    operations: float | None = None
    lines: Path = Path("outputs/ablations/training.jsonl")
    judging: Judging = field(default_factory=Judging)
    total_minutes: float | None = None
    bank: int = 512
    fresh_every: int = 16
    workers: int = 1
    compiled: bool = False
    validate_minutes: float = 1e9

    def __post_init__(self) -> None:
        split(self.form)
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps is {self.steps}, allowed is a whole number >= 1, or null.")
        if self.operations is not None and self.operations <= 0:
            raise ConfigError(f"operations is {self.operations}, allowed is a number above 0, or null.")


class Budget(WallClock):
    """Progress by minutes or by the steps of a run, whichever is further."""

    def __init__(self, run: Run, settings: AblationTraining) -> None:
        super().__init__(settings.minutes, settings.total_minutes, run.clock.spent, run.clock.compiled)
        self.run, self.settings, self.steps = run, settings, settings.steps

    def limit(self, operations: int) -> None:
        """Steps that the budget of operations allows, at so many a clip."""
        if self.settings.operations is not None:
            allowed = max(1, round(self.settings.operations / (operations * self.settings.batch)))
            self.steps = min(allowed, self.settings.steps or allowed)

    @property
    def progress(self) -> float:
        return max(super().progress, 0.0 if self.steps is None else min(1.0, self.run.step / self.steps))

    @property
    def expired(self) -> bool:
        return super().expired or (self.steps is not None and self.run.step >= self.steps)


class Diverged(Exception):
    """The loss has been no number since some step."""


class AblationStage(DenoiserStage):
    """A denoiser in a form, from nothing. It leaves a checkpoint and a line, no bundle: what reads one would not know
    of the form.
    """

    settings: AblationTraining

    def __init__(self, settings: AblationTraining, base: WorldModel, ranks: Ranks) -> None:
        """base: whose autoencoder, sizes and clock the world has."""
        super().__init__(settings, formed(settings, base), ranks)
        self.run.clock = self.budget = Budget(self.run, settings)
        self.operations, self._timed = 0, [(0.0, 0)]
        self._broken = torch.tensor(torch.inf, device=self.device)  # first step whose loss is no number

    def step(self, bank: ClipBank, clips: Drawn, weight: Tensor) -> tuple[Tensor, Tensor]:
        first = not self.operations
        if first:
            self.operations = self._count(bank, weight)
            self.budget.limit(self.operations)
            reset_peak(self.device)
        loss, norm = super().step(bank, clips, weight)
        if first:  # what the first clips took is no budget
            synchronise(self.device)
            self._timed = [(time.monotonic(), self.run.step)]
            self.budget.begin()
        sound = torch.isfinite(loss) & torch.isfinite(norm)
        self._broken = torch.where(sound, self._broken, self._broken.clamp(max=self.run.step))
        if self.run.step % LOOKED_AT_EVERY == 0:
            if bool(self._broken.isfinite()):
                raise Diverged
            if clips.latents.shape[1] == self.settings.latents:  # long ones are another measure
                self._timed = [self._timed[0], (time.monotonic(), self.run.step)]
        return loss, norm

    def _count(self, bank: ClipBank, weight: Tensor) -> int:
        """Multiplications and additions of the matrices in a step's forward and backward, of one clip."""
        clips, settings = bank.draw(1), self.settings
        clean, given, chunks = clips.latents, self.given(clips), clip_chunks(settings.latents, self.world.chunk_latents)
        # Of the copy that is never compiled, in whose place the averaged weights come later.
        denoiser, told = self.plain.requires_grad_(True), (given, chunks, settings.levels, weight)
        with FlopCounterMode(display=False) as counter, self.run.autocast():
            if settings.mixture_share < 1:
                loss, _ = streamed_loss(denoiser, clean, clips.history, *told)
            else:
                loss = mixture_loss(denoiser, clean, clips.history, *told)
            loss.backward()
        denoiser.zero_grad(set_to_none=True)
        return int(counter.get_total_flops())

    def export(self, metrics: dict[str, float]) -> None:
        pass

    def validate(self, frames: int = 64) -> dict[str, float]:
        return {}  # `judge` does it, once

    def measured(self) -> dict[str, Any]:
        """Trains, judges, appends the line, and returns it."""
        try:
            self.train()
        except Diverged:
            self.run.close()
        if not self.ranks.is_first:
            return {}
        line = self._line()
        append_line(self.settings.lines, line)
        return line

    def _line(self) -> dict[str, Any]:
        settings, run = self.settings, self.run
        diverged = int(self._broken) if bool(self._broken.isfinite()) else None
        (began, first), (ended, last) = self._timed[0], self._timed[-1]
        return {
            **told_apart(settings),
            "diverged": diverged,
            "steps": run.step,
            "minutes": round(run.clock.seconds / 60, 3),
            "ms_a_step": round(1000 * (ended - began) / (last - first), 2) if last > first else None,
            "operations_a_clip": self.operations,
            "parameters": sum(x.numel() for x in self.plain.parameters()),
            "peak_bytes": peak_memory(self.device),
            "judging": asdict(settings.judging),
            "rooms": run.used_seeds,
            **machine(self.device),
            "clips": [] if diverged is not None else judge(self._deployed(), settings.judging),
        }

    def _deployed(self) -> WorldModel:
        """The averaged weights as a bundle of them would run."""
        dtype = find_dtype("auto", self.device)
        autoencoder = copy.deepcopy(self.autoencoder).to(dtype)
        return WorldModel(self.world, copy.deepcopy(self.plain).to(dtype), autoencoder)


def formed(settings: AblationTraining, base: WorldModel) -> WorldModel:
    """The world at the beginning: its weights are drawn from the settings' seed. ConfigError."""
    config = base.config
    sizes = replace(config.denoiser, hidden_size=settings.width, depth=settings.depth)
    world = replace(config, name=f"{config.name}-{settings.form}", denoiser=reshaped(sizes, settings.form))
    torch.manual_seed(settings.seed)
    denoiser = initialise(Denoiser(world.denoiser))
    return WorldModel(world, reform(denoiser, settings.form, config.grid[0] * config.grid[1]), base.autoencoder)


def ablation(settings: AblationTraining, base: WorldModel, ranks: Ranks) -> dict[str, Any]:
    """The line of a run, its clips left out; trained unless the file has it already."""
    mine = told_apart(settings)
    known = [line for line in read_lines(settings.lines) if all(line.get(name) == x for name, x in mine.items())]
    line = known[-1] if known else AblationStage(settings, base, ranks).measured()
    if not line:
        return {}
    means = {measure.key: mean_of(line["clips"], measure) for measure in MEASURES}
    told = {name: value for name, value in line.items() if name != "clips"}
    return told | {name: round(mean.value, 3) for name, mean in means.items() if mean.count}


def told_apart(settings: AblationTraining) -> dict[str, Any]:
    """What tells lines of different runs from one another."""
    limits = {"minutes": settings.minutes, "steps": settings.steps, "operations": settings.operations}
    budget = {name: limit for name, limit in limits.items() if limit is not None}
    return {name: getattr(settings, name) for name in OF_RUN} | {"budget": budget}
