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
    `WorldModel`. asked: what that step was given, [B, n, channels, h, w] a call, without frames that are known.

    renoised: whether noise is drawn anew between steps, as the paper trains; else the steps are Euler's, as a deployed
    world takes them.
    """

    def __init__(self, last: int, *, renoised: bool) -> None:
        self.last, self.renoised = last, renoised
        self.asked: list[Tensor] = []

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
            if index == self.last:
                self.asked.append(x[:, known:])
            tau = torch.full(x.shape[:2], float(level), device=x.device)
            tau[:, :known] = 0
            new = denoiser.predict_clean(x, tau, given, chunks, memory)[:, known:]
            if index < self.last:
                new = self._moved(x[:, known:], new, level, timesteps[index + 1])
            x = torch.cat([x[:, :known], new], dim=1)
        return x

    def _moved(self, x: Tensor, seen: Tensor, level: int, following: int) -> Tensor:
        if self.renoised:
            return (1 - following / 1000) * seen + following / 1000 * torch.randn_like(x)
        return seen + following / level * (x - seen)


@dataclass
class SelfForced(Clips):
    """Clips along whose poses a student was rolled out. made: [B, T, channels, h, w], its latents, the first one the
    clips'. noisy: what the last step of each chunk was given, the first frame clean. level: [B, T], at which.
    """

    made: Tensor
    noisy: Tensor
    level: Tensor

    def split(self, batch: int) -> list[SelfForced]:
        """The same in parts of so many clips."""
        return [self._at(slice(row, row + batch)) for row in range(0, len(self.made), batch)]

    def _at(self, rows: slice) -> SelfForced:
        text = {name: x[rows] for name, x in self.text.items()}
        rollout = {name: getattr(self, name)[rows] for name in ("made", "noisy", "level")}
        return SelfForced(self.latents[rows], self.poses[rows], text=text, **rollout)


def self_forced(student: WorldModel, clips: Clips, sampler: ExitSampler, noise: Tensor | None = None) -> SelfForced:
    """The student's rollout along the clips' poses, by `world.step`. What its weights are to learn from is computed
    anew in one pass, behind the rollout as history: `objective.streamed` sees in `noisy` what the rollout saw.

    noise: [B, T - 1, channels, h, w], drawn if None.
    """
    student.sampler = sampler
    made, asked = [clips.latents[:, :1].float()], [clips.latents[:, :1].float()]
    for output in chunks_of(student, clips, noise):
        made.append(output.latents.float())
        asked.append(torch.cat(sampler.asked).float())  # worlds may be stepped a few at a time, in the batch's order
        sampler.asked.clear()
    level = asked[0].new_full(clips.latents.shape[:2], student.config.timesteps[sampler.last])
    level[:, 0] = 0
    rollout = {"made": torch.cat(made, dim=1), "noisy": torch.cat(asked, dim=1), "level": level}
    return SelfForced(clips.latents, clips.poses, text=clips.text, **rollout)


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
