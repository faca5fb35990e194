"""Which worlds one call computes, and how their states come to the device and go back.

A batch of states lies on the device, or in the host's memory where the device has no room for all of them. There is one
way either way: group after group is taken out of the batch, computed, and put into the batch that comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sanawm_env.state import ON_HOST, StepOutput, WorldState

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel

# Worlds of a batch: all of them, or by index.
Rows = Tensor | slice
# States of a visiting world that are on the device at one time: as it was and as it becomes, of the group behind it,
# which comes already, and of that ahead, which still leaves.
VISITING = 4


def computed_at_once(model: WorldModel, kind: Tensor, resident: int | None = None) -> list[Tensor]:
    """Rows of the batch that one call computes: every world by itself on a CPU and in fp32, which is for checking; else
    worlds of one age [B], up to that at which all windows are full, since attention to fewer keys is another
    computation. resident: most of them, or any.

    Libraries round products by how many rows share a call, and a world must not depend on its neighbours (design.md 3).
    A chunk of one world is enough work for a CPU. On a GPU one trained block makes 1e-4 of a rounding of 4e-7, so in
    fp32 only calls of their own keep worlds equal. Training computes in bf16 over fp32 weights (autocast), in batches.
    """
    if computed_alone(model):
        return list(torch.arange(len(kind)).split(1))
    ages = [(kind == value).nonzero()[:, 0] for value in kind.unique()]
    return [rows for age in ages for rows in age.split(resident or len(kind))]


def computed_alone(model: WorldModel) -> bool:
    """Whether every world is computed by itself, whatever batch it is in."""
    kind = model.device.type
    return kind == "cpu" or (model.dtype == torch.float32 and not torch.is_autocast_enabled(kind))


def together(
    groups: Sequence[Tensor],
    state: WorldState,
    device: torch.device,
    advance: Callable[[WorldState, Rows], tuple[WorldState, StepOutput]],
) -> tuple[WorldState, StepOutput]:
    """What `advance(worlds, rows)` makes of each group of rows on the device, in the order of the batch; it lies where
    the batch does."""
    if len(groups) == 1 and state.device.type == device.type:
        # By index it would wait for the device, to which indices are copied.
        return advance(state, slice(None))
    ferry = _Ferry(state, device)
    ahead = ferry.bring(groups[0])
    for number, rows in enumerate(groups):
        advanced, output = advance(ferry.land(ahead), rows)
        if number + 1 < len(groups):
            ahead = ferry.bring(groups[number + 1])
        ferry.take_back(rows, advanced, output)
    return ferry.whole(advanced)


class _Ferry:
    """Brings groups of a batch to the device and collects what becomes of them. To and from a host they are copied
    beside the computing, on streams of their own."""

    def __init__(self, batch: WorldState, device: torch.device) -> None:
        self.batch, self.device = batch, device
        # By kind alone: a device may be named with its number or without.
        self.afar = batch.device.type != device.type
        if self.afar:
            self.coming, self.leaving = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.made: dict[str, Tensor] = {}

    def bring(self, rows: Tensor) -> WorldState:
        """Worlds on their way; `land` says when they are there."""
        if not self.afar:
            return self.batch.select(rows)
        # The CPU is far ahead of the device, whose memory holds a few groups only.
        self.leaving.synchronize()
        with torch.cuda.stream(self.coming):
            return self.batch.map(lambda name, x: x[rows] if name in ON_HOST else self._copied(x, rows))

    def land(self, worlds: WorldState) -> WorldState:
        """The worlds, once what computes now may read them."""
        if self.afar:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self.coming)
            _used_on(computing, worlds.tensors())
        return worlds

    def take_back(self, rows: Tensor, worlds: WorldState, output: StepOutput) -> None:
        """Puts a group as it has become into its rows."""
        told = {f"output.{name}": x for name, x in vars(output).items() if x is not None}
        given = worlds.tensors() | told
        if not self.afar:
            self._put(rows, given)
            return
        self.leaving.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.leaving):
            self._put(rows, given)
        _used_on(self.leaving, given)

    def whole(self, like: WorldState) -> tuple[WorldState, StepOutput]:
        """The whole batch, with the parts of `like`, and what it gave."""
        if self.afar:
            self.leaving.synchronize()
        output = {name: self.made.get(f"output.{name}") for name in StepOutput.__dataclass_fields__}
        return like.map(lambda name, _: self.made[name]), StepOutput(**output)  # type: ignore[arg-type]

    def _copied(self, x: Tensor, rows: Tensor) -> Tensor:
        there = torch.empty(len(rows), *x.shape[1:], dtype=x.dtype, device=self.device)
        for whole, part in _runs(rows):
            there[part].copy_(x[whole], non_blocking=True)
        return there

    def _put(self, rows: Tensor, given: dict[str, Tensor]) -> None:
        index = rows.to(self.batch.device)
        for name, x in given.items():
            if name not in self.made:
                home = self.batch.device if x.is_cuda else x.device
                shape = (self.batch.batch_size, *x.shape[1:])
                self.made[name] = torch.empty(shape, dtype=x.dtype, device=home, pin_memory=self.afar and x.is_cuda)
            kept = self.made[name]
            if kept.device == x.device:
                kept.index_copy_(0, index if index.device == x.device else rows, x)
                continue
            for whole, part in _runs(rows):
                kept[whole].copy_(x[part], non_blocking=True)


def _runs(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows [n], rising, as slices of the batch that follow one another, each with its part of 0 .. n - 1."""
    first = 0
    for run in rows.tensor_split((rows.diff() != 1).nonzero()[:, 0] + 1):
        yield slice(int(run[0]), int(run[-1]) + 1), slice(first, first + len(run))
        first += len(run)


def _used_on(stream: torch.cuda.Stream, tensors: dict[str, Tensor]) -> None:
    """Their memory is not given to others before the stream has come to here."""
    for x in tensors.values():
        if x.is_cuda:
            x.record_stream(stream)
