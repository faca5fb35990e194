"""Few-step sampler of the distilled model: deterministic Euler steps down a short list of noise levels (spec
rollout.md 6.4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sanawm_env.conditioning import Conditioning
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.model.denoiser import Denoiser, Reading
from sanawm_env.model.feed_forward import Memory


def denoise(
    denoiser: Denoiser,
    timesteps: tuple[int, ...],
    noise: Tensor,
    given: Conditioning | Reading,
    chunks: ChunkGrid,
    memory: list[Memory],
    clean: Tensor | None = None,
    *,
    watch: Callable[[int, Tensor], None] = lambda level, x: None,
) -> Tensor:
    """Latents of one chunk from noise [B, T, channels, h, w]; reads the memory, writes nothing.

    clean: [B, k, channels, h, w] known latents in front of the noise (the first picture), kept at noise level 0. watch:
    called with every level and the latents at it, before they are looked at.
    Returns [B, k + T, channels, h, w].
    """
    known = 0 if clean is None else clean.shape[1]
    x = noise if clean is None else torch.cat([clean.to(noise.dtype), noise], dim=1)
    for level, following in zip(timesteps, (*timesteps[1:], 0), strict=True):
        watch(level, x)
        tau = torch.full(x.shape[:2], float(level), device=x.device)
        tau[:, :known] = 0
        seen = denoiser.predict_clean(x, tau, given, chunks, memory)
        # The Euler step x - (s - s') v with v = (x - clean) / s, written so that the last step is the prediction.
        x = torch.cat([x[:, :known], (seen + following / level * (x - seen))[:, known:]], dim=1)
    return x
