"""Tiny worlds on any device, with and without a refiner and graphs, for tests of how their chunks are run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tests.public_layouts import tiny_refiner

from sanawm_env.chunk_graphs import ChunkGraphs
from sanawm_env.model.config import tiny_config
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.world import WorldModel, initial

FRAMES, WORDS = 8, 5


class Repeated(NamedTuple):
    """What a GPU's graph is, computed anew each time."""

    replay: Callable[[], None]


def repeat(program: Callable[[], None], beside: Any = None, stream: Any = None) -> Repeated:
    program()
    return Repeated(program)


def world(device: str = "cpu", *, refined: bool = False, window: int = 5) -> WorldModel:
    """window: latents that the refiner reads before its block of 2, the first picture's among them."""
    config = tiny_config()
    if not refined:
        return WorldModel.random(config, device=device)
    config = dataclasses.replace(config, refiner_caption_length=WORDS)
    torch.manual_seed(1)
    settings = RefinerConfig(block_latents=2, kv_max_frames=window, temporal_stride=4, spatial_stride=8)
    refiner = Refiner(settings, tiny_refiner(8, vae_scale_factors=(4, 8, 8))).to(device)
    plain = WorldModel.random(config, device=device)
    return WorldModel(config, plain.denoiser, plain.autoencoder, refiner=refiner)


def with_graphs(model: WorldModel, graphs: ChunkGraphs) -> WorldModel:
    other = WorldModel(model.config, model.denoiser, model.autoencoder, refiner=model.refiner)
    other.graphs = graphs
    return other


def start(model: WorldModel, batch: int = 1, seed: int = 0) -> WorldState:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, 32, 40, 3), dtype=torch.uint8, generator=draw)
    text = model.empty_text(batch)
    for name, x in text.items():
        text[name] = torch.ones_like(x) if name.endswith("mask") else torch.randn(x.shape, generator=draw).to(x)
    return initial(model, images, seeds=range(seed, seed + batch), text=text)[0]


def path(batch: int, chunk: int, chunks: int = 1) -> torch.Tensor:
    """Poses of chunks from number `chunk` on; each world at its own speed."""
    poses = torch.eye(4, dtype=torch.float64).repeat(batch, FRAMES * chunks, 1, 1)
    frame = 1 + FRAMES * chunk + torch.arange(FRAMES * chunks)
    poses[..., 2, 3] = 0.02 * torch.arange(1, batch + 1)[:, None] * frame
    return poses


def assert_same(one: StepOutput, other: StepOutput) -> None:
    """Bit for bit, what is missing included."""
    for name in ("frames", "latents", "poses", "refined"):
        x, y = getattr(one, name), getattr(other, name)
        assert (x is None) == (y is None) and (x is None or torch.equal(x, y)), name


def assert_same_state(one: WorldState, other: WorldState) -> None:
    """Bit for bit, every part of it."""
    mine, theirs = one.tensors(), other.tensors()
    assert mine.keys() == theirs.keys()
    for name, x in mine.items():
        assert torch.equal(x.nan_to_num(), theirs[name].nan_to_num()), name
