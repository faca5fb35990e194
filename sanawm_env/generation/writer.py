"""What a process that writes does: episodes of some slots of a batch into a store of its own, until its parent ends."""

from __future__ import annotations

import contextlib
import pickle
import signal
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import torch

from sanawm_env.errors import WorkerError
from sanawm_env.generation.config import Generate
from sanawm_env.generation.recorder import Recorder
from sanawm_env.generation.ring import Ring


def write(pipe: Connection, config: Generate, folder: Path) -> None:
    """Takes orders from `pipe` and tells through it what became of them; see `writers.Writers`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent says what to do
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        try:
            _serve(pipe, config, folder)
        except Exception as error:
            pipe.send(("failed", _sendable(error)))


def _serve(pipe: Connection, config: Generate, folder: Path) -> None:
    world, layout = pipe.recv()
    ring = Ring(layout, recv_handle(pipe))
    recorder = Recorder(world, folder, config, lambda line: pipe.send(("done", line)))
    try:
        pipe.send(("ready", None))
        while (order := pipe.recv()) is not None:
            kind, what = order
            if kind == "select":
                recorder.select(what)
            elif kind == "flush":
                pipe.send(("flushed", None))
            else:
                pipe.send(("free", _take(recorder, ring, kind, **what)))
    finally:
        recorder.close()


def _take(
    recorder: Recorder, ring: Ring, kind: str, block: int, shape: tuple[int, int], mine: slice, **what: Any
) -> int:
    """Writes a step of the ring, or a start. shape: worlds and frames of it. mine: which of the worlds are of this
    writer, to whom they are 0, 1, ..."""
    info = {**what.pop("info"), "frames": ring.pictures(block, *shape)[mine]}
    if kind == "begin":
        recorder.begin_planned(info, **what)
    else:
        recorder.add(info, measured=ring.measured(block, *shape).of(mine), **what)
    return block


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error of some library that cannot be taken apart and put together
        return WorkerError(f"a process that writes failed by {type(error).__name__}: {error}")
    return error
