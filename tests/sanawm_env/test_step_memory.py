"""Memory is asked before worlds are made: states, what a step computes in, and what its graphs keep."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_worlds import path, repeat, start, with_graphs, world
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sanawm_env import capacity, step_memory
from sanawm_env.advance import Stage, advance
from sanawm_env.capacity import Room
from sanawm_env.chunk import _asked
from sanawm_env.chunk_graphs import ChunkGraphs
from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import next_chunk
from sanawm_env.model.config import tiny_config
from sanawm_env.policies.cem import CEM, CEMConfig
from sanawm_env.policies.costs import TaskCost
from sanawm_env.step_memory import activations, working
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel, step

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Alive(TorchDispatchMode):
    """Bytes of the memory that operations under it take, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            memory = x.untyped_storage() if isinstance(x, torch.Tensor) else None
            if memory is not None and memory._cdata not in given | self.known:
                self.known.add(memory._cdata)
                self.now += memory.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(memory, self._freed, memory._cdata, memory.nbytes())
        return out

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def wide_world() -> WorldModel:
    """Wide enough that its activations are what a step takes, as in Rooms."""
    config = tiny_config()
    denoiser = replace(config.denoiser, hidden_size=128, head_dim=32, depth=6, mlp_ratio=2.5)
    autoencoder = replace(config.autoencoder, encoder_widths=(16, 32), decoder_widths=(32, 64))
    return WorldModel.random(replace(config, denoiser=denoiser, autoencoder=autoencoder))


@pytest.mark.parametrize(
    ("make", "stage"), [(wide_world, "denoise"), (wide_world, "decode"), (lambda: world(refined=True), "refine")]
)
@torch.no_grad()
def test_what_a_step_takes_is_estimated_from_above(make: Callable[[], WorldModel], stage: Stage) -> None:
    model = make()
    state, latents = start(model), torch.zeros(1, 2, 8, 4, 5)
    chunks = next_chunk(2, (0,), 1)
    asked = _asked(model, state, path(1, 0), chunks, (stage,), None, None if stage == "denoise" else latents)
    with Alive() as alive:
        made = advance(model, state, asked, chunks, (stage,))
    # What is there afterwards is no working memory.
    outputs = [*made.state.tensors().values(), *(x for x in (made.frames, made.refined) if x is not None)]
    taken = alive.peak - sum(x.nbytes for x in outputs if x.untyped_storage()._cdata in alive.known)
    estimate = activations(model, (stage,))
    assert taken <= estimate <= 4 * taken


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, model: WorldModel, free: int) -> None:
    """The model says that it is on a GPU, in bf16, with so many bytes free."""
    monkeypatch.setattr(type(model), "device", property(lambda self: CUDA))
    monkeypatch.setattr(type(model), "dtype", property(lambda self: torch.bfloat16))
    monkeypatch.setattr(capacity, "free_bytes", lambda device: free)


def test_graphs_are_counted_by_the_padded_batch_until_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = ChunkGraphs(repeat)
    model = with_graphs(world(), graphs)
    state = start(model, batch=3)
    step(model, state, path(3, 0))
    on_a_gpu(monkeypatch, model, 0)
    size, one = model.empty_state(1, device="cpu").nbytes()["total"], activations(model, ("denoise", "decode"))
    plain = working(world(), size, decode=True)
    assert [plain(n) for n in (1, 3, 800)] == [one, 3 * one, 800 * one]
    needs = working(model, size, decode=False)
    assert needs(800) == 832 * size + 2 * 832 * (size + activations(model, ("denoise",)))
    assert working(model, size, decode=True, resident=64)(800) == 64 * size + 2 * 64 * (size + one)
    # Worlds of a CPU were computed one by one: a copy of one is there.
    copies, pool = graphs.held(("denoise", "decode"))
    assert list(copies) == [1] and copies[1] >= size and pool == 0
    assert working(model, size, decode=True)(1) == 2 * (size + one)
    monkeypatch.setattr(ChunkGraphs, "held", lambda self, stages: ({832: 10**12}, 10**12))
    assert working(model, size, decode=True)(800) == 832 * (size + one)


