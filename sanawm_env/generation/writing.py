"""Who writes what a batch of worlds shows: a thread beside the one that steps, or processes (`writers`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sanawm_env.generation.background import Background
from sanawm_env.generation.config import Generate
from sanawm_env.generation.filters import measure
from sanawm_env.generation.plan import Plan
from sanawm_env.generation.record import Line
from sanawm_env.generation.recorder import Recorder
from sanawm_env.wrappers.recorded import Recorded

Done = Callable[[Line], object]
MOST = 4  # writers of a worker
OTHERS = 4  # cores left to what steps, and to what draws paths


class Writing(Protocol):
    """Writes the episodes of a batch of worlds. waited: seconds of the run in which its caller stood still.

    Whatever goes wrong is raised by the next call, or at the end of the run.
    """

    waited: float

    def open(self, world: Recorded) -> None:
        """Returns when it is ready to write; may be called again for an environment of the same kind."""

    def run(self, worlds: int) -> AbstractContextManager[None]:
        """Around the calls that follow, of a batch of so many worlds; its end returns once all is stored."""

    def begin(
        self, info: Mapping[str, Any], slots: Sequence[int], plans: Sequence[Plan], seconds: float, frames: Tensor
    ) -> None:
        """Planned episodes begin in some slots. info: of the reset. frames: uint8 [B, T, H, W, 3] on any device, not
        changed any more. seconds: that it took."""

    def step(
        self, info: Mapping[str, Any], actions: np.ndarray, seconds: float, frames: Tensor, latents: Tensor
    ) -> None:
        """A step of all worlds. latents: [B, n, C, h, w], as the frames."""

    def select(self, kept: Sequence[int]) -> None:
        """Goes on with these slots alone, which are 0, 1, ... from now on."""

    def close(self) -> None:
        """Closes the stores; an episode that is not over leaves nothing. May be called again."""


class WritingThread:
    """Writes into a folder from a thread of this process."""

    def __init__(self, config: Generate, folder: Path, done: Done) -> None:
        self.waited = 0.0
        self._config, self._folder, self._done = config, folder, done
        self._recorder: Recorder | None = None
        self._calls: Background | None = None

    def open(self, world: Recorded) -> None:
        if self._recorder is None:
            self._recorder = Recorder(world, self._folder, self._config, self._done)

    @contextlib.contextmanager
    def run(self, worlds: int) -> Iterator[None]:
        calls = self._calls = Background(self._config.queue)
        try:
            with calls:
                yield
        finally:
            self.waited, self._calls = calls.waited, None

    def begin(
        self, info: Mapping[str, Any], slots: Sequence[int], plans: Sequence[Plan], seconds: float, frames: Tensor
    ) -> None:
        calls, recorder = self._now()
        told = {**info, "frames": frames.cpu().numpy()}
        calls.submit(recorder.begin_planned, told, list(slots), list(plans), seconds)

    def step(
        self, info: Mapping[str, Any], actions: np.ndarray, seconds: float, frames: Tensor, latents: Tensor
    ) -> None:
        calls, recorder = self._now()
        told = {**info, "frames": frames.cpu().numpy()}
        calls.submit(recorder.add, told, actions, seconds, measure(frames, latents))

    def select(self, kept: Sequence[int]) -> None:
        calls, recorder = self._now()
        calls.submit(recorder.select, list(kept))

    def close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()

    def _now(self) -> tuple[Background, Recorder]:
        assert self._calls is not None and self._recorder is not None
        return self._calls, self._recorder


def count_writers(config: Generate, device: torch.device) -> int:
    """Processes that write for one worker on this device; 0 is the thread."""
    if config.writers is not None:
        return config.writers
    if device.type == "cpu":  # the worlds need every core themselves
        return 0
    cores = len(os.sched_getaffinity(0)) // (config.workers or torch.cuda.device_count() or 1)
    return min(MOST, max(0, cores - OTHERS))


def make_writing(config: Generate, folder: Path, count: int, done: Done) -> Writing:
    """What writes into `folder`, or, by `count` processes, into folders beside it (`record.folders_of`)."""
    if not count:
        return WritingThread(config, folder, done)
    from sanawm_env.generation.writers import Writers

    return Writers(config, folder, count, done)
