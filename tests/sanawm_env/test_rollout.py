"""Rollouts whose stages overlap give what chunk after chunk gives, bit for bit. On a CPU the stages run in the same
order without streams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.tiny_worlds import assert_same, assert_same_state, path, repeat, start, with_graphs, world

from sanawm_env.advance import Stage, stages_of
from sanawm_env.chunk import run_stages
from sanawm_env.chunk_graphs import ChunkGraphs
from sanawm_env.clips import generate
from sanawm_env.errors import BackendError, ConfigError, PoseError, SpentStateError, StateError
from sanawm_env.model.config import tiny_config
from sanawm_env.model.offload import offload_part
from sanawm_env.rollout import Chunks, overlapped, rollout
from sanawm_env.state import WorldState
from sanawm_env.world import WorldModel, step

CHUNKS = 6


class InTurn:
    """Lanes of a machine without streams: what is asked for is done at once. limit: stages until an interrupt."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.ran, self.handed, self.drained = limit, list[Stage](), list[Any](), False

    def run(self, stage: Stage, work: Callable[[], Any], after: int | None) -> tuple[Any, int]:
        if len(self.ran) == self.limit:
            raise KeyboardInterrupt
        # Of a chunk only the first stage waits for no other.
        assert (after is None) == (stage == "denoise")
        self.ran.append(stage)
        return work(), len(self.ran)

    def hand_over(self, done: int, tensors: Sequence[torch.Tensor]) -> None:
        self.handed.append(done)

    def wait(self, done: int) -> None:
        assert done == self.handed[-1]

    def drain(self) -> None:
        self.drained = True


def without_streams(
    model: WorldModel, state: WorldState, lanes: InTurn, *, decode: bool = True, first: int = 0, chunks: int = CHUNKS
) -> Chunks:
    paths = [path(state.batch_size, first + chunk) for chunk in range(chunks)]
    return overlapped(model, state, paths, [None] * chunks, stages_of(model, decode=decode), lanes)


def mixed(model: WorldModel) -> WorldState:
    """Worlds of two ages in one batch."""
    old = start(model, 2)
    for chunk in range(2):
        old, _ = step(model, old, path(2, chunk))
    return old.write([1], start(model, 1, seed=5))


def assert_same_rollout(got: Chunks, wanted: Chunks) -> None:
    for (state, one), (other_state, other) in zip(got, wanted, strict=True):
        assert_same(one, other)
        assert_same_state(state, other_state)


@pytest.mark.parametrize("refined", [False, True])
def test_stages_one_by_one_are_a_step(refined: bool) -> None:
    model = world(refined=refined)
    state = start(model, 2)
    for chunk in range(3):
        parts, latents = [], None
        for stage in stages_of(model, decode=True):
            part, made = run_stages(model, state, path(2, chunk), (stage,), latents=latents)
            parts.append(part)
            latents = made.decoded
            # A stage holds its own part of the state and no other.
            kept = {name.split(".")[0] for name in part.tensors()} & {"memory", "refiner", "decoder"}
            assert kept == {{"denoise": "memory", "refine": "refiner", "decode": "decoder"}[stage]}
        state, whole = step(model, state, path(2, chunk))
        assert torch.equal(latents, whole.decoded) and torch.equal(made.frames, whole.frames)
        flat = {name: x for part in parts for name, x in part.tensors().items()}
        assert flat.keys() == state.tensors().keys()
        assert all(torch.equal(x.nan_to_num(), flat[name].nan_to_num()) for name, x in state.tensors().items())


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("captured", [False, True])
def test_overlapped_stages_change_no_bit(refined: bool, captured: bool) -> None:
    plain = world(refined=refined)
    model = with_graphs(plain, ChunkGraphs(repeat)) if captured else plain
    lanes = InTurn()
    wanted = rollout(plain, start(plain), path(1, 0, CHUNKS))
    assert_same_rollout(without_streams(model, start(model), lanes), wanted)
    stages = stages_of(model, decode=True)
    # While the third chunk is denoised, the second is refined or decoded, and the first decoded where all three run.
    assert lanes.ran[: 6 if refined else 3] == [stage for n in range(len(stages)) for stage in stages[n::-1]]
    assert len(lanes.handed) == CHUNKS and lanes.drained


def test_latents_alone_and_worlds_of_different_ages() -> None:
    model = world(refined=True)
    plans = [start(model).plan() for _ in range(2)]
    wanted = rollout(model, plans[0], path(1, 0, 3), decode=False)
    assert_same_rollout(without_streams(model, plans[1], InTurn(), decode=False, chunks=3), wanted)
    old = mixed(model)
    wanted = rollout(model, old.clone(), path(2, 2, 3))
    assert_same_rollout(without_streams(model, old, InTurn(), first=2, chunks=3), wanted)


def test_noise_can_be_given() -> None:
    model = world()
    noise = torch.randn(1, 4, 8, 4, 5, generator=torch.Generator().manual_seed(4))
    state, outputs = start(model), [output for _, output in rollout(model, start(model), path(1, 0, 2), noise=noise)]
    for chunk, output in enumerate(outputs):
        state, wanted = step(model, state, path(1, chunk), noise=noise[:, 2 * chunk : 2 * chunk + 2])
        assert_same(output, wanted)
    with pytest.raises(StateError, match="noise has shape"):
        rollout(model, start(model), path(1, 0, 2), noise=noise[:, :3])


