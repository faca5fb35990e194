"""The memory in which a denoiser trains, from shapes alone: `sanawm train estimate`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from sanawm_env.errors import ConfigError
from sanawm_env.model.config import WorldConfig, rooms_config
from sanawm_env.model.denoiser import Denoiser

TRAINED = 20  # bytes a weight: fp32, its gradient, AdamW's two moments and the average
FROZEN = 4
# Tensors of a token's width that a block keeps for its gradient: 81 in a recurrent block, 64 in a softmax one (counted
# on small blocks, tests/sanawm_env/training/test_scaling.py), each of them in fp32 at most.
KEPT = 81
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """model: the released denoiser or that of Rooms. gpus: over which it is sharded, 1 for not at all. batch, latents:
    clips at once on each of them, and latent frames of a clip. checkpointed: of `Scaling`. distilled: whether a student
    and a fake score are trained beside a frozen real one.
    """

    model: Literal["sana-wm", "rooms"] = "sana-wm"
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


def estimate(asked: Estimate) -> dict[str, Any]:
    """GiB on each GPU: weights (with gradients, optimiser and average), gathered (bf16 weights of the block at hand and
    of the one that is fetched), activations (at most), and their sum; and the number of parameters.
    """
    world = _world(asked)
    config, tokens = world.denoiser, world.grid[0] * world.grid[1]
    with torch.device("meta"):
        denoiser = Denoiser(config)
    count = sum(p.numel() for p in denoiser.parameters())
    block = max(sum(p.numel() for p in part.parameters()) for part in denoiser.blocks)
    weights = (2 if asked.distilled else 1) * TRAINED * count / asked.gpus + (FROZEN * count if asked.distilled else 0)
    gathered = 2 * (2 * block if asked.gpus > 1 else count)
    kept = KEPT + config.depth if asked.checkpointed else KEPT * config.depth
    activations = 4 * kept * asked.batch * asked.latents * tokens * config.hidden_size
    parts = {"weights": weights, "gathered": gathered, "activations": activations}
    told = {name: round(value / GIB, 2) for name, value in parts.items()}
    return {"parameters": count, **told, "gib": round(sum(parts.values()) / GIB, 2)}


def _world(asked: Estimate) -> WorldConfig:
    if asked.model == "rooms":
        return rooms_config()
    from sanawm_env.released import released_config

    return released_config("teacher")
