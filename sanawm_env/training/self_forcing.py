"""Self-forcing with distribution matching: a student's own rollouts are moved to where a real score finds them likelier
than a fake one, which follows the student (spec training.md 4.2). No networks' sizes, no files: the sums alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sanawm_env.conditioning import Conditioning
from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import ChunkGrid, clip_chunks
from sanawm_env.model.config import WorldConfig
from sanawm_env.model.denoiser import Denoiser, Reading
from sanawm_env.model.feed_forward import Memory
from sanawm_env.training.latents import Clips
from sanawm_env.training.objective import blank_memory, noised
from sanawm_env.training.rollouts import chunks_of
from sanawm_env.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class ScoreLevels:
    """Law of the noise levels at which scores are compared: uniform, moved by a flow shift, one for all frames of a
    clip but the first, within lowest .. highest.
    """

    shift: float = 3.0
    lowest: float = 20.0
    highest: float = 980.0

    def __post_init__(self) -> None:
        if self.shift <= 0 or not 0 < self.lowest <= self.highest < 1000:
            raise ConfigError(
                f"score levels have shift {self.shift}, lowest {self.lowest}, highest {self.highest}; allowed are a "
                "shift above 0 and 0 < lowest <= highest < 1000."
            )

    def draw(self, batch: int, frames: int, device: torch.device) -> Tensor:
        """Levels [B, T], 0 at the first frame."""
        share = torch.rand(batch, 1, device=device)
        level = 1000 * self.shift * share / (1 + (self.shift - 1) * share)
        level = level.clamp(self.lowest, self.highest).repeat(1, frames)
        level[:, 0] = 0
        return level


class ExitSampler:
    """A few-step sampler that stops at its step `last` and gives what is seen there; in place of `denoise` in a
    `WorldModel`.

    gradients: whether that step, and no other, is recorded; `seen` keeps its results [B, n, channels, h, w], with their
    gradients, which the world itself does not carry on. renoised: whether noise is drawn anew between steps, as the
    paper trains; else the steps are Euler's, as a deployed world takes them.
    """

    def __init__(self, last: int, *, gradients: bool, renoised: bool) -> None:
        self.last, self.gradients, self.renoised = last, gradients, renoised
        self.seen: list[Tensor] = []

    def __call__(
        self,
        denoiser: Denoiser,
        timesteps: tuple[int, ...],
        noise: Tensor,
        given: Reading,
        chunks: ChunkGrid,
        memory: list[Memory],
        clean: Tensor | None = None,
    ) -> Tensor:
        known = 0 if clean is None else clean.shape[1]
        x = noise if clean is None else torch.cat([clean.to(noise.dtype), noise], dim=1)
        for index, level in enumerate(timesteps[: self.last + 1]):
            recorded = self.gradients and index == self.last
            if recorded:
                torch.clear_autocast_cache()  # of weights that were cast without gradients
            tau = torch.full(x.shape[:2], float(level), device=x.device)
            tau[:, :known] = 0
            with torch.set_grad_enabled(recorded):
                # A reading carries no gradients; the recorded pass trains what reads the conditioning too.
                told = given.source if recorded else given
                seen = denoiser.predict_clean(x, tau, told, chunks, memory)
                new = seen[:, known:]
            if index < self.last:
                x = torch.cat([x[:, :known], self._moved(x[:, known:], new, level, timesteps[index + 1])], dim=1)
        self.seen.append(new)
        return torch.cat([x[:, :known], new.detach()], dim=1)

    def _moved(self, x: Tensor, seen: Tensor, level: int, following: int) -> Tensor:
        if self.renoised:
            return (1 - following / 1000) * seen + following / 1000 * torch.randn_like(x)
        return seen + following / level * (x - seen)


def self_forced(student: WorldModel, clips: Clips, sampler: ExitSampler, noise: Tensor | None = None) -> Tensor:
    """Latents [B, T, channels, h, w] of the student's rollout along the clips' poses, by `world.step`; the first one is
    the clips'. Gradients of every chunk end at the memory of those before it.

    noise: [B, T - 1, channels, h, w], drawn if None.
    """
    student.sampler, sampler.seen = sampler, []
    made = []
    for _ in chunks_of(student, clips, noise):
        made.append(torch.cat(sampler.seen))  # worlds may be stepped a few at a time, in the order of the batch
        sampler.seen = []
    return torch.cat([clips.latents[:, :1].float(), *[x.float() for x in made]], dim=1)


def score_chunks(config: WorldConfig, latents: int) -> ChunkGrid:
    """The chunks in which a model judges a clip at once."""
    if config.variant == "bidirectional":
        return ChunkGrid((latents,), opening=True)
    return clip_chunks(latents, config.chunk_latents)


@torch.no_grad()
def matching_direction(
    made: Tensor,
    level: Tensor,
    given: Conditioning,
    fake: tuple[Denoiser, ChunkGrid],
    real: tuple[Denoiser, ChunkGrid],
) -> Tensor:
    """The step [B, T, channels, h, w] that distribution matching takes away from rollouts `made`: (fake - real) /
    mean |made - real|, where both are what the scores see in the rollouts at noise levels [B, T].
    """
    noisy = noised(made, level)
    f, r = (net.predict_clean(noisy, level, given, chunks, blank_memory(net, noisy)) for net, chunks in (fake, real))
    size = (made - r)[:, 1:].abs().float().mean((1, 2, 3, 4), keepdim=True)
    return (f - r).float() / size.clamp_min(1e-6)


def matching_loss(made: Tensor, direction: Tensor) -> Tensor:
    """Half the mean square between rollouts and where the direction leads, over all frames but the first: its gradient
    is the direction over the number of entries.
    """
    target = (made.detach() - direction).detach()
    return 0.5 * (made[:, 1:] - target[:, 1:]).square().mean()
