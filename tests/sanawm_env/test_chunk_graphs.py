"""Steps over fixed memory give what steps without it give. On a CPU the program is repeated instead of replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.tiny_worlds import FRAMES, Repeated, assert_same, path, repeat, start, with_graphs, world

from sanawm_env import chunk_graphs
from sanawm_env.advance import Asked, Stage, advance
from sanawm_env.bundle import load
from sanawm_env.chunk import run_stages
from sanawm_env.chunk_graphs import ChunkGraphs, padded
from sanawm_env.errors import BackendError
from sanawm_env.model.chunks import next_chunk
from sanawm_env.placement import find_captured
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.world import WorldModel, step


def roll(
    model: WorldModel, state: WorldState, chunks: range, decode: bool = True, *, worlds: int | None = None
) -> Iterator[StepOutput]:
    """Chunk after chunk, then the state, of the first `worlds`."""
    for chunk in chunks:
        state, output = step(model, state, path(state.batch_size, chunk), decode=decode)
        shown = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
        yield StepOutput(**{name: None if x is None else x[:worlds] for name, x in shown.items()})
    state = state.select(list(range(worlds or state.batch_size)))
    kept = [x.flatten().double().nan_to_num().cpu() for _, x in sorted(state.tensors().items())]
    yield StepOutput(None, torch.cat(kept), state.pose)


def assert_equal(got: Iterator[StepOutput], wanted: Iterator[StepOutput]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("decode", [True, False])
def test_fixed_memory_changes_no_bit_of_a_world(refined: bool, decode: bool) -> None:
    model = world(refined=refined)
    graphs = ChunkGraphs(repeat)
    wanted = roll(model, start(model), range(6), decode)
    assert_equal(roll(with_graphs(model, graphs), start(model), range(6), decode), wanted)
    # The opening chunk, those while the windows fill, and all others.
    assert len(graphs) == model.settled + 1


def test_a_refiner_whose_window_fills_later_than_the_denoisers_has_graphs_of_its_own() -> None:
    model, graphs = world(refined=True, window=9), ChunkGraphs(repeat)
    assert model.settled == 4
    assert_equal(roll(with_graphs(model, graphs), start(model), range(7)), roll(model, start(model), range(7)))
    assert len(graphs) == model.settled + 1


def test_graphs_share_memory_with_those_of_the_same_stages_alone() -> None:
    programs: list[tuple[Repeated, Repeated | None]] = []

    def recorded(program: Callable[[], None], beside: Repeated | None, stream: Any) -> Repeated:
        made = repeat(program)
        programs.append((made, beside))
        return made

    model = with_graphs(world(refined=True), ChunkGraphs(recorded))
    every: list[tuple[Stage, ...]] = [("denoise", "refine", "decode"), ("denoise",), ("refine",), ("decode",)]
    owners: dict[Repeated, tuple[Stage, ...]] = {}
    for stages in every:
        state = start(model)
        for chunk in range(4):
            state, _ = run_stages(model, state, path(1, chunk), stages, latents=torch.zeros(1, 2, 8, 4, 5))
        owners |= {made: stages for made, _ in programs if made not in owners}
    # Windows of the denoiser and the refiner fill, a decode cache is full from the start.
    assert [sum(stages == owner for owner in owners.values()) for stages in every] == [3, 3, 3, 1]
    assert [made for made, beside in programs if beside is None] == [
        next(made for made, owner in owners.items() if owner == stages) for stages in every
    ]
    assert all(beside is None or owners[made] == owners[beside] for made, beside in programs)


def test_states_keep_memory_of_their_own() -> None:
    plain = world()
    model = with_graphs(plain, ChunkGraphs(repeat))
    first, second = start(model), start(model, seed=7)
    for chunk in range(3):
        first, _ = step(model, first, path(1, chunk))
    kept = {name: x.clone() for name, x in first.tensors().items()}
    fork = first.clone()
    for chunk in range(4):
        second, _ = step(model, second, path(1, chunk))
    assert all(torch.equal(x, kept[name]) for name, x in first.tensors().items())
    assert_equal(roll(model, first, range(3, 5)), roll(plain, fork, range(3, 5)))


@torch.no_grad()
def test_a_batch_is_padded_and_comes_out_without_the_padding() -> None:
    assert [padded(n) for n in (1, 2, 3, 64, 65, 129)] == [1, 2, 4, 64, 128, 192]
    model, graphs = world(), ChunkGraphs(repeat)
    state = start(model, batch=3)
    draw = torch.Generator().manual_seed(3)
    for age in range(3):
        chunks = next_chunk(2, (age,) * 3, 1)
        asked = Asked(
            poses=torch.eye(4).repeat(3, FRAMES + (age == 0), 1, 1),
            intrinsics=state.intrinsics,
            position=torch.arange(chunks.frames).repeat(3, 1) + (1 + 2 * age if age else 0),
            noise=torch.randn(3, 2, *state.first_latent.shape[1:], generator=draw),
        )
        stages: tuple[Stage, ...] = ("denoise", "decode")
        got, wanted = (run(model, state, asked, chunks, stages) for run in (graphs.advance, advance))
        assert got.latents.shape == wanted.latents.shape
        torch.testing.assert_close(got.latents, wanted.latents, atol=1e-4, rtol=1e-4)
        for name, x in wanted.state.tensors().items():
            torch.testing.assert_close(got.state.tensors()[name], x, atol=1e-4, rtol=1e-4, msg=name)
        state = wanted.state
    assert len(graphs) == 3


def test_no_more_graphs_are_kept_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_graphs, "LIMIT", 2)
    plain, graphs = world(), ChunkGraphs(repeat)
    model = with_graphs(plain, graphs)
    assert_equal(roll(model, start(model), range(4)), roll(plain, start(plain), range(4)))
    assert len(graphs) == 2


def test_where_graphs_cannot_be_it_is_said() -> None:
    assert load("rooms", device="cpu").captured is False
    assert find_captured(None, torch.device("cuda"), None) is True
    assert find_captured(None, torch.device("cuda"), "parts") is False
    assert find_captured(False, torch.device("cuda"), None) is False
    with pytest.raises(BackendError, match="the device is a CPU"):
        load("rooms", device="cpu", captured=True)
    with pytest.raises(BackendError, match="offload is 'blocks'"):
        find_captured(True, torch.device("cuda"), "blocks")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")
@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_replayed_steps_equal_those_without_graphs(refined: bool, batch: int) -> None:
    model, graphs = world("cuda", refined=refined), ChunkGraphs()
    captured = with_graphs(model, graphs)
    for decode in (True, False):
        # A GPU rounds fp32 products by the size of the batch, and a graph's batch is padded.
        whole = start(model, padded(batch))
        few = whole.select(list(range(batch)))
        wanted = list(roll(model, whole, range(6), decode, worlds=batch))
        assert_equal(roll(captured, few, range(6), decode), iter(wanted))
    # Worlds of different ages in one batch.
    old, new = start(model, 2), start(model, 2, seed=5)
    for chunk in range(4):
        old, _ = step(model, old, path(2, chunk))
    mixed = old.fork(2).write([1, 2], new)
    assert_equal(roll(captured, mixed.clone(), range(4, 7)), roll(model, mixed, range(4, 7)))
