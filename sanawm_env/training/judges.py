"""Who judges a student's rollouts in distillation: a pair of scores (spec training.md 4.2), and an adversary that knows
the truth (as in DMD2, Yin et al. 2024, section 4.3). Each follows the student and tells it where to go.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import spectral_norm

from sanawm_env.conditioning import Conditioning
from sanawm_env.training.clip_stage import kept_from_muon
from sanawm_env.training.compiling import compile_blocks
from sanawm_env.training.latents import Clips
from sanawm_env.training.learner import Learner
from sanawm_env.training.objective import clip_loss, noised, velocity
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.scaling import Scaling
from sanawm_env.training.self_forcing import (
    ScoreLevels,
    SelfForced,
    matching_direction,
    matching_loss,
    score_chunks,
)
from sanawm_env.world import WorldModel

BETAS = (0.0, 0.999)
ROUGHENED = 0.3  # largest share of noise in what an adversary sees, so that it cannot win by a trace


class Judge(ABC):
    """learner: what follows the student. weight: of its objection in the student's loss."""

    learner: Learner
    weight: float

    @abstractmethod
    def objection(self, made: Tensor, given: Conditioning) -> Tensor:
        """What the student is to lower, with gradients to its latents made [B, T, channels, h, w]."""

    @abstractmethod
    def error(self, seen: SelfForced) -> Tensor:
        """What the judge is to lower itself on what the student saw."""


class Scores(Judge):
    """A frozen real score, and a fake one that begins as it and follows the student."""

    def __init__(
        self,
        real: WorldModel,
        ranks: Ranks,
        given: Callable[[Clips], Conditioning],
        *,
        weight: float,
        levels: ScoreLevels,
        lr: float,
        clip: float,
        scaling: Scaling,
        compiled: bool,
    ) -> None:
        """given: what a score is told about clips. levels: at which the two are compared. compiled: their blocks."""
        self.config, self.given, self.weight, self.levels = real.config, given, weight, levels
        self.fake = copy.deepcopy(real.denoiser).to(ranks.device, torch.float32).requires_grad_(True)
        self.learner = Learner(
            self.fake, ranks, lr=lr, muon_lr=None, clip=clip, plain=kept_from_muon, betas=BETAS, scaling=scaling
        )
        self.real = copy.deepcopy(real.denoiser).to(ranks.device).requires_grad_(False)
        if compiled:
            compile_blocks(self.fake)
            compile_blocks(self.real)

    def objection(self, made: Tensor, given: Conditioning) -> Tensor:
        level = self.levels.draw(made.shape[0], made.shape[1], made.device)
        chunks = score_chunks(self.config, made.shape[1])
        direction = matching_direction(made.detach(), level, given, (self.fake, chunks), (self.real, chunks))
        return matching_loss(made, direction)

    def error(self, seen: SelfForced) -> Tensor:
        x = seen.made
        level = self.levels.draw(x.shape[0], x.shape[1], x.device)
        chunks, ones = score_chunks(self.config, x.shape[1]), x.new_ones(x.shape[2])
        return clip_loss(self.fake, x, level, self.given(seen), chunks, ones, velocity)


class Adversary(Judge):
    """A discriminator of places that learns to tell rollouts from the truth, with the hinge loss."""

    def __init__(self, channels: int, ranks: Ranks, *, weight: float, lr: float, clip: float) -> None:
        self.weight, self.discriminator = weight, Discriminator(channels).to(ranks.device)
        self.learner = Learner(self.discriminator, ranks, lr=lr, muon_lr=None, clip=clip, betas=BETAS)

    def objection(self, made: Tensor, given: Conditioning) -> Tensor:
        self.discriminator.requires_grad_(False)  # what the student lowers leaves no gradients here
        try:
            return -self._real(made).mean()
        finally:
            self.discriminator.requires_grad_(True)

    def error(self, seen: SelfForced) -> Tensor:
        truth, made = self._real(seen.latents.float()), self._real(seen.made)
        return (1 - truth).relu().mean() + (1 + made).relu().mean()

    def _real(self, latents: Tensor) -> Tensor:
        """How real latents look; the first frame is the truth in any case."""
        level = 1000 * ROUGHENED * torch.rand(latents.shape[0], 1, device=latents.device)
        x: Tensor = self.discriminator(noised(latents[:, 1:], level.expand(-1, latents.shape[1] - 1)))
        return x.float()


class Discriminator(nn.Module):
    """latents [B, T, channels, h, w] -> how real each place looks [B, T, h / 2, w / 2], rounded up, from what is around
    it in space and time; of one Lipschitz constant whatever it learns.
    """

    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__()
        sizes = ((channels, width, 1, 1), (width, width, 3, 1), (width, 2 * width, 1, 2), (2 * width, 2 * width, 3, 1))
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv3d(a, b, (frames, 3, 3), (1, stride, stride), (frames // 2, 1, 1)))
            for a, b, frames, stride in sizes
        )
        self.verdict = spectral_norm(nn.Conv3d(2 * width, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        x = latents.transpose(1, 2)
        for layer in self.layers:
            x = leaky_relu(layer(x), 0.2)
        told: Tensor = self.verdict(x)
        return told[:, 0]
