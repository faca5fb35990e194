"""Worlds along a trajectory that is known beforehand, chunk after chunk; on a GPU, if asked, with the stages of
neighbouring chunks at the same time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sanawm_env.advance import Stage, holding, stages_of
from sanawm_env.chunk import run_stages
from sanawm_env.errors import BackendError, PoseError
from sanawm_env.model.offload import is_offloaded
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.world import WorldModel, check_noise, check_step, step

T = TypeVar("T")
Chunks = Iterator[tuple[WorldState, StepOutput]]


def rollout(
    model: WorldModel,
    state: WorldState,
    poses: Tensor | np.ndarray,
    *,
    noise: Tensor | None = None,
    decode: bool = True,
    pipeline: bool = False,
) -> Chunks:
    """Every world advanced along its poses: for each chunk the state after it and what it made, as `world.step` gives
    them.

    poses: [B, k F, 4, 4] camera-to-world in the caller's world, of k chunks. noise: [B, k n, channels, h, w] instead of
    each world's own. decode: as in `step`. pipeline: chunk k + 1 is denoised while chunk k is refined and chunk k - 1
    decoded, on CUDA streams of their own; what comes out is the same, bit for bit, in less time and with the memory of
    up to two chunks more. It needs a model that computes on a GPU and keeps its weights there, else BackendError.

    Each state is spent once the next one is there, the given one too. An error, an interrupt, or a caller who stops
    early leaves the last state that came out as it is, to go on from. Raises like `step`, before anything is computed.
    """
    state.check_usable()
    paths = _split(model, state, poses, decode)
    draws: Sequence[Tensor | None] = [None] * len(paths)
    if noise is not None:
        draws = check_noise(model.config, noise, state.batch_size, chunks=len(paths))
    if not pipeline:
        return _in_turn(model, state, paths, draws, decode)
    check_pipeline(model)
    stages = stages_of(model, decode=decode)
    return overlapped(model, state, paths, draws, stages, Streams(model.device, stages))


def check_pipeline(model: WorldModel) -> None:
    """BackendError where stages cannot run at the same time."""
    obstacle = "the model computes on a CPU" if model.device.type == "cpu" else ""
    if any(is_offloaded(part) for part in (model.denoiser, model.autoencoder, model.refiner) if part is not None):
        obstacle = "the model's weights are offloaded and come to the GPU in turns"
    if obstacle:
        raise BackendError(
            f"pipeline is True, but {obstacle}; allowed is a model whose weights stay on a GPU. Use pipeline=False, "
            "which gives the same frames."
        )


def _split(model: WorldModel, state: WorldState, poses: Tensor | np.ndarray, decode: bool) -> list[Tensor]:
    path, count = torch.as_tensor(poses, dtype=torch.float64).cpu(), model.config.frames_per_chunk
    if path.ndim != 4 or path.shape[1] < 1 or path.shape[1] % count:
        raise PoseError(
            f"poses have shape {tuple(path.shape)}, allowed is [B, {count} k, 4, 4] with k >= 1: whole chunks; cut or "
            "extend the trajectory."
        )
    return [check_step(model, state, part, decode) for part in path.split(count, dim=1)]


def _in_turn(
    model: WorldModel, state: WorldState, paths: Sequence[Tensor], draws: Sequence[Tensor | None], decode: bool
) -> Chunks:
    for path, draw in zip(paths, draws, strict=True):
        state, output = step(model, state, path, noise=draw, decode=decode)
        yield state, output


class Lanes(Protocol):
    """Where the stages of `overlapped` run."""

    def run(self, stage: Stage, work: Callable[[], T], after: Any) -> tuple[T, Any]:
        """What `work` gives, in the stage's lane behind all that is there, once `after` is done; and what it will have
        done.
        """

    def hand_over(self, done: Any, tensors: Sequence[Tensor]) -> None:
        """Lets the caller read these tensors, once `done` is done."""

    def wait(self, done: Any) -> None:
        """Returns once `done` is done."""

    def drain(self) -> None:
        """Returns once nothing is under way."""


class Streams:
    """A CUDA stream a stage, behind what the caller has asked of the device so far."""

    def __init__(self, device: torch.device, stages: Sequence[Stage]) -> None:
        self._device = device
        self._streams = {stage: torch.cuda.Stream(device) for stage in stages}
        for stream in self._streams.values():
            stream.wait_stream(torch.cuda.current_stream(device))

    def run(self, stage: Stage, work: Callable[[], T], after: torch.cuda.Event | None) -> tuple[T, torch.cuda.Event]:
        stream = self._streams[stage]
        with torch.cuda.stream(stream):
            if after is not None:
                stream.wait_event(after)
            return work(), stream.record_event()

    def hand_over(self, done: torch.cuda.Event, tensors: Sequence[Tensor]) -> None:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(done)
        for x in tensors:
            if x.is_cuda:
                # Their memory is a lane's, which must not reuse it before the caller's stream has read it.
                x.record_stream(stream)

    def wait(self, done: torch.cuda.Event) -> None:
        done.synchronize()

    def drain(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()


@dataclass
class _Chunk:
    """A chunk on its way. passed: how many stages. state: the parts that these have replaced. done: by the last."""

    path: Tensor
    noise: Tensor | None
    passed: int = 0
    state: WorldState | None = None
    output: StepOutput | None = None
    done: Any = None

    def take(self, after: WorldState, made: StepOutput) -> None:
        """Adds what one more stage made."""
        if self.state is None or self.output is None:
            # A copy, since states that are handed out are spent later, and `after` is read on.
            self.state, self.output = replace(after), made
        else:
            before, output = self.state, self.output
            self.state = replace(
                before, refiner=after.refiner or before.refiner, decoder=after.decoder or before.decoder
            )
            refined = output.refined if made.refined is None else made.refined
            self.output = replace(output, frames=made.frames, refined=refined)
        self.passed += 1


def overlapped(
    model: WorldModel,
    state: WorldState,
    paths: Sequence[Tensor],
    draws: Sequence[Tensor | None],
    stages: tuple[Stage, ...],
    lanes: Lanes,
) -> Chunks:
    """`rollout` with each chunk a stage ahead of the one that follows it. Every tensor lives until its chunk has passed
    all stages on the device, which also keeps the host from running ahead of it.
    """
    parts = {stage: holding(state, (stage,)) for stage in stages}
    coming, under_way = deque(zip(paths, draws, strict=True)), deque[_Chunk]()
    try:
        while coming or under_way:
            if coming:
                under_way.append(_Chunk(*coming.popleft()))
            for chunk in under_way:
                _advance(model, chunk, parts, stages[chunk.passed], lanes)
            first = under_way[0]
            if first.passed == len(stages):
                assert first.state is not None and first.output is not None
                lanes.hand_over(first.done, [*first.state.tensors().values(), *_tensors(first.output)])
                state.spend()
                state = first.state
                yield state, first.output
                lanes.wait(first.done)
                under_way.popleft()
    finally:
        lanes.drain()


def _advance(model: WorldModel, chunk: _Chunk, parts: dict[Stage, WorldState], stage: Stage, lanes: Lanes) -> None:
    """One stage of a chunk, in the stage's lane; `parts` holds the state that the stage left after the chunk before."""

    def work() -> tuple[WorldState, StepOutput]:
        latents = None if chunk.output is None else chunk.output.decoded
        return run_stages(model, parts[stage], chunk.path, (stage,), noise=chunk.noise, latents=latents)

    (parts[stage], made), chunk.done = lanes.run(stage, work, chunk.done)
    chunk.take(parts[stage], made)


def _tensors(output: StepOutput) -> list[Tensor]:
    return [x for x in (output.frames, output.latents, output.refined) if x is not None]
