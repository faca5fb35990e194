"""Work of what the benchmarks time at full size, counted from shapes: multiplications and additions, and bytes that no
implementation can avoid to move."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sanawm_env.bundle import empty_parts
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.config import WorldConfig
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.released import released_config

BYTES = 2  # of a bf16 value
# Layers that passes over a chunk share (`Reading`), and those that multiply the text.
SHARED = ("plucker_proj", "cross_attn.kv_linear")


@dataclass(frozen=True, kw_only=True)
class Work:
    """what: as in `goals.GOALS`."""

    what: str
    flops: float
    bytes: float


def counted() -> list[Work]:
    """Work of the released configuration, one world, a full window."""
    config = released_config("distilled")
    parts = empty_parts(config)
    denoiser = parts["denoiser"]
    assert isinstance(denoiser, Denoiser)
    return [
        _scan(config, "GDN scan, T = 3, state in and out", products=3, read=3),
        _scan(config, "GDN camera scan, T = 3", products=2, read=3),
        _step(config, denoiser),
        _decoding(config, parts["autoencoder"]),
    ]


def _tokens(config: WorldConfig) -> tuple[int, int]:
    height, width = config.grid
    return config.chunk_latents, height * width


def _scan(config: WorldConfig, what: str, products: int, read: int) -> Work:
    """products: D x D sums over the tokens of each frame; read: tensors [T, S, C] in (queries, keys, values)."""
    frames, tokens = _tokens(config)
    heads, width = config.denoiser.heads, config.denoiser.head_dim
    square = 2 * heads * width * width
    # Sums and read-out of the tokens; one product of states for each frame, forward and, but the last, backward.
    flops = frames * tokens * square * (products + 1) + (2 * frames - 1) * square * width
    moved = (read + 1) * frames * tokens * heads * width * BYTES + 2 * heads * width * width * 4
    return Work(what=what, flops=flops, bytes=moved)


def _step(config: WorldConfig, denoiser: Denoiser) -> Work:
    frames, tokens = _tokens(config)
    settings, count = config.denoiser, frames * tokens
    weights = [
        layer.weight.numel()
        for name, layer in denoiser.blocks.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not name.endswith(SHARED)
    ]
    keys = count + (config.chunk_latents + 1 + settings.previous_latents) * tokens
    softmax = len([index for index in range(settings.depth) if settings.is_softmax(index)])
    attention = 4 * count * keys * settings.hidden_size * 2 * softmax
    text = 4 * count * settings.caption_length * settings.hidden_size * settings.depth
    scans = [_scan(config, "", products, 3).flops * (settings.depth - softmax) for products in (3, 2)]
    moved = sum(weights) * BYTES + 4 * softmax * keys * settings.hidden_size * BYTES
    return Work(
        what="stage 1, one denoising step", flops=2 * sum(weights) * count + attention + text + sum(scans), bytes=moved
    )


def _decoding(config: WorldConfig, autoencoder: nn.Module) -> Work:
    assert isinstance(autoencoder, Autoencoder)
    frames, _ = _tokens(config)
    here = torch.device("meta")
    autoencoder = autoencoder.to(here, torch.bfloat16)
    latents = torch.zeros(1, frames, config.denoiser.in_channels, *config.grid, dtype=torch.bfloat16, device=here)
    cache = autoencoder.initial_cache(1, *config.grid, torch.bfloat16, here)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pixels, _ = autoencoder.decode(latents, cache, started=True)
    weights = sum(p.numel() for p in autoencoder.get_submodule("vae.decoder").parameters())
    moved = (weights + pixels.numel()) * BYTES + 2 * sum(x.nbytes for x in cache.values())
    return Work(what="causal decoding, 24 frames", flops=counter.get_total_flops(), bytes=moved)
