"""How a module too large for one GPU is trained by the same stages: weights spread over the ranks (FSDP2), activations
computed again instead of kept, several batches a step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sanawm_env.errors import ConfigError
from sanawm_env.training.ranks import Ranks

# Blocks and whole denoisers compute with their weights in these methods too, so they gather them there.
GATHERING = ("read",)


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
    for weight in module.parameters():
        weight.data = weight.data.contiguous()  # FSDP takes no weights that lie channels last
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
