"""Stage `rooms-distill`: a student of few steps learns from its own rollouts what its teachers find likely (spec
training.md 4.2).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sanawm_env.bundle import close
from sanawm_env.errors import ConfigError
from sanawm_env.training.clip_stage import ClipStage, ClipTraining, compile_blocks, kept_from_muon, turned
from sanawm_env.training.latents import Drawn
from sanawm_env.training.learner import Learner
from sanawm_env.training.objective import clip_loss, velocity
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.self_forcing import (
    ExitSampler,
    ScoreLevels,
    matching_direction,
    matching_loss,
    score_chunks,
    self_forced,
)
from sanawm_env.world import WorldModel

BETAS = (0.0, 0.999)


@dataclass(frozen=True, kw_only=True)
class DistillTraining(ClipTraining):
    """Settings of the stage. lr, muon_lr: of the student. critic_lr: of the fake score. every: steps of the fake score
    for one of the student. timesteps: the student's levels, those of the bundle it starts from if None. renoised: of
    `ExitSampler`. compiled: the scores' blocks; the student runs in too many shapes. score: noise levels at which the
    scores are compared. real: the bundle of the frozen score, a bidirectional one or a teacher.
    """

    real: str
    minutes: float = 6.0
    batch: int = 16
    bank: int = 1024
    lr: float = 5e-5
    muon_lr: float | None = None
    critic_lr: float = 2e-5
    warmup: int = 20
    clip: float = 10.0
    ema: float = 0.98
    every: int = 5
    timesteps: tuple[int, ...] | None = None
    renoised: bool = True
    score: ScoreLevels = ScoreLevels()

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every is {self.every}, allowed is >= 1 step of the fake score for one of the student.")
        if self.scaling.accumulate > 1:
            raise ConfigError(
                "distillation takes a step with every batch; set scaling.accumulate=1 and a larger batch."
            )


class DistillStage(ClipStage):
    """The stage. A step is one of the student, and the fake score's that belong to it."""

    settings: DistillTraining
    compiles = False

    def __init__(
        self,
        settings: DistillTraining,
        student: WorldModel,
        real: WorldModel,
        ranks: Ranks,
        earlier: dict[str, Any] | None = None,
        text: Mapping[str, Tensor] | None = None,
    ) -> None:
        """student: where the student starts. real: the frozen score, whose weights the fake one starts with. text: of
        `ClipStage`. ConfigError where their latents differ.
        """
        _check_scores(student, real)
        fake = copy.deepcopy(real.denoiser).to(ranks.device, torch.float32).requires_grad_(True)
        self.critic = Learner(
            fake,
            ranks,
            lr=settings.critic_lr,
            muon_lr=None,
            clip=settings.clip,
            plain=kept_from_muon,
            betas=BETAS,
            scaling=settings.scaling,
        )
        world = turned(student, "distilled", timesteps=settings.timesteps or student.config.timesteps)
        super().__init__(
            settings,
            world,
            ranks,
            earlier,
            checkpoint="distill.pt",
            betas=BETAS,
            beside={"critic": self.critic},
            text=text,
        )
        self.judge, self.fake = real.config, fake
        self.real = copy.deepcopy(real.denoiser).to(self.device).requires_grad_(False)
        if settings.compiled:
            for net in (self.fake, self.real):
                compile_blocks(net)
        self.student = WorldModel(self.world, self.denoiser, self.autoencoder)
        self.denoiser.requires_grad_(True)
        self._seen = {"student": torch.zeros(()), "nudge": torch.zeros(())}

    def figures(self) -> dict[str, Tensor]:
        return self._seen

    def step(self, bank: Any, clips: Drawn, weight: Tensor) -> tuple[Tensor, Tensor]:
        """`every` steps of the fake score, each on rollouts of the student along other clips, and one of the student.
        Returns the fake score's last loss and the norm of the student's gradient.
        """
        for turn in range(self.settings.every):
            drawn = clips if turn == 0 else bank.draw(clips.latents.shape[0])
            critic = self._follow(drawn, turn)
        norm = self._teach(bank.draw(clips.latents.shape[0]))
        return critic, norm

    def _follow(self, clips: Drawn, turn: int) -> Tensor:
        """One step of the fake score towards what the student makes now."""
        with self.run.autocast():
            made = self._rollout(clips, turn, gradients=False).detach()
            level = self.settings.score.draw(made.shape[0], made.shape[1], self.device)
            chunks, ones = score_chunks(self.judge, made.shape[1]), made.new_ones(made.shape[2])
            loss = clip_loss(self.fake, made, level, self.given(clips), chunks, ones, velocity)
        self.critic.descend(loss, self.run.rate)
        return loss.detach()

    def _teach(self, clips: Drawn) -> Tensor:
        """One step of the student."""
        with self.run.autocast():
            made = self._rollout(clips, self.settings.every, gradients=True)
            level = self.settings.score.draw(made.shape[0], made.shape[1], self.device)
            chunks = score_chunks(self.judge, made.shape[1])
            scores = ((net, chunks) for net in (self.fake, self.real))
            direction = matching_direction(made.detach(), level, self.given(clips), *scores)
        loss = matching_loss(made, direction)
        self._seen = {"student": loss.detach(), "nudge": direction[:, 1:].abs().mean()}
        return self.run.descend(loss)

    def _rollout(self, clips: Drawn, turn: int, *, gradients: bool) -> Tensor:
        # One exit for all ranks and all chunks, so that none waits for another's longer rollout.
        last = random.Random(f"{self.run.step} {turn}").randrange(len(self.world.timesteps))
        sampler = ExitSampler(last, gradients=gradients, renoised=self.settings.renoised)
        return self_forced(self.student, clips, sampler)


def _check_scores(student: WorldModel, real: WorldModel) -> None:
    mine, theirs = student.autoencoder.state_dict(), real.autoencoder.state_dict()
    if mine.keys() != theirs.keys() or not all(close(x, theirs[name]) for name, x in mine.items()):
        raise ConfigError(
            "the student's and the real score's autoencoders differ, so that one's latents mean nothing to the other; "
            "take bundles of one autoencoder."
        )
    if student.config.chunk_latents != real.config.chunk_latents and real.config.variant != "bidirectional":
        raise ConfigError(
            f"the student has chunks of {student.config.chunk_latents} latents, the real score of "
            f"{real.config.chunk_latents}; take a score of equal chunks, or a bidirectional one."
        )
