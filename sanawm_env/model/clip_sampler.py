"""Many-step sampling of whole clips: every latent frame has a noise level of its own (spec rollout.md 6.1 - 6.3).

The bidirectional model is one chunk, denoised at once; the chunk-causal teacher staggers its chunks like a wave. Both
are the same loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sanawm_env.conditioning import Conditioning
from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.model.config import Schedule
from sanawm_env.model.denoiser import Denoiser


def noise_levels(schedule: Schedule) -> list[float]:
    """Falling noise levels in 1 .. 0, steps + 1 of them, as diffusers' flow-matching scheduler spaces them (its last
    one above 0 is that of its smallest training step, not 1 / steps).
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=schedule.shift)
    scheduler.set_timesteps(schedule.steps)
    levels: list[float] = scheduler.sigmas.tolist()
    return levels


def sample_clip(
    denoiser: Denoiser,
    schedule: Schedule,
    noise: Tensor,
    first: Tensor,
    given: Conditioning,
    chunks: ChunkGrid,
    *,
    negative: tuple[Tensor, Tensor] | None = None,
    interval: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Latents [B, T, channels, h, w] of clips that begin with the latents `first` [B, channels, h, w].

    noise: [B, T - 1, channels, h, w]. given: conditioning of all T latents. chunks: one chunk of T for a bidirectional
    model, 1 + n and then n for a chunk-causal one. negative: text (hidden, mask) of the branch that guidance moves away
    from, needed when `schedule.guidance` is above 1. interval: share of the schedule by which a chunk starts after the
    one before, 1 for one chunk after another; 1 / chunks by default. progress: called with (passes done, in all).
    """
    count, steps = len(chunks.lengths), schedule.steps
    interval = 1 / count if interval is None else interval
    if not 0 < interval <= 1:
        raise ConfigError(f"interval is {interval}, allowed is above 0 and at most 1, a share of the schedule.")
    if schedule.guidance > 1 and negative is None:
        raise ConfigError(
            f"guidance is {schedule.guidance} and there is no negative text; embed '' for it, or set guidance to 1."
        )
    levels = noise_levels(schedule)
    begins = [int(chunk * interval * steps) for chunk in range(count)]
    total = begins[-1] + steps
    x = torch.cat([first[:, None].to(noise.dtype), noise], dim=1)
    for tick in range(total):
        active = sum(begin <= tick for begin in begins)  # always a prefix: a chunk reads none that has not begun
        part = ChunkGrid(chunks.lengths[:active], opening=True)
        now, then = (_frame_levels(levels, part, begins, tick + later, x) for later in (0, 1))
        prefix = x[:, : part.frames]
        velocity = _guided_velocity(
            denoiser, schedule.guidance, prefix, now, given.frames(0, part.frames), part, negative
        )
        moved = prefix - (now - then)[None, :, None, None, None].to(x.dtype) * velocity
        x = torch.cat([x[:, :1], moved[:, 1:], x[:, part.frames :]], dim=1)
        progress(tick + 1, total)
    return x


def _frame_levels(levels: list[float], part: ChunkGrid, begins: list[int], tick: int, x: Tensor) -> Tensor:
    """Noise level of every frame of the active chunks at a tick, [frames]; the first picture's is 0."""
    last = len(levels) - 1
    of_chunk = [levels[min(max(tick - begin, 0), last)] for begin in begins[: len(part.lengths)]]
    of_frame = [level for level, length in zip(of_chunk, part.lengths, strict=True) for _ in range(length)]
    return torch.tensor([0.0, *of_frame[1:]], device=x.device)


def _guided_velocity(
    denoiser: Denoiser,
    guidance: float,
    x: Tensor,
    level: Tensor,
    given: Conditioning,
    chunks: ChunkGrid,
    negative: tuple[Tensor, Tensor] | None,
) -> Tensor:
    if guidance > 1:
        assert negative is not None
        # One call for both branches, the negative one in front as the public pipeline has it.
        both = given.twice(*negative)
        away, towards = _velocity(denoiser, x.repeat(2, 1, 1, 1, 1), level, both, chunks).chunk(2)
        return away + guidance * (towards - away)
    return _velocity(denoiser, x, level, given, chunks)


def _velocity(denoiser: Denoiser, x: Tensor, level: Tensor, given: Conditioning, chunks: ChunkGrid) -> Tensor:
    """Noise less clean latents; for a model that predicts clean latents, 0 where there is no noise."""
    grid = (x.shape[-2], x.shape[-1])
    memory = denoiser.memory(x.shape[0], grid, device=x.device, dtype=denoiser.dtype)
    out, _ = denoiser(x, (1000 * level).expand(x.shape[0], -1), given, chunks, memory)
    if denoiser.config.prediction == "velocity":
        return out
    sigma = level[None, :, None, None, None].to(x.dtype)
    return torch.where(sigma > 0, (x - out) / sigma.clamp_min(1e-6), 0.0)
