"""Training clips as the deployed world makes them: `world.step`, chunk after chunk, from a clip's first latent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sanawm_env.state import StepOutput
from sanawm_env.training.latents import Clips
from sanawm_env.world import WorldModel, check_text, set_out, step


def chunks_of(model: WorldModel, clips: Clips, noise: Tensor | None = None) -> Iterator[StepOutput]:
    """What each chunk of the clips becomes when worlds are driven along their poses, without frames.

    noise: [B, T - 1, channels, h, w], drawn if None.
    """
    config, batch = model.config, clips.latents.shape[0]
    poses = clips.poses.double().cpu()
    seeds = torch.arange(batch)
    state = set_out(model.empty_state(batch, decoder=False), seeds, poses[:, 0], None, None, None)
    text = check_text(state.text, clips.text)
    state = replace(state, first_latent=clips.latents[:, 0].to(state.first_latent), text=text)
    drawn = torch.randn_like(clips.latents[:, 1:].float()) if noise is None else noise
    paths = poses[:, 1:].split(config.frames_per_chunk, dim=1)
    for path, part in zip(paths, drawn.split(config.chunk_latents, dim=1), strict=True):
        state, output = step(model, state, path, noise=part, decode=False)
        yield output


def rolled(model: WorldModel, clips: Clips, noise: Tensor | None = None) -> Tensor:
    """Latents [B, T, channels, h, w] of a rollout that starts where the clips do, the first one theirs."""
    made = [output.latents.float() for output in chunks_of(model, clips, noise)]
    return torch.cat([clips.latents[:, :1].float(), *made], dim=1)
