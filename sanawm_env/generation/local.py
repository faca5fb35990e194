"""Workers as processes of this machine, one a device."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from sanawm_env.errors import SanaWMError, WorkerError
from sanawm_env.generation.config import Generate
from sanawm_env.generation.record import RECORD
from sanawm_env.generation.worker import Timing, Worker

LOOK = 0.5  # seconds between two looks at how far the workers are


def devices(config: Generate) -> list[str | None]:
    """The device of each worker."""
    import torch

    from sanawm_env.placement import find_device

    found = find_device(config.device)
    cards = torch.cuda.device_count() if found.type == "cuda" and found.index is None else 1
    workers = config.workers or cards
    return [f"cuda:{worker % cards}" if cards > 1 else config.device for worker in range(workers)]


def launch(
    config: Generate,
    numbers: Sequence[int],
    parts: Path,
    devices: Sequence[str | None],
    progress: Callable[[int], object],
) -> list[Timing]:
    """Makes the episodes `numbers` in one process a device, each with a folder of its own in `parts`.

    WorkerError when a process ends early, once the others have ended; the error of a worker where it raised one.
    """
    # spawn: a forked child of a process that uses CUDA or threads cannot be trusted.
    context = multiprocessing.get_context("spawn")
    running: dict[Any, tuple[int, Any]] = {}  # by the end of the pipe that a worker tells its end through
    for index, device in enumerate(devices[: len(numbers)]):
        ours, theirs = context.Pipe(duplex=False)
        share, folder = list(numbers[index :: len(devices)]), part(parts, index)
        process = context.Process(target=_work, args=(theirs, config, share, folder, device), name=folder.name)
        process.start()
        theirs.close()
        running[ours] = (index, process)
    try:
        return _collect(running, parts, progress)
    except BaseException:
        for _, process in running.values():
            process.terminate()  # what it has stored is safe at any instant
        raise
    finally:
        for _, process in running.values():
            process.join()


def part(parts: Path, index: int) -> Path:
    """The folder of worker `index`."""
    return (parts / f"worker-{index}").absolute()


def written(parts: Path) -> int:
    """How many episodes the workers have recorded."""
    return sum(record.read_bytes().count(b"\n") for record in parts.glob(f"*/{RECORD}"))


def _collect(running: dict[Any, tuple[int, Any]], parts: Path, progress: Callable[[int], object]) -> list[Timing]:
    timings, lost, seen, waiting = [], list[BaseException](), 0, set(running)
    while waiting:
        ready = wait(list(waiting), LOOK)
        count = written(parts)
        progress(count - seen)
        seen = count
        for pipe in ready:
            index, process = running[pipe]
            waiting.remove(pipe)
            told = _told(pipe)
            process.join()
            if isinstance(told, dict):
                timings.append(told)
            else:
                lost.append(told or WorkerError(_message(index, process.exitcode)))
    if lost:
        raise lost[0]
    return timings


def _message(index: int, code: int) -> str:
    return (
        f"worker {index} ended early with exit status {code}, expected 0; what it had finished is kept. Run the same "
        "command again to make the rest."
    )


def _told(pipe: Any) -> Timing | BaseException | None:
    try:
        told: Timing | BaseException = pipe.recv()
    except EOFError:  # it was killed
        return None
    return told


def _work(pipe: Connection, config: Generate, numbers: list[int], folder: Path, device: str | None) -> None:
    """What a process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with Worker(config, folder, device=device) as worker:
            pipe.send(worker.run(numbers))
    except SanaWMError as error:
        pipe.send(error)
    except KeyboardInterrupt:  # of the whole group, which the parent reports
        os._exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
