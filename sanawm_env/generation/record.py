"""The record of a job: one line of JSON an episode, whether it was stored, and why not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from sanawm_env.datasets import files
from sanawm_env.datasets.atomic import appearing
from sanawm_env.datasets.layout import METADATA
from sanawm_env.datasets.lock import WriterLock
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.writer import LOCK
from sanawm_env.errors import StorageError

STORE, RECORD = "episodes.zarr", "episodes.jsonl"
Line = dict[str, Any]
PATIENCE = 10.0  # seconds


class Record:
    """Appends lines to `folder`/episodes.jsonl. A line is written before its episode is stored, so that every stored
    episode has one; a line whose episode is missing means that it was cut off in between and is made again. durable: as
    of `EpisodeWriter`."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._durable = folder / RECORD, durable
        with files.storing(self._path):
            self._file = self._path.open("a+b")
            self._drop_half_a_line()

    def write(self, told: Iterable[Line]) -> None:
        content = b"".join(json.dumps(line).encode() + b"\n" for line in told)
        if not content:
            return
        with files.storing(self._path):
            self._file.write(content)
            self._file.flush()
            if self._durable:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop_half_a_line(self) -> None:
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)


def writer_folder(folder: Path, index: int) -> Path:
    """Of writer `index` of the worker whose folder this is: beside it."""
    return folder.with_name(f"{folder.name}.{index}")


def folders_of(folder: Path) -> list[Path]:
    """A worker's folder and those of its writers, where they are there."""
    return [one for one in (folder, *sorted(folder.parent.glob(f"{folder.name}.*"))) if one.is_dir()]


def settled(store: Path) -> None:
    """Returns when nobody writes to a store any more, if there is one: a process whose parent was killed notices it
    when it has written what it was about to. StorageError when it goes on for long."""
    end = time.monotonic() + PATIENCE
    while (store / METADATA).exists():
        try:
            WriterLock(store / LOCK).release()
            break
        except StorageError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def lines(folder: Path) -> Iterator[Line]:
    """The whole lines of a folder's record, none where there is no record."""
    path = folder / RECORD
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if line.endswith(b"\n"):
            yield json.loads(line)


def finished(folder: Path, job: bytes) -> dict[int, Line]:
    """The record of every episode that a folder is done with, by number: rejected ones, and stored ones that are
    there."""
    stored = stored_numbers(folder, job)
    return {line["episode"]: line for line in lines(folder) if not line["stored"] or line["episode"] in stored}


def stored_numbers(folder: Path, job: bytes) -> set[int]:
    """Numbers of the episodes of a job in a folder's store."""
    if not (folder / STORE / METADATA).exists():
        return set()
    store = EpisodeStore(folder / STORE)
    ids = [store.identity(index) for index in range(len(store))]
    return {int.from_bytes(one[8:], "big") for one in ids if one[:8] == job}


def tidy(folder: Path, job: bytes) -> None:
    """Drops the lines of episodes that were cut off before they were stored; nothing may be writing to the folder."""
    kept = finished(folder, job)
    if len(kept) < sum(1 for _ in lines(folder)):
        with appearing(folder / RECORD) as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept.values()), encoding="utf-8")


def adopt(folder: Path, source: Path, known: Iterable[int]) -> None:
    """Appends the lines of another folder's record, those of episodes in `known` left out."""
    have = set(known)
    with Record(folder) as record:
        record.write(line for line in lines(source) if line["episode"] not in have)
