"""How a module too large for one GPU is trained by the same stages: weights spread over the ranks (FSDP2), activations
computed again instead of kept, several batches a step; and the memory that this takes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sanawm_env.errors import ConfigError
from sanawm_env.model.config import DenoiserConfig
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.training.ranks import Ranks

# Blocks and whole denoisers compute with their weights in these methods too, so they gather them there.
GATHERING = ("read",)
MASTER, MOMENTS, AVERAGE, GRADIENT = 4, 8, 4, 4  # bytes a weight: fp32, AdamW's two moments, the average, fp32
# Tensors of a token's width that a block keeps for its gradient, in bf16; measured by `saved_bytes` on small blocks.
KEPT_WIDTHS = 90


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """sharded: weights, gradients and optimiser lie in parts on the ranks that torchrun started, each block's weights
    gathered in bf16 while it computes. checkpointed: a block keeps its input alone and computes the rest again for its
    gradient. accumulate: batches whose gradients make one step.
    """

    sharded: bool = False
    checkpointed: bool = False
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"accumulate is {self.accumulate}, allowed is a number of batches a step, >= 1.")

    def apply(self, module: nn.Module, ranks: Ranks, muon_lr: float | None) -> None:
        """Makes a module so, in place, before its optimisers are made. ConfigError where it cannot be."""
        blocks: Any = getattr(module, "blocks", ())
        if self.checkpointed:
            for block in blocks:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        if not self.sharded:
            return
        if ranks.count == 1:
            raise ConfigError(
                "weights are to be sharded, but there is one rank; start with torchrun, or sharded=false."
            )
        if muon_lr is not None:
            raise ConfigError(f"muon_lr is {muon_lr}, but Muon needs whole matrices; set muon_lr=null where sharded.")
        shard(module, list(blocks), ranks)


def shard(module: nn.Module, blocks: list[nn.Module], ranks: Ranks) -> None:
    """Spreads a module's weights over the ranks, block by block, in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    narrow = torch.bfloat16 if ranks.device.type == "cuda" else torch.float32
    # Inputs are not cast: noise levels and camera geometry need the precision that they come in.
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)
        for name in GATHERING:
            if hasattr(part, name):
                register_fsdp_forward_method(part, name)


def whole(state: Any) -> Any:
    """A state dict with its sharded tensors gathered; every rank must ask for it."""
    from torch.distributed.tensor import DTensor
    from torch.utils._pytree import tree_map

    return tree_map(lambda x: x.full_tensor() if isinstance(x, DTensor) else x, state)


def spread_like(value: Any, like: Tensor) -> Any:
    """A whole tensor in the parts in which `like` lies; anything else, and where `like` is whole, as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


@dataclass(frozen=True, kw_only=True)
class Memory:
    """GiB on each GPU. weights: with gradients, optimiser and average. gathered: the block at hand and the one that is
    fetched. activations: what is kept for the gradient.
    """

    weights: float
    gathered: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gathered + self.activations


def estimate(
    config: DenoiserConfig,
    *,
    latents: int,
    tokens: int,
    batch: int = 1,
    gpus: int = 1,
    checkpointed: bool = True,
    networks: int = 1,
) -> Memory:
    """Memory in which a clip of `latents` latent frames of `tokens` tokens trains, from shapes alone.

    batch: clips at once on each GPU. networks: trained ones of this size; distillation has 2 (and a frozen one).
    """
    with torch.device("meta"):
        denoiser = Denoiser(config)
    count = sum(p.numel() for p in denoiser.parameters())
    block = max(sum(p.numel() for p in part.parameters()) for part in denoiser.blocks)
    kept = (config.depth if checkpointed else KEPT_WIDTHS * config.depth) + KEPT_WIDTHS
    held = networks * (MASTER + MOMENTS + AVERAGE + GRADIENT) * count / gpus
    if networks > 1:
        held += 4 * count  # the frozen score, whole on every GPU
    gib = 2**30
    return Memory(
        weights=held / gib,
        gathered=(2 * 2 * block if gpus > 1 else 2 * count) / gib,
        activations=2 * batch * latents * tokens * config.hidden_size * kept / gib,
    )
