"""One chunk of a batch of worlds: what their states tell it, and the batch split into worlds computed alike."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sanawm_env.advance import Asked, Stage, advance, conditioning, holding
from sanawm_env.camera import relative_poses
from sanawm_env.conditioning import Conditioning
from sanawm_env.kernels.philox import normal
from sanawm_env.model.chunks import ChunkGrid, next_chunk
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.visits import Rows, computed_at_once, together

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel


@torch.no_grad()
def run_stages(
    model: WorldModel,
    state: WorldState,
    path: Tensor,
    stages: tuple[Stage, ...],
    *,
    noise: Tensor | None = None,
    latents: Tensor | None = None,
    resident: int | None = None,
) -> tuple[WorldState, StepOutput]:
    """These stages of the next chunk, of input that is found to fit: the state a chunk later, with the parts that they
    replace and no others, and what they made.

    state: holds at least what the stages read; it stays as it was. path: [B, F, 4, 4] float64 on the host. noise: as
    `world.step` takes it, for denoising. latents: [B, n, channels, h, w] to refine or decode, where nothing is
    denoised; the output then holds them as its latents. resident: as `world.step` takes it.
    """
    return together(
        computed_at_once(model, state.chunk.clamp(max=model.settled), resident),
        holding(state, stages),
        model.device,
        lambda part, rows: _run(model, part, path[rows], stages, _rows(noise, rows), _rows(latents, rows)),
    )


def _rows(x: Tensor | None, rows: Rows) -> Tensor | None:
    return None if x is None else x[rows]


def _run(
    model: WorldModel,
    state: WorldState,
    path: Tensor,
    stages: tuple[Stage, ...],
    noise: Tensor | None,
    latents: Tensor | None,
) -> tuple[WorldState, StepOutput]:
    """`run_stages` for worlds of one kind."""
    slots = model.config.denoiser.previous_latents // model.config.chunk_latents
    chunks = next_chunk(model.config.chunk_latents, tuple(state.chunk.tolist()), slots)
    asked = _asked(model, state, path, chunks, stages, noise, latents)
    run = advance if model.graphs is None else model.graphs.advance
    made = run(model, state, asked, chunks, stages)
    advanced = replace(made.state, chunk=state.chunk + 1, pose=path[:, -1].clone())
    return advanced, StepOutput(made.frames, made.latents, path, made.refined)


def told(model: WorldModel, state: WorldState, path: Tensor, chunks: ChunkGrid) -> Conditioning:
    """Conditioning of the next chunk along poses [B, F, 4, 4], on the model's device."""
    return conditioning(model, state, chunks, *_view(model, state, path, chunks))


def _view(model: WorldModel, state: WorldState, path: Tensor, chunks: ChunkGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Poses, relative to each world's first camera and in model units, intrinsics and positions of the next chunk."""
    whole = torch.cat([state.pose[:, None], path], dim=1) if chunks.opening else path
    seen = relative_poses(state.origin, whole)
    seen[..., :3, 3] *= state.units.nan_to_num(1.0)[:, None, None]
    start = torch.where(state.chunk == 0, 0, 1 + model.config.chunk_latents * state.chunk)
    position = start[:, None] + torch.arange(chunks.frames)
    return _sent(model, seen.float()), _sent(model, state.intrinsics), _sent(model, position)


def _asked(
    model: WorldModel,
    state: WorldState,
    path: Tensor,
    chunks: ChunkGrid,
    stages: tuple[Stage, ...],
    noise: Tensor | None,
    latents: Tensor | None,
) -> Asked:
    """What the stages of the next chunk are told; noise by seed and age where none is given."""
    asked = Asked(latents=latents)
    if "denoise" in stages:
        poses, intrinsics, position = _view(model, state, path, chunks)
        drawn = _drawn(model, state, 0) if noise is None else noise.to(model.device)
        asked = replace(asked, poses=poses, intrinsics=intrinsics, position=position, noise=drawn)
    if "refine" in stages:
        assert state.refiner is not None
        position = _sent(model, state.refiner.position)
        asked = replace(asked, refiner_noise=_drawn(model, state, 1), refiner_position=position)
    return asked


def _drawn(model: WorldModel, state: WorldState, draw: int) -> Tensor:
    config = model.config
    shape = (config.chunk_latents, config.denoiser.in_channels, *config.grid)
    return normal(_sent(model, state.seed), _sent(model, state.chunk), draw, shape)


def _sent(model: WorldModel, x: Tensor) -> Tensor:
    """A tensor of the host on the model's device. Its values are read at once, but what the device has still to do is
    not waited for.
    """
    return x.to(model.device, non_blocking=True)