@pytest.mark.parametrize("overlap", [False, True])
def test_who_stops_goes_on_from_the_last_state(overlap: bool) -> None:
    model = world(refined=True)
    begun, lanes = start(model), InTurn()
    rolled = without_streams(model, begun, lanes) if overlap else rollout(model, begun, path(1, 0, CHUNKS))
    first, _ = next(rolled)
    with pytest.raises(SpentStateError):
        begun.check_usable()
    second, _ = next(rolled)
    with pytest.raises(SpentStateError):
        first.check_usable()
    rolled.close()
    assert lanes.drained == overlap
    wanted = list(rollout(model, start(model), path(1, 0, 3)))
    assert_same_state(second, wanted[1][0])
    assert_same(step(model, second, path(1, 2))[1], wanted[2][1])


@pytest.mark.parametrize("limit", [0, 4, 9])
def test_an_interrupt_leaves_the_last_state(limit: int) -> None:
    model, lanes = world(refined=True), InTurn(limit)
    states = [start(model)]
    with pytest.raises(KeyboardInterrupt):
        for state, _ in without_streams(model, states[0], lanes):
            states.append(state)
    done = len(states) - 1
    assert lanes.drained and done == {0: 0, 4: 0, 9: 2}[limit]
    wanted = list(rollout(model, start(model), path(1, 0, done + 1)))
    assert_same(step(model, states[-1], path(1, done))[1], wanted[-1][1])


def test_where_stages_cannot_overlap_it_is_said() -> None:
    model = world()
    state = start(model)
    with pytest.raises(BackendError, match=r"the model computes on a CPU; .* Use pipeline=False"):
        rollout(model, state, path(1, 0, 2), pipeline=True)
    pictures = torch.zeros(1, 32, 40, 3, dtype=torch.uint8)
    poses = torch.cat([torch.eye(4, dtype=torch.float64)[None, None], path(1, 0, 2)], dim=1)
    with pytest.raises(BackendError, match="pipeline is True"):
        generate(model, pictures, poses, seeds=[0], pipeline=True)
    state.check_usable()
    offload_part(model.denoiser, "parts", torch.device("cpu"))
    with pytest.raises(BackendError, match="weights are offloaded"):
        rollout(model, state, path(1, 0, 2), pipeline=True)
    whole = WorldModel.random(dataclasses.replace(tiny_config(), variant="teacher"))
    with pytest.raises(ConfigError, match="pipeline is True for a teacher model"):
        generate(whole, pictures, poses, seeds=[0], pipeline=True)


def test_a_path_is_refused_before_anything_is_computed() -> None:
    model = world()
    state, poses = start(model), path(1, 0, 2)
    with pytest.raises(PoseError, match=r"\[B, 8 k, 4, 4\]"):
        rollout(model, state, poses[:, :12])
    poses[:, 12, 0, 0] = 2
    with pytest.raises(PoseError):
        rollout(model, state, poses)
    with pytest.raises(StateError, match='tier "plan"'):
        rollout(model, state.plan(), path(1, 0, 2))
    state.check_usable()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA streams")
@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_streams_change_no_bit(refined: bool, captured: bool, batch: int) -> None:
    model = world("cuda", refined=refined, window=9)
    model = with_graphs(model, ChunkGraphs()) if captured else model
    wanted = list(rollout(model, start(model, batch), path(batch, 0, 12)))
    # Twice: graphs are recorded the first time. Nothing is read before the end, and then each chunk as it comes.
    rolled = list(rollout(model, start(model, batch), path(batch, 0, 12), pipeline=True))
    assert_same_rollout(iter(rolled), iter(wanted))
    again = rollout(model, start(model, batch), path(batch, 0, 12), pipeline=True)
    assert_same_rollout(again, iter(wanted))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA streams")
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("own_stream", [False, True])
def test_a_caller_may_step_other_worlds_meanwhile(captured: bool, own_stream: bool) -> None:
    model = world("cuda", refined=True)
    model = with_graphs(model, ChunkGraphs()) if captured else model
    wanted = []
    for state, output in rollout(model, start(model), path(1, 0, 10)):
        wanted.append((output, step(model, state.plan(), path(1, 20), decode=False)[1]))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()) if own_stream else nullcontext():
        rolled = rollout(model, start(model), path(1, 0, 10), pipeline=True)
        for (state, output), (expected, fork) in zip(rolled, wanted, strict=True):
            # Whole chunks and latents alone, by graphs that may be those of the rollout; no tensor is kept for long.
            assert_same(step(model, state.plan(), path(1, 20), decode=False)[1], fork)
            step(model, state.clone(), path(1, 20))
            assert_same(output, expected)
            del state, output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA streams")
def test_worlds_of_different_ages_and_early_ends_on_streams() -> None:
    model = with_graphs(world("cuda", refined=True), ChunkGraphs())
    old = mixed(model)
    wanted = list(rollout(model, old.clone(), path(2, 2, 6)))
    rolled = rollout(model, old, path(2, 2, 6), pipeline=True)
    for _ in range(3):
        state, _ = next(rolled)
    rolled.close()
    assert_same_state(state, wanted[2][0])
    assert_same_rollout(rollout(model, state, path(2, 5, 3), pipeline=True), iter(wanted[3:]))
