"""Steps replayed from CUDA graphs: a chunk is thousands of small launches, which a graph makes one.

A graph reads and writes fixed memory. It holds a whole chunk or one stage of it; each kind (batch size, stages, chunk
grid) has a graph, and those of one batch size and the same stages share their memory, into which a step's tensors are
copied and out of which its results are. So states stay what they are without graphs: nobody's memory but their own.

Stages may run at the same time, on streams of their own, so graphs of different stages share no memory: neither what
they copy into, nor the pool they compute in, nor the workspace that cuBLAS keeps for the stream they were recorded on.
Graphs of the same stages share all three, and the device runs them one after another, whatever streams ask for them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from sanawm_env.advance import Asked, Made, Stage, advance, holding
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
    """What decides a graph: worlds, stages, and what they read: the chunk grid of that many worlds where a chunk is
    denoised, the filled part of the window where it is refined.
    """

    worlds: int
    stages: tuple[Stage, ...]
    chunks: ChunkGrid | None
    filled: int | None


def padded(batch: int) -> int:
    """Worlds that a graph for `batch` worlds computes."""
    return 1 << (batch - 1).bit_length() if batch <= STEP else -(-batch // STEP) * STEP


def record(program: Program, beside: Replay | None = None, stream: torch.cuda.Stream | None = None) -> Replay:
    """A program's CUDA graph. beside: another, never replayed at the same time, with which it can share memory, and
    stream: that on which both are recorded.
    """
    stream = torch.cuda.Stream() if stream is None else stream
    # Once as it is: kernels are compiled, tables and workspaces made, which no graph may do.
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        program()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    pool = beside.pool() if isinstance(beside, torch.cuda.CUDAGraph) else None
    # Of this thread alone: another one may be waiting for an event meanwhile, as that which hands steps to writers.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        program()
    return graph


class ChunkGraphs:
    """`advance` of one model, replayed. record: as the function of that name."""

    def __init__(self, record: Callable[..., Replay] = record) -> None:
        self._record = record
        self._graphs: OrderedDict[Kind, _Graph] = OrderedDict()
        self._turns: dict[tuple[Stage, ...], _Turns] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def held(self, stages: tuple[Stage, ...]) -> tuple[dict[int, int], int]:
        """Bytes that graphs of these stages have on the device: what they copy into, by worlds, and the pool that they
        compute in."""
        with self._lock:
            mine = {kind: graph for kind, graph in self._graphs.items() if kind.stages == stages}
        copies = {kind.worlds: sum(x.nbytes for x in graph.held.values()) for kind, graph in mine.items()}
        replay = next((graph.recorded for graph in mine.values()), None)
        if not isinstance(replay, torch.cuda.CUDAGraph):
            return copies, 0
        pool, segments = tuple(replay.pool()), torch.cuda.memory_snapshot()
        return copies, sum(part["total_size"] for part in segments if tuple(part["segment_pool_id"]) == pool)

    def advance(
        self, model: WorldModel, state: WorldState, asked: Asked, chunks: ChunkGrid | None, stages: tuple[Stage, ...]
    ) -> Made:
        """As `advance.advance`."""
        state = holding(state, stages)
        kind = _kind(state, chunks, stages)
        with self._lock, self._turn(model.device, stages):
            if kind not in self._graphs:
                if len(self._graphs) == LIMIT:
                    self._forget(model.device)
                self._graphs[kind] = self._new(kind, model, state, asked)
            self._graphs.move_to_end(kind)
            return self._graphs[kind].run(state, asked)

    @contextmanager
    def _turn(self, device: torch.device, stages: tuple[Stage, ...]) -> Iterator[None]:
        """Once the device is through with the last graph of these stages."""
        if device.type != "cuda":
            yield
            return
        with torch.cuda.device(device):
            if stages not in self._turns:
                self._turns[stages] = _Turns({turns.recording for turns in self._turns.values()})
            turns, stream = self._turns[stages], torch.cuda.current_stream()
            stream.wait_event(turns.over)
            try:
                yield
            finally:
                turns.over.record(stream)

    def _forget(self, device: torch.device) -> None:
        """Gives up the graph that has not been used for longest, once no stream runs it."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._graphs.popitem(last=False)

    def _new(self, kind: Kind, model: WorldModel, state: WorldState, asked: Asked) -> _Graph:
        given = _on_device(state) | asked.tensors()
        alike = (graph.held for known, graph in self._graphs.items() if known[:2] == kind[:2])
        held = dict(next(alike, {}))
        # Opening chunks are told of one frame and one latent more than others.
        for name, x in given.items():
            if name not in held or held[name].shape[1:] != x.shape[1:]:
                held[name] = x.new_zeros(kind.worlds, *x.shape[1:])
        beside = next((graph.recorded for known, graph in self._graphs.items() if known.stages == kind.stages), None)
        turns = self._turns.get(kind.stages)
        stream = None if turns is None else turns.recording
        return _Graph(kind, model, state, asked, held, lambda program: self._record(program, beside, stream))


class _Turns:
    """What keeps graphs of the same stages one after another, and the stream on which they are recorded.

    taken: the streams of other stages. Streams come from a small pool and repeat; this one is none of those.
    """

    def __init__(self, taken: set[torch.cuda.Stream]) -> None:
        self.over = torch.cuda.Event()
        self.recording = torch.cuda.Stream()
        while self.recording in taken:
            self.recording = torch.cuda.Stream()


class _Graph:
    """One kind of step over fixed memory: `held` by name, results under the names of what they replace."""

    def __init__(
        self,
        kind: Kind,
        model: WorldModel,
        state: WorldState,
        asked: Asked,
        held: dict[str, Tensor],
        record: Callable[[Program], Replay],
    ) -> None:
        self.held, self._made = held, dict[str, Tensor]()
        host = {name: x[:1].repeat_interleave(kind.worlds, dim=0) for name, x in _on_host(state).items()}
        names = _on_device(state)
        worlds = state.map(lambda name, _: held[name] if name in names else host[name])
        told = Asked(**{name: held[name] for name in asked.tensors()})

        def program() -> None:
            made = advance(model, worlds, told, kind.chunks, kind.stages)
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
        if state.refiner is not None:
            made["refiner.position"] = state.refiner.position + made["refined"].shape[1]
        latents = made.get("latents", asked.latents)
        assert latents is not None
        return Made(
            state=state.map(lambda name, x: made.get(name, x)),
            latents=latents,
            frames=made.get("frames"),
            refined=made.get("refined"),
        )


def _kind(state: WorldState, chunks: ChunkGrid | None, stages: tuple[Stage, ...]) -> Kind:
    worlds = padded(state.batch_size)
    grid = None
    if "denoise" in stages:
        assert chunks is not None
        grid = replace(chunks, filled=chunks.filled[:1] * worlds)
    return Kind(worlds, stages, grid, None if state.refiner is None else int(state.refiner.filled[0]))


def _on_device(state: WorldState) -> dict[str, Tensor]:
    return {name: x for name, x in state.tensors().items() if name not in ON_HOST}


def _on_host(state: WorldState) -> dict[str, Tensor]:
    return {name: x for name, x in state.tensors().items() if name in ON_HOST}


def _results(made: Made) -> dict[str, Tensor]:
    outputs = {"latents": made.latents, "frames": made.frames, "refined": made.refined}
    return _on_device(made.state) | {name: x for name, x in outputs.items() if x is not None}
