"""Stage `rooms-distill`: a student of few steps learns from its own rollouts what its teachers find likely (spec
training.md 4.2), and what nobody can tell from the truth.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sanawm_env.bundle_files import close
from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import clip_chunks
from sanawm_env.training.clip_stage import ClipStage, ClipTraining, turned
from sanawm_env.training.compiling import compile_blocks
from sanawm_env.training.judges import BETAS, Adversary, Judge, Scores
from sanawm_env.training.objective import MEASURES, streamed
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.self_forcing import ExitSampler, ScoreLevels, SelfForced, self_forced
from sanawm_env.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class DistillTraining(ClipTraining):
    """Settings of the stage. lr, muon_lr: of the student. rolled: clips rolled out at once, for as many steps as that
    makes batches. every: steps of the judges for one of the student, on what it saw in its last `kept` steps. truth:
    weight of the student's error against the clip, by `measure`: what the first picture shows is not up to a judge.
    timesteps: the student's levels, those of the bundle it starts from if None. renoised: of `ExitSampler`. compiled:
    blocks of the scores and of the student's pass; rollouts come in too many shapes.

    matching: weight of distribution matching by two scores; 0 does without. real: the bundle of the frozen one, a
    bidirectional model or a teacher. critic_lr: of the fake one. score: noise levels at which they are compared.
    adversary: weight of a discriminator that tells rollouts from the truth; 0 does without. adversary_lr: its own.
    """

    minutes: float = 6.0
    batch: int = 16
    bank: int = 512
    lr: float = 1e-4
    muon_lr: float | None = None
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
    matching: float = 1.0
    real: str | None = None
    critic_lr: float = 1e-4
    score: ScoreLevels = ScoreLevels()
    adversary: float = 0.0
    adversary_lr: float = 2e-4

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every is {self.every}, allowed is >= 1 step of the judges for one of the student.")
        if min(self.kept, self.rolled) < 1 or self.truth < 0:
            raise ConfigError(
                f"kept is {self.kept}, rolled {self.rolled}, truth {self.truth}, allowed are >= 1 step, >= 1 clip and "
                "a weight >= 0."
            )
        if min(self.matching, self.adversary) < 0 or not self.matching + self.adversary:
            raise ConfigError(
                f"matching is {self.matching}, adversary {self.adversary}; allowed are weights >= 0, not both 0: a "
                "student that nobody judges is what rooms-denoiser trains."
            )
        if (self.real is None) == (self.matching > 0):
            raise ConfigError(
                f"real is {self.real!r} and matching {self.matching}; give the bundle of the frozen score, "
                "real=FOLDER, or do without it, real=null matching=0."
            )
        if self.scaling.accumulate > 1:
            raise ConfigError(
                "distillation takes a step with every batch; set scaling.accumulate=1 and a larger batch."
            )


class DistillStage(ClipStage):
    """The stage. A step is one of the student, and the judges' that belong to it."""

    settings: DistillTraining
    compiles = False

    def __init__(
        self,
        settings: DistillTraining,
        student: WorldModel,
        real: WorldModel | None,
        ranks: Ranks,
        earlier: dict[str, Any] | None = None,
        text: Mapping[str, Tensor] | None = None,
    ) -> None:
        """student: where the student starts. real: the frozen score, whose weights the fake one starts with, None
        where nothing is matched. text: of `ClipStage`. ConfigError where their latents differ.
        """
        self.judges = self._judges(settings, student, real, ranks)
        world = turned(student, "distilled", timesteps=settings.timesteps or student.config.timesteps)
        super().__init__(
            settings,
            world,
            ranks,
            earlier,
            checkpoint="distill.pt",
            betas=BETAS,
            beside={name: judge.learner for name, judge in self.judges.items()},
            text=text,
        )
        self.student = WorldModel(self.world, self.denoiser, self.autoencoder)
        self.denoiser.requires_grad_(True)
        # The student's weights in blocks of their own: those compiled for whole clips are not those of its rollouts.
        self.whole = self.denoiser
        if settings.compiled and not settings.scaling.sharded:
            self.whole = copy.deepcopy(self.denoiser, {id(p): p for p in self.denoiser.parameters()})
            compile_blocks(self.whole)
        self._rollouts: list[SelfForced] = []  # of the steps to come
        self._seen: deque[SelfForced] = deque(maxlen=settings.kept)
        self._figures = {name: torch.zeros(()) for name in (*self.judges, "truth")}

    def _judges(
        self, settings: DistillTraining, student: WorldModel, real: WorldModel | None, ranks: Ranks
    ) -> dict[str, Judge]:
        judges: dict[str, Judge] = {}
        if real is not None:
            _check_scores(student, real)
            judges["scores"] = Scores(
                real,
                ranks,
                self.given,
                weight=settings.matching,
                levels=settings.score,
                lr=settings.critic_lr,
                clip=settings.clip,
                scaling=settings.scaling,
                compiled=settings.compiled and not settings.scaling.sharded,
            )
        if settings.adversary:
            torch.manual_seed(settings.seed)  # the same on every rank
            judges["adversary"] = Adversary(
                student.config.denoiser.in_channels,
                ranks,
                weight=settings.adversary,
                lr=settings.adversary_lr,
                clip=settings.clip,
            )
        return judges

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
        """A step of the student, and `every` steps of the judges on what it saw. Returns the judges' last error and
        the norm of the student's gradient.
        """
        norm = self._teach(clips, weight)
        for turn in range(self.settings.every):
            drawn = random.Random(f"{self.run.step} {turn}").randrange(len(self._seen))
            error = self._follow(self._seen[drawn])
        return error, norm

    def _follow(self, seen: SelfForced) -> Tensor:
        """One step of every judge towards knowing what the student saw."""
        total = torch.zeros((), device=self.device)
        for judge in self.judges.values():
            with self.run.autocast():
                error = judge.error(seen)
            judge.learner.descend(error, self.run.rate)
            total += error.detach()
        return total

    def _teach(self, clips: SelfForced, weight: Tensor) -> Tensor:
        """One step of the student, to what its judges ask for and to the clips; what it saw is kept for the judges."""
        given, chunks = self.given(clips), clip_chunks(clips.made.shape[1], self.world.chunk_latents)
        with self.run.autocast():
            seen = streamed(self.whole, clips.made, clips.noisy, clips.level, given, chunks)
            made = torch.cat([clips.made[:, :1], seen[:, 1:].float()], dim=1)
            asked = {name: judge.objection(made, given) for name, judge in self.judges.items()}
            error = MEASURES[self.settings.measure](made, clips.latents, clips.level, weight)[:, 1:].mean()
        self._figures = {name: x.detach() for name, x in asked.items()} | {"truth": error.detach()}
        self._seen.append(replace(clips, made=made.detach()))
        loss = self.settings.truth * error
        for name, judge in self.judges.items():
            loss = loss + judge.weight * asked[name]
        return self.run.descend(loss)


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
