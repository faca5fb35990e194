"""The memory in which a denoiser trains, from shapes alone: `sanawm train estimate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from sanawm_env.bundle import empty_parts
from sanawm_env.errors import ConfigError
from sanawm_env.model.config import Variant, WorldConfig, rooms_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.feed_forward import token_matrix
from sanawm_env.model.lora import LAYERS, adapted_layers
from sanawm_env.training.self_forcing import score_chunks

TRAINED = 20  # bytes a weight: fp32, its gradient, AdamW's two moments and the average
FROZEN = 4
# Tensors of a token's width that a block keeps for its gradient: 81 in a recurrent block, 64 in a softmax one (counted
# on small blocks, tests/sanawm_env/training/test_scaling.py), each of them in fp32 at most.
KEPT = 81
# Those that stay of a block whose activations are computed again: what it reads, tokens and rays.
INPUTS = 2
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """model: the released denoiser or that of Rooms. variant: of the released one. method: "full", or "lora" for
    adapters of `rank` beside weights in bf16. gpus: over which it is sharded, 1 for not at all. batch, latents: clips
    at once on each of them, and latent frames of a clip. checkpointed: of `Scaling`. distilled: whether a student and a
    fake score are trained beside a frozen real one.
    """

    model: Literal["sana-wm", "rooms"] = "sana-wm"
    variant: Variant = "teacher"
    method: Literal["full", "lora"] = "full"
    rank: int = 16
    gpus: int = 1
    batch: int = 1
    latents: int = 43
    checkpointed: bool = True
    distilled: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and value < 1:
                raise ConfigError(f"{field.name} is {value}, allowed is a whole number >= 1.")
        if self.method == "lora" and (self.gpus > 1 or self.distilled):
            raise ConfigError(
                f"method is 'lora' with gpus {self.gpus} and distilled {self.distilled}; adapters are neither sharded "
                "nor distilled: set gpus=1 and distilled=false."
            )


def estimate(asked: Estimate) -> dict[str, Any]:
    """Of all weights as `training`, of adapters as `adapting`."""
    world = _world(asked)
    if asked.method == "lora":
        return adapting(world, asked.rank, LAYERS, asked.batch, asked.latents, checkpointed=asked.checkpointed)
    return training(world, asked)


def training(world: WorldConfig, asked: Estimate) -> dict[str, Any]:
    """GiB on each GPU that trains all weights of a world: weights (with gradients, optimiser and average), gathered
    (bf16 weights of the block at hand and of the one that is fetched), activations (at most), and their sum; and the
    number of parameters.
    """
    config = world.denoiser
    with torch.device("meta"):
        denoiser = Denoiser(config)
    count = sum(p.numel() for p in denoiser.parameters())
    block = max(sum(p.numel() for p in part.parameters()) for part in denoiser.blocks)
    weights = (2 if asked.distilled else 1) * TRAINED * count / asked.gpus + (FROZEN * count if asked.distilled else 0)
    gathered = 2 * (2 * block if asked.gpus > 1 else count)
    kept = KEPT + INPUTS * config.depth if asked.checkpointed else KEPT * config.depth
    activations = 4 * kept * _tokens(world, asked.batch, asked.latents) * config.hidden_size
    return _told({"parameters": count}, weights=weights, gathered=gathered, activations=activations)


def adapting(
    world: WorldConfig,
    rank: int,
    layers: Sequence[str],
    batch: int,
    latents: int,
    *,
    checkpointed: bool,
    weight_bytes: int = 2,
) -> dict[str, Any]:
    """GiB on a GPU that trains adapters beside frozen weights of `weight_bytes` each: weights (the autoencoder's too),
    adapters (with gradients, optimiser and average), activations (at most), memory (what each chunk of a streamed clip
    reads of those before it), and their sum; parameters and those of the adapters.
    """
    config, parts = world.denoiser, empty_parts(world)
    denoiser = parts["denoiser"]
    assert isinstance(denoiser, Denoiser)
    count = sum(p.numel() for part in parts.values() for p in part.parameters())
    matrices = [token_matrix(denoiser.get_submodule(name).weight) for name in adapted_layers(denoiser, layers)]  # type: ignore[arg-type]
    adapters = rank * sum(sum(matrix.shape) for matrix in matrices)
    chunks = len(score_chunks(world, latents).lengths)
    streamed = world.variant == "distilled"
    passes = 2 if streamed else 1
    width = batch * _tokens(world, 1, latents) * config.hidden_size
    dtype = {2: torch.bfloat16, 4: torch.float32}[weight_bytes]
    # Of the block at hand some are in fp32 whatever the weights are; what the others keep has the weights' format.
    whole, stays = 4 * KEPT, weight_bytes * INPUTS * config.depth * passes
    kept = whole + stays if checkpointed else whole * config.depth * passes
    states = denoiser.memory(batch, world.grid, device=torch.device("meta"), dtype=dtype) if streamed else []
    memory = chunks * sum(x.nbytes for block in states for x in block.values())
    return _told(
        {"parameters": sum(p.numel() for p in denoiser.parameters()), "adapter_parameters": adapters},
        weights=weight_bytes * count,
        adapters=TRAINED * adapters,
        activations=kept * width,
        memory=memory,
    )


def _told(counts: dict[str, Any], **parts: float) -> dict[str, Any]:
    told = {name: round(value / GIB, 2) for name, value in parts.items()}
    return {**counts, **told, "gib": round(sum(parts.values()) / GIB, 2)}


def _tokens(world: WorldConfig, batch: int, latents: int) -> int:
    return batch * latents * world.grid[0] * world.grid[1]


def _world(asked: Estimate) -> WorldConfig:
    if asked.model == "rooms":
        return rooms_config()
    from sanawm_env.released import released_config

    return released_config(asked.variant)
