"""What a step does on the device, once its poses are relative and its noise is drawn: tensors in, tensors out.

A chunk passes three stages, each of which reads and replaces one part of a state: it is denoised (memory), refined
(refiner) and decoded (decoder). `world.step` prepares and checks; a CUDA graph of `advance` is what `chunk_graphs.py`
replays. So nothing here reads a value back to the host, and shapes depend on the state's and on the chunk grid alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sanawm_env.conditioning import Conditioning, condition
from sanawm_env.model.autoencoder import to_uint8
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.model.denoiser import last_memory
from sanawm_env.model.feed_forward import Memory
from sanawm_env.model.offload import on_device
from sanawm_env.model.refiner_state import RefinerState
from sanawm_env.state import WorldState

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel


Stage = Literal["denoise", "refine", "decode"]


def stages_of(model: WorldModel, *, decode: bool) -> tuple[Stage, ...]:
    """The stages of a chunk of which frames are wanted, or only latents."""
    if not decode:
        return ("denoise",)
    return ("denoise", "decode") if model.refiner is None else ("denoise", "refine", "decode")


def holding(state: WorldState, stages: tuple[Stage, ...]) -> WorldState:
    """The state without the parts that none of these stages reads; tensors are shared with it."""
    return replace(
        state,
        memory=state.memory if "denoise" in stages else [],
        refiner=state.refiner if "refine" in stages else None,
        decoder=state.decoder if "decode" in stages else None,
    )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a chunk is told, one row a world, on the model's device; of it, what the stages that run read.

    Denoising: poses [B, frames, 4, 4] fp32 relative to each world's first camera, in model units; where the chunk opens
    its world, the pose of the first picture comes first. intrinsics: [B, 4] in frame pixels. position: [B, T] absolute
    latent index, int64. noise: [B, n, channels, h, w] standard normal. Refining: refiner_noise, as noise, and
    refiner_position [B] int64, of the next latent to refine. latents: [B, n, channels, h, w] to refine or decode where
    an earlier call has denoised them.
    """

    poses: Tensor | None = None
    intrinsics: Tensor | None = None
    position: Tensor | None = None
    noise: Tensor | None = None
    refiner_noise: Tensor | None = None
    refiner_position: Tensor | None = None
    latents: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What is told, by field name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True, kw_only=True)
class Made:
    """What stages make: the state, with the parts that they replace and no others, whose host fields but
    `refiner.position` are still those before the step, frames uint8 [B, F, H, W, 3] or None, latents [B, n, channels,
    h, w], made or as asked, and these refined, or None.
    """

    state: WorldState
    latents: Tensor
    frames: Tensor | None = None
    refined: Tensor | None = None


def advance(
    model: WorldModel, state: WorldState, asked: Asked, chunks: ChunkGrid | None, stages: tuple[Stage, ...]
) -> Made:
    """These stages, one or several in order, of one chunk of worlds of one kind. chunks: read by "denoise"."""
    kept, latents = holding(state, stages), asked.latents
    refined, frames = None, None
    if "denoise" in stages:
        assert chunks is not None
        latents, memory = denoise_chunk(model, state, asked, chunks)
        kept = replace(kept, memory=memory)
    assert latents is not None
    if "refine" in stages:
        refined, window = refine_chunk(model, state, asked, latents)
        kept = replace(kept, refiner=window)
    if "decode" in stages:
        frames, cache = decode_chunk(model, state, latents if refined is None else refined)
        kept = replace(kept, decoder=cache)
    return Made(state=kept, latents=latents, frames=frames, refined=refined)


def denoise_chunk(model: WorldModel, state: WorldState, asked: Asked, chunks: ChunkGrid) -> tuple[Tensor, list[Memory]]:
    """New latents [B, n, channels, h, w], and the memory into which they are committed."""
    assert asked.poses is not None and asked.intrinsics is not None
    assert asked.position is not None and asked.noise is not None
    config = model.config
    clean = state.first_latent[:, None] if chunks.opening else None
    with on_device(model.denoiser):
        seen = conditioning(model, state, chunks, asked.poses, asked.intrinsics, asked.position)
        given = model.denoiser.read(seen, config.grid)
        latents = model.sampler(model.denoiser, config.timesteps, asked.noise, given, chunks, state.memory, clean)
        # What later chunks read always comes from one more pass over the finished latents at noise level 0.
        quiet = torch.zeros(latents.shape[:2], device=latents.device)
        _, after = model.denoiser(latents, quiet, given, chunks, state.memory, collect=True)
    return latents[:, -config.chunk_latents :], last_memory(after)


def refine_chunk(model: WorldModel, state: WorldState, asked: Asked, latents: Tensor) -> tuple[Tensor, RefinerState]:
    """Latents refined, and the window that holds them."""
    assert model.refiner is not None and state.refiner is not None and asked.refiner_noise is not None
    refined, window = model.refiner.refine(
        state.refiner, latents, asked.refiner_noise, *refiner_text(state.text), position=asked.refiner_position
    )
    return refined, window


def decode_chunk(model: WorldModel, state: WorldState, latents: Tensor) -> tuple[Tensor, Memory]:
    """Frames uint8 [B, F, H, W, 3] of latents, and the decode cache after them."""
    assert state.decoder is not None
    # Every full state has decoded its first picture; asking its cache would wait for the device.
    pixels, cache = model.autoencoder.decode(latents.to(model.dtype), state.decoder, started=True)
    return to_uint8(pixels), cache


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


def refiner_text(text: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """What the refiner reads of `WorldState.text`; nothing where it reads no text."""
    return text.get("refiner_hidden"), text.get("refiner_mask")
