"""Stages `rooms-denoiser` and `rooms-teacher`, the chunk-causal models: one that sees a chunk at once from what came
before it, and one that arrives there in many steps; and `rooms-bidirectional`, which denoises a clip as a whole.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from sanawm_env.model.chunks import ChunkGrid, clip_chunks
from sanawm_env.model.config import Schedule
from sanawm_env.training.clip_stage import ClipStage, ClipTraining
from sanawm_env.training.latents import ClipBank, Drawn
from sanawm_env.training.objective import MEASURES, Levels, clip_loss, mixture_loss, streamed_loss
from sanawm_env.training.rollouts import rolled
from sanawm_env.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining(ClipTraining):
    """Settings of the chunk-causal stages.

    mixture_share: share of steps on the timestep mixture. context_noise: largest share of noise mixed into the history.
    imagined_from: share of the schedule after which the history of a clip is the model's own, the clip itself until
    then: what it saw of the clip from pure noise when it was drawn before (with `fresh_every` a clip is drawn batch x
    fresh_every / source_batch times, and so deep a rollout it becomes), or, where `rolled` is not 0, what it makes of
    so many clips of the bank at each refresh, by `world.step` at `rolled_steps` levels. measure: of errors, "rooted" to
    see the likeliest at once, "velocity" to arrive there in many steps.
    """

    total_minutes: float | None = 8.0
    long_share: float = 0.2
    mixture_share: float = 0.08
    context_noise: float = 0.15
    imagined_from: float = 0.4
    rolled: int = 0
    rolled_steps: int = 4
    levels: Levels = Levels()
    measure: Literal["rooted", "velocity", "plain"] = "rooted"


@dataclass(frozen=True, kw_only=True)
class TeacherTraining(DenoiserTraining):
    """Settings of the teacher. schedule: how it samples afterwards."""

    total_minutes: float | None = None
    long_share: float = 0.0
    lr: float = 3e-4
    muon_lr: float | None = 0.006
    mixture_share: float = 0.4
    imagined_from: float = 0.0
    rolled: int = 32
    fresh_every: int = 8
    levels: Levels = Levels(full_share=0.1, shift=2.0, law="logit_normal", shares=(0.25, 0.2, 0.25, 0.3))
    measure: Literal["rooted", "velocity", "plain"] = "velocity"
    schedule: Schedule = Schedule(steps=16, shift=2.0, guidance=1.0)


@dataclass(frozen=True, kw_only=True)
class BidirectionalTraining(ClipTraining):
    """Settings of the bidirectional stage. levels: law of the one noise level of a clip. schedule: how it samples
    afterwards.
    """

    lr: float = 3e-4
    muon_lr: float | None = 0.006
    levels: Levels = Levels(full_share=0.05, shift=2.0, law="logit_normal")
    measure: Literal["rooted", "velocity", "plain"] = "velocity"
    schedule: Schedule = Schedule(steps=16, shift=2.0, guidance=1.0)


class DenoiserStage(ClipStage):
    """The chunk-causal stages."""

    settings: DenoiserTraining

    def refresh(self, bank: ClipBank) -> None:
        bank.refresh()
        if self.settings.rolled and self._imagines():
            clips = bank.draw(min(self.settings.rolled, bank.latents.shape[0]))
            bank.remember(clips.rows, self._rollout(clips))

    def _rollout(self, clips: Drawn) -> Tensor:
        # Of the averaged weights, which are those that will run.
        self.average()
        levels = replace(self.world.schedule, steps=self.settings.rolled_steps).timesteps
        model = WorldModel(replace(self.world, timesteps=levels), self.plain, self.autoencoder)
        with self.run.autocast():
            return rolled(model, clips)

    def _imagines(self) -> bool:
        return self.run.progress >= self.settings.imagined_from

    def step(self, bank: ClipBank, clips: Drawn, weight: Tensor) -> tuple[Tensor, Tensor]:
        chunks = clip_chunks(clips.latents.shape[1], self.world.chunk_latents)
        with self.run.autocast():
            loss, history = self._loss(clips, chunks, weight)
        if self._imagines() and not self.settings.rolled:
            bank.remember(clips.rows, history)
        return loss.detach(), self.run.descend(loss)

    def _loss(self, clips: Drawn, chunks: ChunkGrid, weight: Tensor) -> tuple[Tensor, Tensor]:
        settings, clean, history = self.settings, clips.latents, clips.history
        told = (self.given(clips), chunks, settings.levels, weight, settings.context_noise, MEASURES[settings.measure])
        # The same choice on every rank, so that none waits for another's longer step.
        if random.Random(self.run.step).random() < settings.mixture_share:
            return mixture_loss(self.denoiser, clean, history, *told), history
        return streamed_loss(self.denoiser, clean, history, *told)


class BidirectionalStage(ClipStage):
    """The bidirectional stage: every clip one chunk, at one noise level but for its first frame."""

    settings: BidirectionalTraining

    def step(self, bank: Any, clips: Drawn, weight: Tensor) -> tuple[Tensor, Tensor]:
        settings, clean = self.settings, clips.latents
        batch, latents = clean.shape[:2]
        level = settings.levels.draw((batch, 1), self.device).repeat(1, latents)
        level[:, 0] = 0
        chunks = ChunkGrid((latents,), opening=True)
        with self.run.autocast():
            measure = MEASURES[settings.measure]
            loss = clip_loss(self.denoiser, clean, level, self.given(clips), chunks, weight, measure)
        return loss.detach(), self.run.descend(loss)
