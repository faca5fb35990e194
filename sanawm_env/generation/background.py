"""Calls that run one after another in a thread of their own, a few of them waiting at most."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Background:
    """Runs calls in the order in which they are given. The first one that raises ends it: what waits is dropped, and
    `submit` or the end of the `with` block raises its error. waited: seconds that `submit` stood still."""

    def __init__(self, length: int) -> None:
        self.waited = 0.0
        self._calls: queue.Queue[Callable[[], object] | None] = queue.Queue(length)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writing", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        began = time.perf_counter()
        if kind is not None:  # an interrupt, say: what waits is not worth waiting for
            self._error = self._error or error
        self._calls.put(None)
        self._thread.join()
        self.waited += time.perf_counter() - began
        if kind is None:
            self._check()

    def submit(self, function: Callable[..., object], *arguments: Any) -> None:
        """Runs `function(*arguments)` after all that was given before; waits while too many are waiting."""
        self._check()
        began = time.perf_counter()
        self._calls.put(lambda: function(*arguments))
        self.waited += time.perf_counter() - began

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._error is None:
                try:
                    call()
                except BaseException as error:
                    self._error = error
