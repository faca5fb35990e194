"""Stage `rooms-distill`: a student of few steps learns from its own rollouts what its teachers find likely (spec
training.md 4.2).
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sanawm_env.bundle import close
from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import clip_chunks
from sanawm_env.training.clip_stage import ClipStage, ClipTraining, compile_blocks, kept_from_muon, turned
from sanawm_env.training.latents import Clips
from sanawm_env.training.learner import Learner
from sanawm_env.training.objective import MEASURES, clip_loss, streamed, velocity
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.self_forcing import (
    ExitSampler,
    ScoreLevels,
    SelfForced,
    matching_direction,
    matching_loss,
    score_chunks,
    self_forced,
)
from sanawm_env.world import WorldModel

BETAS = (0.0, 0.999)


@dataclass(frozen=True, kw_only=True)
class DistillTraining(ClipTraining):
    """Settings of the stage. lr, muon_lr: of the student. critic_lr: of the fake score. rolled: clips rolled out at
    once, for as many steps as that makes batches. every: steps of the fake score for one of the student, on what it
    saw in its last `kept` steps. truth: weight of the student's error against the clip, by `measure`: what the first
    picture shows is not up to a score. timesteps: the student's levels, those of the bundle it starts from if None.
    renoised: of `ExitSampler`. compiled: blocks of the scores and of the student's pass; rollouts come in too many
    shapes. score: noise levels at which the scores are compared. real: the bundle of the frozen score, a bidirectional
    one or a teacher.
    """

    real: str
    minutes: float = 6.0
    batch: int = 16
    bank: int = 512
    lr: float = 1e-4
    muon_lr: float | None = None
    critic_lr: float = 1e-4
    warmup: int = 20
    clip: float = 10.0
    ema: float = 0.98
    rolled: int = 32
    every: int = 3
    kept: int = 4
    truth: float = 1.0
    measure: Literal["rooted", "bounded"] = "bounded"
    timesteps: tuple[int, ...] | None = None
    renoised: bool = True
    score: ScoreLevels = ScoreLevels()

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every is {self.every}, allowed is >= 1 step of the fake score for one of the student.")
        if min(self.kept, self.rolled) < 1 or self.truth < 0:
            raise ConfigError(
                f"kept is {self.kept}, rolled {self.rolled}, truth {self.truth}, allowed are >= 1 step, >= 1 clip and "
                "a weight >= 0."
            )
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
        self.student = WorldModel(self.world, self.denoiser, self.autoencoder)
        self.denoiser.requires_grad_(True)
        # The student's weights in blocks of their own: those compiled for whole clips are not those of its rollouts.
        self.whole = self.denoiser
        if settings.compiled and not settings.scaling.sharded:
            self.whole = copy.deepcopy(self.denoiser, {id(p): p for p in self.denoiser.parameters()})
            for net in (self.fake, self.real, self.whole):
                compile_blocks(net)
        self._rollouts: list[SelfForced] = []  # of the steps to come
        self._seen: deque[Clips] = deque(maxlen=settings.kept)
        self._figures = {name: torch.zeros(()) for name in ("student", "nudge", "truth")}

    def figures(self) -> dict[str, Tensor]:
        return self._figures

    def drawn(self, bank: Any, batch: int) -> SelfForced:
        """The next clips that the student was rolled out along."""
        if not self._rollouts:
            with self.run.autocast(), torch.no_grad():
                # One exit for all ranks and all chunks, so that none waits for another's longer rollout.
                last = random.Random(self.run.step).randrange(len(self.world.timesteps))
                sampler = ExitSampler(last, renoised=self.settings.renoised)
                self._rollouts = self_forced(self.student, bank.draw(self.settings.rolled), sampler).split(batch)
        return self._rollouts.pop()

    def step(self, bank: Any, clips: SelfForced, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A step of the student, and `every` steps of the fake score on what it saw. Returns the fake score's last loss
        and the norm of the student's gradient.
        """
        norm = self._teach(clips, weight)
        for turn in range(self.settings.every):
            drawn = random.Random(f"{self.run.step} {turn}").randrange(len(self._seen))
            critic = self._follow(self._seen[drawn])
        return critic, norm

    def _follow(self, made: Clips) -> Tensor:
        """One step of the fake score towards what the student saw."""
        x = made.latents
        with self.run.autocast():
            level = self.settings.score.draw(x.shape[0], x.shape[1], self.device)
            chunks, ones = score_chunks(self.judge, x.shape[1]), x.new_ones(x.shape[2])
            loss = clip_loss(self.fake, x, level, self.given(made), chunks, ones, velocity)
        self.critic.descend(loss, self.run.rate)
        return loss.detach()

    def _teach(self, clips: SelfForced, weight: Tensor) -> Tensor:
        """One step of the student, to where the real score is likelier than the fake one and to the clips; what it saw
        is kept for the fake score.
        """
        given, chunks = self.given(clips), clip_chunks(clips.made.shape[1], self.world.chunk_latents)
        with self.run.autocast():
            seen = streamed(self.whole, clips.made, clips.noisy, clips.level, given, chunks)
            made = torch.cat([clips.made[:, :1], seen[:, 1:].float()], dim=1)
            level = self.settings.score.draw(made.shape[0], made.shape[1], self.device)
            judged = score_chunks(self.judge, made.shape[1])
            direction = matching_direction(made.detach(), level, given, (self.fake, judged), (self.real, judged))
            loss = matching_loss(made, direction)
            error = MEASURES[self.settings.measure](made, clips.latents, clips.level, weight)[:, 1:].mean()
        self._figures = {"student": loss.detach(), "nudge": direction[:, 1:].abs().mean(), "truth": error.detach()}
        self._seen.append(Clips(made.detach(), clips.poses, text=clips.text))
        return self.run.descend(loss + self.settings.truth * error)


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
