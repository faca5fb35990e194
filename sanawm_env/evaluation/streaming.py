"""Whether a streamed world is the one that training saw: the same latents in one pass and chunk by chunk."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sanawm_env.chunk import told
from sanawm_env.model.chunks import clip_chunks, next_chunk
from sanawm_env.model.denoiser import last_memory
from sanawm_env.state import WorldState
from sanawm_env.world import WorldModel


@torch.no_grad()
def streaming_error(model: WorldModel, latents: Tensor, start: Tensor, poses: Tensor, intrinsics: Tensor) -> float:
    """Largest difference between the denoiser's streamed and one-pass predictions, over the largest prediction.

    latents: [B, 1 + k n, channels, h, w], the first picture's and k chunks. start: [B, 4, 4] and poses: [B, k F, 4,
    4], where the pictures are seen. intrinsics: [B, 4]. Both runs read the latents as finished ones (noise level 0),
    in full fp32: in low precision the two differ by their rounding, which says nothing of their masks and memories.
    """
    model = WorldModel(model.config, copy.deepcopy(model.denoiser).float(), model.autoencoder, model.fingerprint)
    with torch.backends.cudnn.flags(allow_tf32=False):
        return _difference(model, latents, start, poses, intrinsics)


def _difference(model: WorldModel, latents: Tensor, start: Tensor, poses: Tensor, intrinsics: Tensor) -> float:
    state = _opening(model, start, intrinsics)
    grid = clip_chunks(latents.shape[1], model.config.chunk_latents)
    quiet = torch.zeros(latents.shape[:2], device=model.device)
    whole, _ = model.denoiser(latents, quiet, told(model, state, poses, grid), grid, state.memory)
    parts = _streamed(model, state, latents, poses)
    return float((parts - whole).abs().max() / whole.abs().max())


def _streamed(model: WorldModel, state: WorldState, latents: Tensor, poses: Tensor) -> Tensor:
    """Predictions of all frames, one chunk at a time over the memory of the chunks before."""
    config, done, parts = model.config, 0, []
    slots = config.denoiser.previous_latents // config.chunk_latents
    for path in poses.split(config.frames_per_chunk, dim=1):
        chunks = next_chunk(config.chunk_latents, tuple(state.chunk.tolist()), slots)
        frames = latents[:, done : done + chunks.frames]
        quiet = torch.zeros(frames.shape[:2], device=model.device)
        given = told(model, state, path, chunks)
        out, after = model.denoiser(frames, quiet, given, chunks, state.memory, collect=True)
        parts.append(out)
        done += chunks.frames
        state.memory, state.chunk, state.pose = last_memory(after), state.chunk + 1, path[:, -1]
    return torch.cat(parts, dim=1)


def _opening(model: WorldModel, start: Tensor, intrinsics: Tensor) -> WorldState:
    state = model.empty_state(len(start), decoder=False)
    state.origin, state.pose, state.intrinsics = start.cpu(), start.cpu(), intrinsics.cpu()
    return state
