"""One rank of a learner whose weights lie in parts; rank 0 leaves what it has learnt in the folder it is given."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tests.sanawm_env.training.small import learner, loss
from torch.distributed.tensor import DTensor

from sanawm_env.training.ranks import Ranks
from sanawm_env.training.scaling import Scaling

if __name__ == "__main__":
    ranks = Ranks()
    made = learner(Scaling(sharded=True, checkpointed=True), ranks)
    for _ in range(2):
        made.descend(loss(made, slice(ranks.index, ranks.index + 1)), 1.0)
    state = made.state()
    parameters = list(made.module.parameters())
    own = sum(p.to_local().numel() for p in parameters if isinstance(p, DTensor))
    if ranks.is_first:
        sizes = {"own": own, "all": sum(p.numel() for p in parameters)}
        torch.save({"state": state, **sizes}, Path(sys.argv[1]) / "state.pt")
    ranks.close()
