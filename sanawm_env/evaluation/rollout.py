"""Pictures that a world model gives for held-out drives, and the clock beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sanawm_env.clips import generate
from sanawm_env.model.autoencoder import to_uint8
from sanawm_env.rollout import rollout
from sanawm_env.world import WorldModel, initial

# Called after each chunk with the number of frames it made.
Progress = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class Dream:
    """frames: uint8 [B, kept, H, W, 3] of the frames asked for. latents: [B, 1 + k n, channels, h, w]. made: frames
    streamed and decoded in `seconds`, all worlds together.
    """

    frames: Tensor
    latents: Tensor
    made: int
    seconds: float


def dream(
    model: WorldModel,
    pictures: Tensor,
    seeds: Sequence[int],
    poses: Tensor,
    keep: Sequence[int],
    progress: Progress,
    **given: Any,
) -> Dream:
    """Worlds started at pictures uint8 [B, H, W, 3] and driven along poses [B, 1 + k F, 4, 4], chunk by chunk, or at
    once where the model cannot be stepped.

    keep: numbers of the frames to return, 0 the first picture as the autoencoder shows it. given: intrinsics and text,
    as `initial` takes them.
    """
    if not model.config.steppable:
        return _dream_at_once(model, pictures, seeds, poses, keep, progress, given)
    state, shown = initial(model, pictures, seeds=seeds, poses=poses[:, 0], **given)
    wanted, kept, latents, done = set(keep), {0: _first(shown.frames)}, [shown.latents], 0
    began = _now(model)
    for _, shown in rollout(model, state, poses[:, 1:]):
        assert shown.frames is not None
        kept |= {done + k + 1: frame for k, frame in enumerate(shown.frames.unbind(1)) if done + k + 1 in wanted}
        latents.append(shown.latents)
        done += shown.frames.shape[1]
        progress(shown.frames.shape[1] * len(pictures))
    seconds = _now(model) - began
    frames = torch.stack([kept[k] for k in keep], dim=1)
    return Dream(frames=frames, latents=torch.cat(latents, dim=1), made=done * len(pictures), seconds=seconds)


def _dream_at_once(
    model: WorldModel,
    pictures: Tensor,
    seeds: Sequence[int],
    poses: Tensor,
    keep: Sequence[int],
    progress: Progress,
    given: Mapping[str, Any],
) -> Dream:
    began = _now(model)
    clip = generate(model, pictures, poses, seeds=seeds, **given)
    assert clip.frames is not None
    made = (poses.shape[1] - 1) * len(pictures)
    progress(made)
    return Dream(frames=clip.frames[:, list(keep)], latents=clip.latents, made=made, seconds=_now(model) - began)


@torch.no_grad()
def reconstruction(model: WorldModel, video: Tensor) -> Tensor:
    """Truth through the autoencoder alone, decoded chunk by chunk as a stream is: the ceiling of any dream.

    video: uint8 [B, 1 + k F, H, W, 3]; returns the same shape.
    """
    pixels = video.to(model.device).permute(0, 4, 1, 2, 3).to(model.dtype) / 127.5 - 1
    latents = model.autoencoder.encode(pixels)
    cache = model.autoencoder.initial_cache(len(video), *model.config.grid, model.dtype, model.device)
    parts = []
    for part in (latents[:, :1], *latents[:, 1:].split(model.config.chunk_latents, dim=1)):
        decoded, cache = model.autoencoder.decode(part.to(model.dtype), cache)
        parts.append(to_uint8(decoded))
    return torch.cat(parts, dim=1)


def _first(frames: Tensor | None) -> Tensor:
    assert frames is not None
    return frames[:, 0]


def _now(model: WorldModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
