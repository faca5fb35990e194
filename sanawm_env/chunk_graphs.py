"""Steps replayed from CUDA graphs: a chunk is thousands of small launches, which a graph makes one.

A graph reads and writes fixed memory. Each kind of step (batch size, tier, chunk grid) has a graph; those of one batch
size and tier share their memory, into which a step's tensors are copied and out of which its results are. So states
stay what they are without graphs: nobody's memory but their own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from sanawm_env.advance import Asked, Made, advance
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.state import ON_HOST, WorldState

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel

# Graphs that a model keeps; one more takes the place of that which has not been used for longest.
LIMIT = 16
# Beyond it, batches are padded to its multiples; below, to powers of two.
STEP = 64


class Replay(Protocol):
    """A recorded program."""

    def replay(self) -> object:
        """Runs it once more."""


Program = Callable[[], object]


class Kind(NamedTuple):
    """What decides a graph: worlds, whether there are frames, and the chunk grid of that many worlds."""

    worlds: int
    decode: bool
    chunks: ChunkGrid


def padded(batch: int) -> int:
    """Worlds that a graph for `batch` worlds computes."""
    return 1 << (batch - 1).bit_length() if batch <= STEP else -(-batch // STEP) * STEP


def record(program: Program, beside: Replay | None = None) -> Replay:
    """A program's CUDA graph; beside: another, never replayed at the same time, with which it can share memory."""
    # Once as it is: kernels are compiled and tables made, which no graph may do.
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        program()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=beside.pool() if isinstance(beside, torch.cuda.CUDAGraph) else None):
        program()
    return graph


class ChunkGraphs:
    """`advance` of one model, replayed. record: as the function of that name."""

    def __init__(self, record: Callable[..., Replay] = record) -> None:
        self._record = record
        self._graphs: OrderedDict[Kind, _Graph] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def advance(self, model: WorldModel, state: WorldState, asked: Asked, chunks: ChunkGrid, *, decode: bool) -> Made:
        """As `advance.advance`."""
        worlds = padded(state.batch_size)
        kind = Kind(worlds, decode, replace(chunks, filled=chunks.filled[:1] * worlds))
        if not decode:
            state = replace(state, decoder=None, refiner=None)
        with self._lock, torch.cuda.device(model.device) if model.device.type == "cuda" else nullcontext():
            if kind not in self._graphs:
                if len(self._graphs) == LIMIT:
                    self._graphs.popitem(last=False)
                self._graphs[kind] = self._new(kind, model, state, asked)
            self._graphs.move_to_end(kind)
            return self._graphs[kind].run(state, asked)

    def _new(self, kind: Kind, model: WorldModel, state: WorldState, asked: Asked) -> _Graph:
        given = _on_device(state) | asked.tensors()
        alike = (graph.held for known, graph in self._graphs.items() if known[:2] == kind[:2])
        held = dict(next(alike, {}))
        # Opening chunks are told of one frame and one latent more than others.
        for name, x in given.items():
            if name not in held or held[name].shape[1:] != x.shape[1:]:
                held[name] = x.new_zeros(kind.worlds, *x.shape[1:])
        beside = next((graph.recorded for graph in self._graphs.values()), None)
        return _Graph(kind, model, state, held, partial(self._record, beside=beside))


class _Graph:
    """One kind of step over fixed memory: `held` by name, results under the names of what they replace."""

    def __init__(
        self,
        kind: Kind,
        model: WorldModel,
        state: WorldState,
        held: dict[str, Tensor],
        record: Callable[[Program], Replay],
    ) -> None:
        self.held, self._made = held, dict[str, Tensor]()
        host = {name: x[:1].repeat_interleave(kind.worlds, dim=0) for name, x in _on_host(state).items()}
        names = _on_device(state)
        worlds = state.map(lambda name, _: held[name] if name in names else host[name])
        asked = Asked(**{name: held[name] for name in Asked.__dataclass_fields__ if name in held})

        def program() -> None:
            made = advance(model, worlds, asked, kind.chunks, decode=kind.decode)
            results = {name: x for name, x in _results(made).items() if x is not held.get(name)}
            for name, x in results.items():
                if name not in held:
                    held[name] = torch.empty_like(x, memory_format=torch.contiguous_format)
                self._made[name] = held[name]
            torch._foreach_copy_([held[name] for name in results], list(results.values()))

        self.recorded = record(program)

    def run(self, state: WorldState, asked: Asked) -> Made:
        batch, given = state.batch_size, _on_device(state) | asked.tensors()
        torch._foreach_copy_([self.held[name][:batch] for name in given], list(given.values()))
        for name, x in asked.tensors().items():
            # What pads the batch computes too, so it is told something sound.
            self.held[name][batch:] = x[-1:]
        self.recorded.replay()
        made = {name: x[:batch].clone() for name, x in self._made.items()}
        if state.refiner is not None and "refined" in made:
            made["refiner.position"] = state.refiner.position + made["refined"].shape[1]
        return Made(
            state=state.map(lambda name, x: made.get(name, x)),
            latents=made["latents"],
            frames=made.get("frames"),
            refined=made.get("refined"),
        )


def _on_device(state: WorldState) -> dict[str, Tensor]:
    return {name: x for name, x in state.tensors().items() if name not in ON_HOST}


def _on_host(state: WorldState) -> dict[str, Tensor]:
    return {name: x for name, x in state.tensors().items() if name in ON_HOST}


def _results(made: Made) -> dict[str, Tensor]:
    outputs = {"latents": made.latents, "frames": made.frames, "refined": made.refined}
    return _on_device(made.state) | {name: x for name, x in outputs.items() if x is not None}
