"""One writer a store: a lock that the kernel takes back when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path

from sanawm_env.errors import StorageError


class WriterLock:
    """Holds the file `path` from construction to `release`. StorageError says who holds it already.

    The kernel keeps the lock, not the file: it may lie about after a crash without meaning anything.
    """

    def __init__(self, path: Path):
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._handle)
            self.release()
            raise StorageError(
                f"{path.parents[2]} has a writer already ({holder}); wait for it, or give every process a store of its "
                "own and join them with `sanawm merge`"
            ) from None
        except OSError as error:
            self.release()
            raise StorageError(
                f"{path} cannot be locked ({error.strerror}); put the store on a file system with flock"
            ) from error
        self._sign()
        _held.add(self)

    @property
    def held(self) -> bool:
        """False after `release`, and in a child that a fork made of the holder."""
        return self._handle >= 0

    def release(self) -> None:
        """Lets others write; may be called again."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _sign(self) -> None:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(who).encode(), 0)
        except OSError:  # a full disk: the lock holds all the same
            return


def _holder(handle: int) -> str:
    try:
        who = json.loads(os.pread(handle, 4096, 0))
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it did not say who it is"


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _let_go() -> None:
    # A forked child shares its parent's lock and would hold it on after the parent's death.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go)
