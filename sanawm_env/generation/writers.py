"""Processes that write what a worker steps, so that Python's lock is not held where the worlds step.

Each has a range of the slots and a store of its own. Pictures and measures reach it through shared memory (`ring`),
small facts through a pipe. A step holds its place in memory until all have written their part; when no place is left,
the worker waits.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanawm_env.errors import WorkerError
from sanawm_env.generation.config import Generate
from sanawm_env.generation.plan import Plan
from sanawm_env.generation.record import Line, writer_folder
from sanawm_env.generation.ring import Filler, Layout, Ring
from sanawm_env.generation.writer import write
from sanawm_env.wrappers.recorded import Recorded
from sanawm_env.wrappers.rows import START_FACTS, STEP_FACTS

Order = tuple[str, Any] | None
ENDS = 60.0  # seconds that a process has to write what waits, and to end


class Writers:
    """As `writing.Writing`. Its processes start at once, and are ready when `open` returns."""

    def __init__(self, config: Generate, folder: Path, count: int, done: Callable[[Line], object]) -> None:
        self.waited = 0.0
        self._config, self._done = config, done
        self._state = threading.Condition()  # of the next four
        self._error: BaseException | None = None
        self._free: list[int] = []
        self._held: dict[int, int] = {}  # by block: how many have not written their part
        self._ready, self._flushed = 0, 0
        self._closing = False
        self._slots: list[slice] = []
        self._filler: Filler | None = None
        self._orders: queue.Queue[tuple[Any, dict[int, Order]] | None] = queue.Queue()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._listen)]
        # spawn: a forked child of a process that uses CUDA or threads cannot be trusted.
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = list[Any](), list[Any]()
        for index in range(count):
            ours, theirs = context.Pipe()
            told = (theirs, config, writer_folder(folder, index))
            process = context.Process(target=write, args=told, name=f"writer-{index}", daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def open(self, world: Recorded) -> None:
        if self._filler is not None:
            return
        shape = world.config
        layout = Layout(
            blocks=self._config.queue,
            worlds=self._config.batch,
            frames=shape.frames_per_chunk,
            height=shape.height,
            width=shape.width,
            channels=shape.denoiser.in_channels,
        )
        ring = Ring(layout)
        self._filler = Filler(ring, torch.device(world.device))
        self._free = list(range(layout.blocks))
        for thread in self._threads:
            thread.start()
        for pipe, process in zip(self._pipes, self._processes):
            with contextlib.suppress(OSError):  # it has ended, which the thread that listens tells
                pipe.send((world, layout))
                send_handle(pipe, ring.handle, process.pid)
        self._wait(lambda: self._ready == len(self._pipes))

    @contextlib.contextmanager
    def run(self, worlds: int) -> Iterator[None]:
        self.waited = 0.0
        bounds = [worlds * part // len(self._pipes) for part in range(len(self._pipes) + 1)]
        self._slots = [slice(*pair) for pair in itertools.pairwise(bounds)]
        yield
        with self._state:
            self._flushed = 0
        self._orders.put((None, dict.fromkeys(range(len(self._pipes)), ("flush", None))))
        self._wait(lambda: self._flushed == len(self._pipes))

    def begin(
        self, info: Mapping[str, Any], slots: Sequence[int], plans: Sequence[Plan], seconds: float, frames: Tensor
    ) -> None:
        orders = {}
        for index, mine in enumerate(self._slots):
            own = [(slot - mine.start, one) for slot, one in zip(slots, plans) if mine.start <= slot < mine.stop]
            if own:
                # The seconds of a reset are shared by the worlds that it begins.
                share = seconds * len(own) / len(slots)
                worlds, planned = zip(*own)
                orders[index] = {"worlds": worlds, "plans": planned, "seconds": share, **_rows(info, START_FACTS, mine)}
        self._hand("begin", orders, frames[:, :1], None)

    def step(
        self, info: Mapping[str, Any], actions: np.ndarray, seconds: float, frames: Tensor, latents: Tensor
    ) -> None:
        orders = {
            # The seconds of a step are shared by its worlds, whoever writes them.
            index: {"actions": actions[mine], "seconds": seconds, "batch": len(frames), **_rows(info, STEP_FACTS, mine)}
            for index, mine in enumerate(self._slots)
            if mine.stop > mine.start
        }
        self._hand("step", orders, frames, latents)

    def select(self, kept: Sequence[int]) -> None:
        orders: dict[int, Order] = {}
        bounds = [0]
        for index, mine in enumerate(self._slots):
            own = [slot - mine.start for slot in kept if mine.start <= slot < mine.stop]
            bounds.append(bounds[-1] + len(own))
            orders[index] = ("select", own)
        self._slots = [slice(*pair) for pair in itertools.pairwise(bounds)]
        self._orders.put((None, orders))

    def close(self) -> None:
        self._closing = True
        if self._filler is not None:
            self._orders.put((None, dict.fromkeys(range(len(self._pipes)))))
            self._orders.put(None)
        else:  # they wait to hear of a world
            for pipe in self._pipes:
                pipe.close()
        for process in self._processes:
            process.join(ENDS)
            process.terminate()  # where it hangs; its store is sound at any instant
            process.join()
        if self._filler is not None:
            for thread in self._threads:
                thread.join()
            for pipe in self._pipes:
                pipe.close()
            self._filler.close()
            self._filler.ring.close()
        self._filler, self._processes, self._pipes = None, [], []

    def _hand(self, kind: str, orders: dict[int, dict[str, Any]], frames: Tensor, latents: Tensor | None) -> None:
        """Gives each writer its part of what is to be put into the next free place."""
        self._wait(lambda: bool(self._free))
        assert self._filler is not None
        with self._state:
            block = self._free.pop(0)
            self._held[block] = len(orders)
        there = self._filler.fill(block, frames, latents)
        where = {"block": block, "shape": tuple(frames.shape[:2])}
        self._orders.put((there, {k: (kind, {**where, "mine": self._slots[k], **own}) for k, own in orders.items()}))

    def _wait(self, due: Callable[[], bool]) -> None:
        """Returns when it is due; raises what has gone wrong."""
        began = time.perf_counter()
        with self._state:
            self._state.wait_for(lambda: self._error is not None or due())
            if self._error is not None:
                raise self._error
        self.waited += time.perf_counter() - began

    def _fail(self, error: BaseException) -> None:
        with self._state:
            self._error = self._error or error
            self._state.notify_all()

    def _send(self) -> None:
        """A thread that hands out orders, those for a step once its pictures are there."""
        while (item := self._orders.get()) is not None:
            there, orders = item
            try:
                if there is not None:
                    there.synchronize()
            except Exception as error:
                self._fail(error)
            for index, order in orders.items():
                with contextlib.suppress(OSError):  # it has ended, which the other thread tells
                    self._pipes[index].send(order)

    def _listen(self) -> None:
        """A thread that hears what became of the orders."""
        talking: dict[Any, int] = {pipe: index for index, pipe in enumerate(self._pipes)}
        while talking:
            for ready in wait(list(talking)):
                pipe: Any = ready
                try:
                    kind, what = pipe.recv()
                except (EOFError, OSError):
                    self._part_from(self._processes[talking.pop(pipe)])
                    continue
                try:
                    self._hear(kind, what)
                except BaseException as error:  # of `done`
                    self._fail(error)

    def _part_from(self, process: Any) -> None:
        if not self._closing:
            process.join()
            self._fail(WorkerError(_message(process.name, process.exitcode)))

    def _hear(self, kind: str, what: Any) -> None:
        if kind == "done":
            self._done(what)
        elif kind == "failed":
            self._fail(what)
        else:
            with self._state:
                if kind == "free":
                    self._held[what] -= 1
                    if not self._held[what]:
                        self._free.append(what)
                self._ready += kind == "ready"
                self._flushed += kind == "flushed"
                self._state.notify_all()


def _rows(info: Mapping[str, Any], names: Sequence[str], mine: slice) -> dict[str, Any]:
    given = (*names, "latents") if "latents" in info else names
    return {"info": {name: info[name][mine] for name in given}}


def _message(name: str, code: int | None) -> str:
    return (
        f"{name} ended early with exit status {code}, expected 0; what it had finished is kept. Run the same "
        "command again to make the rest."
    )
