"""What a step does on the device, once its poses are relative and its noise is drawn: tensors in, tensors out.

`world.step` prepares and checks; a CUDA graph of `advance` is what `chunk_graphs.py` replays. So nothing here reads a
value back to the host, and shapes depend on the state's and on the chunk grid alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sanawm_env.conditioning import Conditioning, condition
from sanawm_env.model.autoencoder import to_uint8
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.model.denoiser import last_memory
from sanawm_env.model.offload import on_device
from sanawm_env.model.sampler import denoise
from sanawm_env.state import WorldState

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a step is told, one row a world, on the model's device.

    poses: [B, frames, 4, 4] fp32 relative to each world's first camera, in model units; where the chunk opens its
    world, the pose of the first picture comes first. intrinsics: [B, 4] in frame pixels. position: [B, T] absolute
    latent index, int64. noise, refiner_noise: [B, n, channels, h, w] standard normal, the latter None where nothing is
    refined; refiner_position: [B] int64, of the next latent to refine, likewise.
    """

    poses: Tensor
    intrinsics: Tensor
    position: Tensor
    noise: Tensor
    refiner_noise: Tensor | None = None
    refiner_position: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What is told, by field name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a step makes: the state, whose host fields but `refiner.position` are still those before the step, frames
    uint8 [B, F, H, W, 3] or None, latents [B, n, channels, h, w], and these refined, or None.
    """

    state: WorldState
    latents: Tensor
    frames: Tensor | None = None
    refined: Tensor | None = None


def advance(model: WorldModel, state: WorldState, asked: Asked, chunks: ChunkGrid, *, decode: bool) -> Made:
    """One chunk of worlds of one kind: denoised, committed and, with `decode`, refined and decoded."""
    config = model.config
    clean = state.first_latent[:, None] if chunks.opening else None
    with on_device(model.denoiser):
        seen = conditioning(model, state, chunks, asked.poses, asked.intrinsics, asked.position)
        given = model.denoiser.read(seen, config.grid)
        latents = denoise(model.denoiser, config.timesteps, asked.noise, given, chunks, state.memory, clean)
        # What later chunks read always comes from one more pass over the finished latents at noise level 0.
        quiet = torch.zeros(latents.shape[:2], device=latents.device)
        _, after = model.denoiser(latents, quiet, given, chunks, state.memory, collect=True)
    new = latents[:, -config.chunk_latents :]
    known = replace(state, memory=last_memory(after), decoder=None, refiner=None)
    if not decode:
        return Made(state=known, latents=new)
    assert state.decoder is not None
    refined, window = None, None
    if asked.refiner_noise is not None:
        assert model.refiner is not None and state.refiner is not None
        refined, window = model.refiner.refine(
            state.refiner, new, asked.refiner_noise, *refiner_text(state.text), position=asked.refiner_position
        )
    shown = new if refined is None else refined
    # Every full state has decoded its first picture; asking its cache would wait for the device.
    pixels, cache = model.autoencoder.decode(shown.to(model.dtype), state.decoder, started=True)
    return Made(
        state=replace(known, decoder=cache, refiner=window), latents=new, frames=to_uint8(pixels), refined=refined
    )


def conditioning(
    model: WorldModel, state: WorldState, chunks: ChunkGrid, poses: Tensor, intrinsics: Tensor, position: Tensor
) -> Conditioning:
    """Rays, positions and text of the next chunk; poses, intrinsics and position as of `Asked`."""
    config = model.config
    return condition(
        poses,
        intrinsics,
        position,
        temporal_stride=config.temporal_stride,
        spatial_stride=config.spatial_stride,
        grid=config.grid,
        first=chunks.opening,
    ).reading(state.text)


def refiner_text(text: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the refiner reads of `WorldState.text`."""
    return text["refiner_hidden"], text["refiner_mask"]
