"""Where episodes begin: rooms furnished and their first pictures rendered while the worlds still step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING

from sanawm_env.generation.plan import Plan

if TYPE_CHECKING:
    from sanawm_env.start import Start

AHEAD = 2  # groups


class Starts:
    """Starts of the episodes that were announced, a function of each plan alone.

    make: of some plans. group: episodes that one call makes. ahead: makes the groups that come next; None to make none
    before it is asked for, on a device that would have to leave the worlds for it.
    """

    def __init__(self, make: Callable[[Sequence[Plan]], Start], group: int, ahead: Executor | None) -> None:
        self._make, self._group, self._ahead = make, group, ahead
        self._expected: deque[Plan] = deque()
        self._making: deque[tuple[list[Plan], Future[Start]]] = deque()
        self._made: dict[int, tuple[Start, int]] = {}  # a group's start and the row in it, by episode

    def expect(self, plans: Sequence[Plan]) -> None:
        """These episodes will begin, in this order."""
        if self._ahead is not None:
            self._expected.extend(plans)
            self._hurry(self._ahead)

    def take(self, plans: Sequence[Plan]) -> Start:
        """The start of these episodes, which may be named more than once here but are not asked for again."""
        from sanawm_env.start import Start

        if self._ahead is None:
            return self._make(plans)
        while any(one.number not in self._made for one in plans):
            group, future = self._making.popleft()
            start = future.result()
            self._made |= {one.number: (start, row) for row, one in enumerate(group)}
            self._hurry(self._ahead)
        rows = [self._made[one.number] for one in plans]
        for number in {one.number for one in plans}:
            del self._made[number]
        return Start.of_rows(rows)

    def _hurry(self, ahead: Executor) -> None:
        while self._expected and len(self._making) < AHEAD:
            plans = [self._expected.popleft() for _ in range(min(self._group, len(self._expected)))]
            self._making.append((plans, ahead.submit(self._make, plans)))
