"""What a step takes on a device beside its worlds' states, from the shapes of a model: nothing is run to know it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from sanawm_env.advance import Stage, stages_of
from sanawm_env.chunk_graphs import padded
from sanawm_env.model.causal_video import memory_shapes
from sanawm_env.visits import computed_alone

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel

# Of the widest tensors of a stage, so many are counted as alive at once. In plain torch on a CPU, denoising Rooms has
# 1.8 of them at its peak, decoding 7; fused kernels need fewer, and a GPU's libraries have workspaces of their own.
DENOISED, DECODED = 4, 8


def working(model: WorldModel, state: int, *, decode: bool, resident: int | None = None) -> Callable[[int], int]:
    """Bytes on the model's device, by number of worlds, of what computing a step of them takes beside their states as
    they were and as they become. state: bytes of one. resident: as `world.step` takes it.

    With CUDA graphs the batch is padded, and two things are beside it: its copy, which graphs read and write, and the
    memory they compute in, which is as much as a first step takes that is not replayed, before each graph is recorded.
    """
    stages = stages_of(model, decode=decode)
    one, most = activations(model, stages), 1 if computed_alone(model) else resident
    if model.graphs is None:
        return lambda worlds: one * min(worlds, most or worlds)
    copies, pool = model.graphs.held(stages)

    def captured(worlds: int) -> int:
        count = padded(min(worlds, most or worlds))
        copy, computing = count * state, count * (state + one)
        return copy - min(copy, copies.get(count, 0)) + 2 * computing - min(computing, pool)

    return captured


def activations(model: WorldModel, stages: tuple[Stage, ...]) -> int:
    """Bytes of the tensors that one world's chunk has at its peak beside its states, an estimate from above."""
    estimate = {"denoise": _denoising, "refine": _refining, "decode": _decoding}
    return max(estimate[stage](model) for stage in stages)


def _denoising(model: WorldModel) -> int:
    config, size = model.config.denoiser, model.dtype.itemsize
    high, wide = model.config.grid
    tokens, width = (1 + config.chunk_latents) * high * wide, config.hidden_size
    words = 0 if config.caption_channels is None else config.caption_length
    # For all passes of a chunk: windows laid out for attention, offsets of the rays, keys and values of the text.
    window = model.empty_state(1, decoder=False, device="meta").nbytes()["window"]
    read = config.depth * (tokens + 2 * words) * width
    return window + (read + DENOISED * tokens * 2 * int(width * config.mlp_ratio)) * size


def _decoding(model: WorldModel) -> int:
    config = model.config
    shapes = memory_shapes(model.autoencoder.vae.decoder, *config.grid)
    widest = max(high * wide * channels for _, (_, high, wide, channels) in shapes)
    pixels = 3 * config.height * config.width * torch.float32.itemsize
    return config.frames_per_chunk * (DECODED * widest * model.dtype.itemsize + pixels)


def _refining(model: WorldModel) -> int:
    assert model.refiner is not None
    shape, size = model.refiner.transformer.config, model.refiner.dtype.itemsize
    width = shape.num_attention_heads * shape.attention_head_dim
    high, wide = model.config.grid
    block = model.refiner.config.block_latents * high * wide
    words = model.config.refiner_caption_length if model.refiner.config.reads_text else 1
    # Keys and values of the text in every layer; of one layer, those of window and block, turned and side by side.
    text = shape.num_layers * words * 2 * width
    keys = 2 * (model.refiner.config.kv_max_frames * high * wide + block) * width
    return (text + 2 * keys + DENOISED * block * 4 * width) * size
