"""The few operations on files that a store is made of: write a new one, flush several, put one in its place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sanawm_env.errors import StorageError

FLUSHES = 16  # at a time: the journal of a file system commits those together that wait together


def write(path: Path, content: bytes) -> None:
    """A new file."""
    path.write_bytes(content)


def move(source: Path, target: Path) -> None:
    """Puts a finished file in its place, over the one that is there, in one instant."""
    os.replace(source, target)


def flush(paths: Iterable[Path]) -> None:
    """Returns when files and folders are on the medium, so that they outlive a loss of power."""
    with ThreadPoolExecutor(FLUSHES) as pool:
        list(pool.map(_flush, paths))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns an OSError, a full disk say, into one StorageError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; the episode is dropped, every committed one is safe. "
            "Free space or choose another folder"
        ) from error