def test_futures_that_do_not_fit_beside_their_graphs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_graphs(world(), ChunkGraphs(repeat))
    env = SanaWMVectorEnv(2, model, task="goto", frames="none")
    env.reset(seed=0)
    parts = env.world.nbytes()
    state = (parts["total"] - parts["decoder"]) // 2
    one = activations(model, ("denoise",))
    fitting = 2 * 64 * state + 64 * state + 2 * 64 * (state + one)
    monkeypatch.setattr(step_memory, "computed_alone", lambda model: False)  # as a GPU computes
    monkeypatch.setattr(capacity, "free_bytes", lambda device: fitting)
    assert env.fork(32, decode=False).num_envs == 64
    words = r"the number of futures is 66: each takes [\d,]+ bytes .* at most 64\. Fork fewer .*at_once=.*batch="
    with pytest.raises(ConfigError, match=words):
        env.fork(33, decode=False)
    planner = CEM(env, TaskCost(), CEMConfig(horizon=1, candidates=48, iterations=1))
    with pytest.raises(ConfigError, match="at_once="):
        planner.act(None, planner.initial_state(2))
    few = CEM(env, TaskCost(), CEMConfig(horizon=1, candidates=48, iterations=1, at_once=24))
    assert few.act(None, few.initial_state(2))[0].shape == (2, 2)


@pytest.mark.parametrize("resident", [None, 8])
def test_memory_that_runs_out_all_the_same_is_told_with_what_was_counted(resident: int | None) -> None:
    home = CUDA if resident is None else CPU
    room = Room(what="num_envs", device=CUDA, home=home, state=10, frames=2, working=lambda n: 7 * n, resident=resident)
    counted = {None: "num_envs is 20: each takes 29 bytes on 'cuda', all 580", 8: "resident is 8: each takes 47"}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match="memory ran out: ") as caught:
        patch.setattr(capacity, "free_bytes", lambda device: 100)
        with room.met(20):
            try:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")
    assert counted[resident] in str(caught.value) and isinstance(caught.value.__cause__, RuntimeError)
    assert ("pass resident=2" in str(caught.value)) == (resident is None)
    with pytest.raises(RuntimeError, match="something else"), room.met(20):
        raise RuntimeError("something else")


def test_an_environment_goes_on_where_it_was_when_memory_ran_out(
    tiny_model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, twin = (SanaWMVectorEnv(2, tiny_model, task="drive", frames="all") for _ in range(2))
    actions = np.array([[1.0, 0.0], [0.5, 0.3]], np.float32)
    for one in (env, twin):
        one.reset(seed=3)
        one.step(actions)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(type(tiny_model.autoencoder), "decode", full)
        with pytest.raises(ConfigError, match=r"memory ran out: num_envs is 2: each takes .* Run fewer") as caught:
            env.step(actions)
        assert isinstance(caught.value.__cause__, torch.cuda.OutOfMemoryError)
        with pytest.raises(ConfigError, match="memory ran out"):
            env.reset(seed=4)
    for _ in range(2):
        mine, theirs = env.step(actions), twin.step(actions)
        np.testing.assert_array_equal(mine[-1]["frames"], theirs[-1]["frames"])


@pytest.mark.gpu
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("captured", [True, False])
def test_on_a_gpu_no_more_is_taken_than_was_counted(captured: bool, decode: bool) -> None:
    from sanawm_env.bundle import load

    model = load("rooms", device="cuda", precision="bf16", captured=captured)
    if model.graphs is not None:
        model.graphs = ChunkGraphs()  # none of those that other tests have recorded
    env = SanaWMVectorEnv(1, model, task="goto", frames="none", arrays="torch")
    env.reset(seed=0)
    env.step(np.zeros((1, 2), np.float32))  # workspaces of libraries are there
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    futures = env.fork(128, decode=decode)
    counted = futures._episodes.room.asked(128)
    for _ in range(4):
        futures.step(np.zeros((128, 2), np.float32))
    taken = torch.cuda.max_memory_reserved() - before
    print(f"captured {captured}, decode {decode}: {taken:,} bytes taken, {counted:,} counted")
    # Blocks of an allocator, and what a library needs for other shapes.
    assert taken <= counted + 2**28 and counted <= 3 * taken
