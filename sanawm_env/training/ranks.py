"""Training on several GPUs of one host: one process each, the same weights everywhere, gradients averaged.

Started by torchrun; without it there is one rank and every function here is the identity.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks:
    """This process among its peers. index: 0 .. count - 1; rank 0 alone prints and saves."""

    def __init__(self) -> None:
        self.index, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device("cuda", self.index) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._host = None
        if self.count > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            self._host = dist.new_group(backend="gloo")

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def agree(self, value: float) -> float:
        """Rank 0's number, on every rank, without waiting for the GPUs."""
        if self._host is None:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0, group=self._host)
        return float(shared)

    def average_gradients(self, module: nn.Module) -> None:
        """Gradients replaced by their mean over the ranks, in one message; a parameter without one counts as zero."""
        if self.count == 1:
            return
        parameters = [p for p in module.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([_gradient(p).flatten() for p in parameters])
        dist.all_reduce(flat)
        flat /= self.count
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            _gradient(parameter).copy_(mean.view_as(parameter))

    def close(self) -> None:
        if self.count > 1:
            dist.barrier()
            dist.destroy_process_group()


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
