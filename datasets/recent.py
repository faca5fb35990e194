"""What was used last is kept; what was not is let go. And threads that a process brings up when it first needs them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

from sanawm_env.errors import ConfigError

K = TypeVar("K")
V = TypeVar("V")
MOST = 8  # threads by default


class Recent(Generic[K, V]):
    """The `size` values used last, by key. Safe in threads; empty in a process that a fork or a pickle took it to."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._values: OrderedDict[K, V] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.size,)

    def get(self, key: K) -> V | None:
        """The value, None if it is not kept."""
        with self._here():
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> V:
        """Keeps a value and gives it back."""
        with self._here():
            self._values[key] = value
            if len(self._values) > self.size:
                self._values.popitem(last=False)
        return value

    def _here(self) -> threading.Lock:
        if self._process != os.getpid():  # the lock may have been taken when the fork copied it
            Recent.__init__(self, self.size)
        return self._lock


class Threads:
    """At most `count` threads, None: as many as there are cores up to 8, and one in a child process, which has
    siblings. A child brings up its own."""

    def __init__(self, count: int | None = None) -> None:
        if count is not None and count < 1:
            raise ConfigError(f"threads is {count}, allowed is 1 or more, or None for a choice by the machine.")
        self.given = count
        self._process, self._pool = -1, ThreadPoolExecutor(1)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.given,)

    @property
    def count(self) -> int:
        """How many, in this process."""
        if self.given is not None:
            return self.given
        return 1 if multiprocessing.parent_process() else min(MOST, len(os.sched_getaffinity(0)))

    def share(self, work: Callable[[int, int], None], items: int) -> None:
        """Calls work(start, stop) on stretches that make up range(items), one a thread; raises what any raised."""
        parts = min(self.count, items)
        if parts <= 1:
            work(0, items)
            return
        if self._process != os.getpid():
            self._process, self._pool = os.getpid(), ThreadPoolExecutor(self.count, "sanawm-read")
        bounds = [items * part // parts for part in range(parts + 1)]
        done, _ = wait([self._pool.submit(work, *stretch) for stretch in itertools.pairwise(bounds)])
        for one in done:
            one.result()
