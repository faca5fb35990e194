"""What the denoiser is trained on: streamed chunks that read a clean history's memory, and whole clips at mixed noise
levels.

The streamed objective runs the clip once at noise level 0 and collects the memory that each chunk would find at run
time; then all chunks are denoised at once, each from its own memory, exactly as `world.step` does. Gradients flow
through the memory. What it predicts from pure noise is what a rollout would show, and so the history of the clip's next
round: after k rounds the first k chunks are those of a real rollout, at no extra cost. The mixture objective is the
chunk-causal fine-tuning of SANA-WM (spec training.md 3.1). Letters: B clips, T latents, K chunks, n latents a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sanawm_env.conditioning import Conditioning, rows_of
from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.feed_forward import Memory

ERROR_FLOOR = 0.01  # squared error of a token below which the loss acts like a plain square
TYPICAL_ERROR = 0.05  # squared error of a token that half of all stay below in a trained world
SIGMA_FLOOR = 0.2  # noise below which an error of clean latents counts no more as one of their velocity
# Errors [B, T, h, w] of latents seen, against clean ones at noise levels [B, T], with weights of their channels.
Measure = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Law of the noise levels. full_share: share of draws (of the mixture: of its anchors) at 1000, where sampling
    starts. shift: flow shift of the others. law: of those before the shift; the mixture's anchors are logit-normal.
    shares: of the mixture's modes, as `chunk_mixture` lists them; the paper's are 0.1, 0.4, 0.4, 0.1.
    """

    full_share: float = 0.35
    shift: float = 2.0
    law: Literal["uniform", "logit_normal"] = "uniform"
    shares: tuple[float, float, float, float] = (0.15, 0.2, 0.3, 0.35)

    def __post_init__(self) -> None:
        if not 0 <= self.full_share <= 1 or self.shift <= 0 or min(self.shares) < 0 or not sum(self.shares):
            raise ConfigError(
                f"levels have full_share {self.full_share}, shift {self.shift}, shares {self.shares}; allowed are a "
                "share of 0 .. 1, a shift above 0 and shares >= 0 that are not all 0."
            )

    def draw(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Integer levels 1 .. 1000 as floats."""
        uniform = self.law == "uniform"
        u = torch.rand(shape, device=device) if uniform else torch.sigmoid(torch.randn(shape, device=device))
        level = (1000 * self.shift * u / (1 + (self.shift - 1) * u)).floor().clamp(1, 1000)
        return torch.where(torch.rand(shape, device=device) < self.full_share, 1000.0, level)


@dataclass(frozen=True)
class AmongLevels:
    """Law of a student's noise levels: those at which it steps, each as often."""

    timesteps: tuple[int, ...]

    def draw(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Levels as floats."""
        levels = torch.tensor(self.timesteps, dtype=torch.float32, device=device)
        return levels[torch.randint(len(self.timesteps), shape, device=device)]


def noised(clean: Tensor, level: Tensor) -> Tensor:
    """clean [B, T, ...] at noise levels [B, T] in 0 .. 1000."""
    sigma = (level / 1000)[:, :, None, None, None]
    return (1 - sigma) * clean + sigma * torch.randn_like(clean)


def rooted(seen: Tensor, clean: Tensor, level: Tensor, weight: Tensor) -> Tensor:
    """Root of the weighted mean square over the channels of each token, whatever its noise.

    Squares alone would be dominated by what no history shows and nobody can predict.
    """
    return (_square(seen, clean, weight) + ERROR_FLOOR).sqrt()


def bounded(seen: Tensor, clean: Tensor, level: Tensor, weight: Tensor) -> Tensor:
    """Share of a token's weighted mean square in itself plus `TYPICAL_ERROR`, whatever its noise: it holds a model to
    what it can know and leaves it free where nobody can.
    """
    square = _square(seen, clean, weight)
    return square / (square + TYPICAL_ERROR)


def velocity(seen: Tensor, clean: Tensor, level: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean square of the velocity's error: its minimum is the mean of what may be there, which is what many
    steps must follow to arrive at one of the possibilities.
    """
    return _square(seen, clean, weight) / (level / 1000).clamp_min(SIGMA_FLOOR).square()[:, :, None, None]


def plain(seen: Tensor, clean: Tensor, level: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean square of the clean latents' error."""
    return _square(seen, clean, weight)


def _square(seen: Tensor, clean: Tensor, weight: Tensor) -> Tensor:
    return ((seen.float() - clean.float()).square() * weight[:, None, None]).mean(2)


MEASURES: dict[str, Measure] = {"rooted": rooted, "bounded": bounded, "velocity": velocity, "plain": plain}


def streamed_loss(
    denoiser: Denoiser,
    clean: Tensor,
    history: Tensor,
    given: Conditioning,
    chunks: ChunkGrid,
    levels: Levels | AmongLevels,
    weight: Tensor,
    noise: float = 0.0,
    measure: Measure = rooted,
) -> tuple[Tensor, Tensor]:
    """Mean error of the clean prediction of every chunk, each reading the memory of `history`; and the clip as the
    model saw it where it started from pure noise, the history elsewhere: the history of the clip's next round.

    clean, history: [B, T, channels, h, w], the target and what earlier chunks are taken to be. weight: [channels].
    noise: largest share of noise mixed into the history.
    """
    level = of_frames(levels.draw((clean.shape[0], len(chunks.lengths)), clean.device), chunks)
    seen = streamed(denoiser, _roughened(history, noise), noised(clean, level), level, given, chunks)
    error = measure(seen, clean, level, weight)[:, 1:]
    at_full = (level == 1000)[:, :, None, None, None]
    return error.mean(), torch.where(at_full, seen.detach().to(history), history)


def streamed(
    denoiser: Denoiser, history: Tensor, noisy: Tensor, level: Tensor, given: Conditioning, chunks: ChunkGrid
) -> Tensor:
    """The clean prediction [B, T, channels, h, w] of every chunk, each from the memory that the history before it
    leaves: what `world.step` sees in the same noise.

    history, noisy: [B, T, channels, h, w]. level: [B, T], of the noisy frames; the first one is clean.
    """
    batch, first, n = noisy.shape[0], chunks.lengths[0], chunks.lengths[-1]
    empty = blank_memory(denoiser, noisy)
    _, after = denoiser(history, torch.zeros_like(level), given, chunks, empty, collect=True)
    opening = ChunkGrid((first,), opening=True)
    seen_first = denoiser.predict_clean(noisy[:, :first], level[:, :first], given.frames(0, first), opening, empty)
    memory = [{name: x[:, :-1].transpose(0, 1).flatten(0, 1) for name, x in block.items()} for block in after]
    grid = _later_grid(denoiser, chunks, batch)
    later, at = rows_of(noisy, first, n), rows_of(level, first, n)
    seen_later = denoiser.predict_clean(later, at, given.chunks(first, n), grid, memory)
    return torch.cat([seen_first, seen_later.unflatten(0, (-1, batch)).transpose(0, 1).flatten(1, 2)], dim=1)


def mixture_loss(
    denoiser: Denoiser,
    clean: Tensor,
    history: Tensor,
    given: Conditioning,
    chunks: ChunkGrid,
    levels: Levels,
    weight: Tensor,
    noise: float = 0.0,
    measure: Measure = rooted,
) -> Tensor:
    """`clip_loss` with the chunks at the noise levels of the timestep mixture. Those at level 0 are of `history`, what
    earlier chunks are taken to be, with up to a share `noise` of noise mixed in.
    """
    level = of_frames(chunk_mixture(clean.shape[0], len(chunks.lengths), clean.device, levels), chunks)
    known = _roughened(history, noise).to(clean)
    noisy = torch.where((level > 0)[:, :, None, None, None], noised(clean, level), known)
    return clip_loss(denoiser, clean, level, given, chunks, weight, measure, noisy)


def clip_loss(
    denoiser: Denoiser,
    clean: Tensor,
    level: Tensor,
    given: Conditioning,
    chunks: ChunkGrid,
    weight: Tensor,
    measure: Measure,
    noisy: Tensor | None = None,
) -> Tensor:
    """Mean error over the frames with noise of one pass of the whole clip.

    clean: [B, T, channels, h, w]. level: [B, T], 0 where frames are clean. noisy: the latents at these levels, drawn
    if None. One chunk of T frames is the bidirectional model, more are the chunk-causal one.
    """
    x = noised(clean, level) if noisy is None else noisy
    seen = denoiser.predict_clean(x, level, given, chunks, blank_memory(denoiser, clean))
    error = measure(seen, clean, level, weight).mean((2, 3))
    return (error * (level > 0)).sum() / (level > 0).sum().clamp_min(1)


def of_frames(level: Tensor, chunks: ChunkGrid) -> Tensor:
    """Noise levels [B, T] of the frames of chunks at levels [B, K]; the first frame is clean."""
    level = torch.cat([level[:, [k]].expand(-1, n) for k, n in enumerate(chunks.lengths)], dim=1).clone()
    level[:, 0] = 0
    return level


def chunk_mixture(batch: int, chunks: int, device: torch.device, levels: Levels) -> Tensor:
    """Noise levels [B, K], 0 or 1 .. 1000: one level everywhere, a rising sequence through a random chunk, one whose
    last chunk carries the anchor, or the latter behind a clean prefix, which is what streaming meets; early chunks
    are never noisier than late ones. Indices are drawn before the shift.
    """
    drawn = (1000 * torch.sigmoid(torch.randn(batch, device=device))).floor()
    anchor_level = torch.where(torch.rand(batch, device=device) < levels.full_share, 999.0, drawn)
    mode = torch.multinomial(torch.tensor(levels.shares, device=device), batch, replacement=True)
    index = torch.arange(chunks, device=device)[None]
    anchor = torch.where(mode == 1, torch.randint(chunks, (batch,), device=device), chunks - 1)[:, None]
    # Uniform non-decreasing sequences: sorted uniform draws below the anchor level before it and above it behind.
    u = torch.rand(batch, chunks, device=device)
    below = (u * (anchor_level[:, None] + 1)).floor()
    above = anchor_level[:, None] + (u * (1000 - anchor_level[:, None])).floor()
    rising = torch.where(index < anchor, below, torch.where(index > anchor, above, anchor_level[:, None]))
    rising = rising.sort(dim=1).values
    prefix = torch.randint(1, chunks + 1, (batch, 1), device=device)
    clean = (mode == 3)[:, None] & (index < prefix) & (index < chunks - 1)
    sigma = (torch.where((mode == 0)[:, None], anchor_level[:, None], rising) + 1) / 1000
    level = (1000 * levels.shift * sigma / (1 + (levels.shift - 1) * sigma)).floor()
    return torch.where(clean, 0.0, level)


def _roughened(history: Tensor, noise: float) -> Tensor:
    """The history with up to a share `noise` of noise, one share a clip; the first latent as it is."""
    if noise == 0:
        return history
    level = (1000 * noise * torch.rand(history.shape[0], 1, device=history.device)).repeat(1, history.shape[1])
    level[:, 0] = 0
    return noised(history, level)


def _later_grid(denoiser: Denoiser, chunks: ChunkGrid, batch: int) -> ChunkGrid:
    slots = denoiser.config.previous_latents // denoiser.config.chunk_latents
    filled = tuple(min(chunk - 1, slots) for chunk in range(1, len(chunks.lengths)) for _ in range(batch))
    return ChunkGrid((chunks.lengths[-1],), opening=False, filled=filled)


def blank_memory(denoiser: Denoiser, latents: Tensor) -> list[Memory]:
    """Memory of worlds with these latents [B, T, channels, h, w] that have seen nothing, as the pass at hand computes
    it.
    """
    device, kind = latents.device, latents.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else denoiser.dtype
    return denoiser.memory(latents.shape[0], (latents.shape[-2], latents.shape[-1]), device=device, dtype=dtype)
