"""Whole clips along a trajectory that is known beforehand: what every variant can do, and all that the bidirectional
model and the chunk-causal teacher can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sanawm_env.advance import refiner_text
from sanawm_env.camera import check_rigid
from sanawm_env.chunk import told
from sanawm_env.errors import ConfigError, PoseError
from sanawm_env.kernels.philox import normal
from sanawm_env.model.autoencoder import to_uint8
from sanawm_env.model.chunks import clip_chunks
from sanawm_env.model.clip_sampler import sample_clip
from sanawm_env.model.config import WorldConfig
from sanawm_env.model.offload import on_device
from sanawm_env.model.refiner import Refiner
from sanawm_env.rollout import Chunks, rollout
from sanawm_env.state import StepOutput
from sanawm_env.world import WorldModel, check_seeds, check_text, initial


@torch.no_grad()
def generate(
    model: WorldModel,
    images: Tensor | np.ndarray,
    poses: Tensor | np.ndarray,
    *,
    seeds: Sequence[int] | Tensor,
    intrinsics: Tensor | np.ndarray | None = None,
    text: Mapping[str, Tensor] | None = None,
    units: float | None = None,
    negative: tuple[Tensor, Tensor] | None = None,
    interval: float | None = None,
    noise: Tensor | None = None,
    decode: bool = True,
    pipeline: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StepOutput:
    """Clips that start at pictures and follow camera trajectories.

    images: uint8 [B, H, W, 3] RGB. poses: [B, N, 4, 4] camera-to-world of every frame, the picture's first. N is 1
    + F k frames, F those of a chunk; for the bidirectional model those of a latent. seeds: [B]. intrinsics: [B, 4]
    in frame pixels. text: embedded prompts as `WorldState.text` holds them. units: model units a metre (the bundle's
    by default). negative: (hidden [B, L, C], mask [B, L]) of what guidance moves away from; a distilled model has no
    guidance. interval: of `sample_clip`, for the teacher. noise: [B, T - 1, channels, h, w] instead of each world's
    own, for parity tests. pipeline: of `rollout`, for the distilled model, whose chunks are finished one by one.
    progress: called with (done, in all). With a refiner, the frames are of refined latents.
    Returns frames [B, N, H, W, 3] (None without `decode`), latents [B, T, channels, h, w] and the poses. Raises
    PoseError or SceneError. Spec rollout.md 6.
    """
    path = torch.as_tensor(poses, dtype=torch.float64).cpu()
    latents = _count_latents(model.config, path)
    check_rigid(path)
    if pipeline and model.config.variant != "distilled":
        raise ConfigError(
            f"pipeline is True for a {model.config.variant} model, allowed is a distilled one: all others denoise a "
            "clip as a whole. Use pipeline=False."
        )
    state, opened = initial(model, images, seeds=seeds, poses=path[:, 0], intrinsics=intrinsics, text=text, units=units)
    if model.config.variant == "distilled":
        rolled = rollout(model, state, path[:, 1:], noise=noise, decode=decode, pipeline=pipeline)
        return _joined(opened, rolled, path, (path.shape[1] - 1) // model.config.frames_per_chunk, progress)
    if noise is None:
        shape = (latents - 1, model.config.denoiser.in_channels, *model.config.grid)
        noise = normal(state.seed, state.chunk, 0, shape, device=model.device)
    chunk = latents - 1 if model.config.variant == "bidirectional" else model.config.chunk_latents
    chunks = clip_chunks(latents, chunk)
    with on_device(model.denoiser):
        sampled = sample_clip(
            model.denoiser,
            model.config.schedule,
            noise.to(model.device, model.dtype),
            state.first_latent,
            told(model, state, path[:, 1:], chunks),
            chunks,
            negative=negative,
            interval=interval,
            progress=progress,
        )
    refined = _refined(model, model.refiner, state.seed, state.text, sampled) if decode and model.refiner else None
    frames = _decoded(model, sampled if refined is None else refined) if decode else None
    return StepOutput(frames, sampled, path, refined)


@torch.no_grad()
def refine(
    model: WorldModel,
    latents: Tensor,
    *,
    seeds: Sequence[int] | Tensor,
    text: Mapping[str, Tensor],
    decode: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Finished clips refined afterwards: the frames (None without `decode`) and refined latents that a rollout of the
    same seeds would have given with the refiner on.

    latents: [B, 1 + k n, channels, h, w] of the denoiser, the first picture's and those of k chunks, as the outputs of
    steps hold them. text: as `WorldState.text` holds it. ConfigError for a model without a refiner, SceneError for text
    that does not fit.
    """
    if model.refiner is None:
        raise ConfigError("the model has no refiner; open it with one (sanawm_env.sana_wm.open_sana_wm(refiner=True)).")
    clip_chunks(latents.shape[1], _unit(model.config) // model.config.temporal_stride)
    batch = latents.shape[0]
    told_text = check_text(model.empty_text(batch), text)
    refined = _refined(model, model.refiner, check_seeds(seeds, batch), told_text, latents.to(model.device))
    return (_decoded(model, refined) if decode else None), refined


def _refined(model: WorldModel, refiner: Refiner, seed: Tensor, text: Mapping[str, Tensor], latents: Tensor) -> Tensor:
    """A bidirectional clip refined at once, the others block by block with the noise of their chunks, as their refiners
    were trained.
    """
    reading, shape, first = refiner_text(text), tuple(latents.shape[2:]), torch.zeros_like(seed)
    if model.config.variant == "bidirectional":
        noise = normal(seed, first, 1, (latents.shape[1] - 1, *shape), device=model.device)
        return refiner.refine_clip(latents, noise, *reading)
    parts, count = [latents[:, :1]], model.config.chunk_latents
    with on_device(refiner):
        window = refiner.open(refiner.empty_state(latents.shape[0], model.config.grid), latents[:, :1], *reading)
        for chunk, block in enumerate(latents[:, 1:].split(count, dim=1)):
            noise = normal(seed, first + chunk, 1, (count, *shape), device=model.device)
            refined, window = refiner.refine(window, block, noise, *reading)
            parts.append(refined)
    return torch.cat(parts, dim=1)


def _decoded(model: WorldModel, latents: Tensor) -> Tensor:
    """Frames uint8 [B, N, H, W, 3], in bounded memory: chunk by chunk where the decoder streams, else in tiles."""
    autoencoder = model.autoencoder
    if not model.config.autoencoder.decoder_causal:
        return to_uint8(autoencoder.decode_tiled(latents))
    cache = autoencoder.initial_cache(latents.shape[0], *model.config.grid, model.dtype, model.device)
    frames = []
    with on_device(autoencoder):
        for part in (latents[:, :1], *latents[:, 1:].split(model.config.chunk_latents, dim=1)):
            pixels, cache = autoencoder.decode(part.to(model.dtype), cache)
            frames.append(to_uint8(pixels))
    return torch.cat(frames, dim=1)


def _joined(
    opened: StepOutput, rolled: Chunks, path: Tensor, chunks: int, progress: Callable[[int, int], None]
) -> StepOutput:
    """The clip of a distilled model: its first picture and the chunks of a rollout, each with the noise that an
    environment of this seed would draw.
    """
    outputs = [opened]
    for done, (_, output) in enumerate(rolled, start=1):
        outputs.append(output)
        progress(done, chunks)
    frames = [o.frames for o in outputs[1:] if o.frames is not None]
    refined = [o.refined for o in outputs if o.refined is not None]
    return StepOutput(
        None if opened.frames is None or not frames else torch.cat([opened.frames, *frames], dim=1),
        torch.cat([o.latents for o in outputs], dim=1),
        path,
        torch.cat([opened.latents, *refined], dim=1) if refined else None,
    )


def _count_latents(config: WorldConfig, path: Tensor) -> int:
    unit = _unit(config)
    if path.ndim != 4 or path.shape[1] < 1 + unit or (path.shape[1] - 1) % unit:
        raise PoseError(
            f"poses have shape {tuple(path.shape)}, allowed is [B, 1 + {unit} k, 4, 4] with k >= 1: the first "
            "picture's pose and those of whole chunks; cut or extend the trajectory."
        )
    return 1 + (path.shape[1] - 1) // config.temporal_stride


def _unit(config: WorldConfig) -> int:
    """Frames by which a clip may grow."""
    return config.temporal_stride if config.variant == "bidirectional" else config.frames_per_chunk
