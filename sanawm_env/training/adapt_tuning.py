"""What the stage `adapt` trains, and on which objective: the denoiser itself or adapters beside its frozen weights."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.lora import LowRank, adapted_layers
from sanawm_env.training.adapt_latents import FilmedClips
from sanawm_env.training.adapt_settings import AdaptTraining
from sanawm_env.training.compiling import compile_blocks
from sanawm_env.training.latents import clip_conditioning
from sanawm_env.training.objective import AmongLevels, Levels, clip_loss, mixture_loss, rooted, streamed_loss, velocity
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.run import Run
from sanawm_env.training.scaling import Scaling
from sanawm_env.training.self_forcing import score_chunks
from sanawm_env.world import WorldModel

CHECKPOINT = "adapt.pt"


class Schedule(Run):
    """A run whose end may be counted in steps, and that goes on after a stop as if there had been none."""

    def __init__(self, settings: AdaptTraining, module: nn.Module, ranks: Ranks, scaling: Scaling) -> None:
        super().__init__(settings, module, CHECKPOINT, ranks, scaling=scaling)
        self.began, self.steps = self.step, settings.steps
        self.first_step = 0  # a run that goes on does not warm up again

    def goes_on(self) -> bool:
        limit = self.settings.max_steps
        over = self.clock.expired or (limit is not None and self.step - self.began >= limit)
        over = over or (self.steps is not None and self.step >= self.steps)
        done = self.clock.progress if self.steps is None else self.step / self.steps
        told = self.ranks.agree(2.0 if over else done)
        self.progress = min(told, 1.0)
        return told <= 1.0


class Tuning:
    """A denoiser that learns from clips of its world, whole or by adapters, resumed from `out`/adapt.pt."""

    def __init__(
        self, settings: AdaptTraining, model: WorldModel, ranks: Ranks, weight: Tensor, *, shared: bool
    ) -> None:
        """model: on the device of `ranks`. weight: of the latents' channels [C]. shared: whether the model's own
        denoiser is left alone and a copy of it learns; else it is the frozen one beside the adapters.
        """
        self.settings, self.config, self.ranks, self.weight = settings, model.config, ranks, weight
        whole = settings.method == "full"
        own = copy.deepcopy(model.denoiser) if shared or whole else model.denoiser
        self.denoiser: Denoiser = own.requires_grad_(whole)
        torch.manual_seed(settings.seed)
        self.trained: nn.Module = self.denoiser
        scaling = settings.scaling
        if not whole:
            names = adapted_layers(self.denoiser, settings.layers)
            self.trained = LowRank(self.denoiser, names, settings.rank, settings.alpha)
            scaling.apply(self.denoiser, ranks, None)
            scaling = Scaling(accumulate=scaling.accumulate)
        self.run = Schedule(settings, self.trained, ranks, scaling)
        if settings.compiled:
            compile_blocks(self.denoiser)

    def step(self, draw: Callable[[int], FilmedClips]) -> tuple[Tensor, Tensor]:
        """One step of the optimiser on as many batches as it gathers, `draw(number)` each; returns the loss and the
        norm of the gradients.
        """
        parts, losses = self.settings.scaling.accumulate, []
        step = self.run.step
        for part in range(parts):
            loss = self.loss(draw(part), step)
            losses.append(loss.detach())
            norm = self.run.descend(loss)
        return torch.stack(losses).mean(), norm

    def loss(self, clips: FilmedClips, step: int) -> Tensor:
        """Of clips on the device, on the objective that the model's variant was trained on (spec training.md 2, 3)."""
        settings, config, clean = self.settings, self.config, clips.latents
        given = clip_conditioning(config, clips.poses, clips.intrinsics, clips.text)
        chunks, weight = score_chunks(config, clean.shape[1]), self.weight
        if config.variant == "bidirectional":
            level = settings.levels.draw((len(clean), 1), clean.device).repeat(1, clean.shape[1])
            level[:, 0] = 0
            with self.autocast():
                return clip_loss(self.denoiser, clean, level, given, chunks, weight, velocity)
        # The same choices on every rank, so that none waits for another's longer step.
        dice = random.Random(step)
        teacher = config.variant == "teacher"
        if teacher or dice.random() < settings.mixture_share:
            measure = velocity if teacher else rooted  # as each is trained from the beginning
            with self.autocast():
                return mixture_loss(
                    self.denoiser, clean, clean, given, chunks, settings.levels, weight, measure=measure
                )
        history = clean
        # A context of its own: weights that autocast has cast here have no gradients.
        with torch.no_grad(), self.autocast():
            for _ in range(dice.randint(0, settings.imagined)):
                full = Levels(full_share=1.0)
                _, history = streamed_loss(self.denoiser, clean, history, given, chunks, full, weight)
        with self.autocast():
            return streamed_loss(
                self.denoiser, clean, history, given, chunks, self._streamed(), weight, settings.context_noise
            )[0]

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 for weights in fp32 on a GPU; others compute in what they are stored in, as they do when deployed."""
        wide = self.denoiser.dtype == torch.float32
        return self.run.autocast() if wide else contextlib.nullcontext()

    def _streamed(self) -> Levels | AmongLevels:
        # A student of few steps that predicts velocities is asked at its own levels alone.
        few = self.config.denoiser.prediction == "velocity"
        return AmongLevels(self.config.timesteps) if few else self.settings.levels
