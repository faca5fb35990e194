"""Policies that answer with chunks of actions, from anywhere: asked ahead of time, overlaps joined by a rule."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from typing import Any

import numpy as np

from sanawm_env.errors import ActionError, ConfigError, PolicyError

# Observations with a row a world, and which worlds' episodes have begun since the last call, bool [B]: actions of the
# coming T steps [B, T, ...].
Chunks = Callable[[Any, np.ndarray], np.ndarray]


@dataclass(kw_only=True)
class Ahead:
    """Of B worlds: actions of the coming steps [B, T, ...] and how many of them each has left [B] (they are the last
    ones of its row); begun [B], episodes that the source has not been told of; what is on its way, for which rows, and
    steps taken since it was asked for."""

    actions: np.ndarray | None
    left: np.ndarray
    begun: np.ndarray
    coming: Future[np.ndarray] | None = None
    asked: np.ndarray | None = None
    since: int = 0


class ChunkedPolicy:
    """Drives worlds by a source of action chunks, which may be slow: any callable, or a policy server (`remote`).

    ahead: asks for the next chunk when a world has so many actions left, in a thread, and goes on with those it has; 0
    asks when none is left and waits. What a chunk says of steps that have passed meanwhile is dropped. share: where old
    and new chunk overlap, action = share * new + (1 - share) * old: 1 replaces, less is a weighted average. timeout:
    seconds that a world without actions waits before it is a PolicyError.

    All worlds of a batch are asked for together, and those use the answer that had asked: what a world does depends on
    its own observations alone. With ahead > 0 it also depends on how quickly answers come. A world whose episode begins
    drops its actions and asks at once.
    """

    def __init__(
        self,
        source: Chunks,
        observation_space: Any,
        action_space: Any,
        *,
        ahead: int = 0,
        share: float = 1.0,
        timeout: float = 10.0,
    ) -> None:
        if ahead < 0 or not 0 < share <= 1 or not timeout > 0:
            raise ConfigError(
                f"ahead is {ahead}, share {share}, timeout {timeout}; allowed are >= 0 steps, above 0 up to 1, and "
                "seconds above 0."
            )
        self.source, self.observation_space, self.action_space = source, observation_space, action_space
        self.ahead, self.share, self.timeout = ahead, share, timeout
        self._asking = ThreadPoolExecutor(1, "action-chunks")

    def initial_state(self, worlds: int) -> Ahead:
        return Ahead(actions=None, left=np.zeros(worlds, np.int64), begun=np.ones(worlds, bool))

    def act(self, observation: Any, state: Ahead) -> tuple[np.ndarray, Ahead]:
        until = time.monotonic() + self.timeout
        if state.coming is not None and state.coming.done():
            self._receive(state, until)
        if state.coming is None and (state.left <= self.ahead).any():
            self._ask(observation, state)
        while not state.left.all():
            # What is on its way may have been asked for before some episodes began.
            if state.coming is None:
                self._ask(observation, state)
            self._receive(state, until)
        assert state.actions is not None
        rows, length = np.arange(len(state.left)), state.actions.shape[1]
        actions = state.actions[rows, length - state.left]
        state.left = state.left - 1
        state.since += 1
        return actions, state

    def reset(self, state: Ahead, worlds: np.ndarray) -> Ahead:
        state.left = np.where(worlds, 0, state.left)
        state.begun = state.begun | worlds
        if state.asked is not None:
            state.asked = state.asked & ~worlds
        return state

    def close(self) -> None:
        """Lets go of the thread; an answer that is still on its way is not waited for."""
        self._asking.shutdown(wait=False, cancel_futures=True)

    def _ask(self, observation: Any, state: Ahead) -> None:
        kept = {name: _copy(x) for name, x in observation.items()} if isinstance(observation, dict) else None
        given = _copy(observation) if kept is None else kept
        state.coming = self._asking.submit(self.source, given, state.begun.copy())
        state.asked, state.since = state.left <= self.ahead, 0
        state.begun = np.zeros_like(state.begun)

    def _receive(self, state: Ahead, until: float) -> None:
        """Takes what was asked for, waiting for it; the state stays as it was where nothing usable comes."""
        coming, asked = state.coming, state.asked
        assert coming is not None and asked is not None
        state.coming = state.asked = None
        try:
            chunk = np.asarray(coming.result(max(0.0, until - time.monotonic())))
        except NotYet as error:
            if coming.done():
                raise
            raise PolicyError(
                f"no actions came within {self.timeout:g} s and none are left; use a longer timeout or ask earlier "
                f"(ahead, now {self.ahead} steps), or see whether what answers still runs."
            ) from error
        self._join(state, self._checked(chunk, len(state.left))[:, state.since :], asked)

    def _join(self, state: Ahead, fresh: np.ndarray, asked: np.ndarray) -> None:
        old, length = state.actions, fresh.shape[1]
        kept = state.left if old is not None else np.zeros_like(state.left)
        most = max(length, int(kept.max()))
        joined = np.zeros((len(kept), most, *fresh.shape[2:]), np.float32)
        left = np.where(asked, length, kept)
        for row in range(len(kept)):
            before = old[row, old.shape[1] - kept[row] :] if old is not None else fresh[row, :0]
            after = before
            if asked[row]:
                after = fresh[row].copy()
                both = min(len(before), length)
                after[:both] = self.share * after[:both] + (1 - self.share) * before[:both]
            joined[row, most - len(after) :] = after
        state.actions, state.left = joined, left

    def _checked(self, chunk: np.ndarray, worlds: int) -> np.ndarray:
        shape = self.action_space.shape
        if chunk.ndim < 2 or chunk.shape[0] != worlds or not chunk.shape[1] or chunk.shape[2:] != shape:
            raise ActionError(
                f"a chunk of actions has shape {chunk.shape}, expected ({worlds}, T, {', '.join(map(str, shape))}) "
                "with T >= 1: one row a world, one action a step."
            )
        if not np.isfinite(chunk).all():
            raise ActionError("a chunk of actions holds NaN or infinity, allowed are finite numbers; check the policy.")
        return chunk.astype(np.float32)


def _copy(x: Any) -> np.ndarray:
    """Rows of an observation, as an array that nobody else changes."""
    return x.cpu().numpy().copy() if hasattr(x, "cpu") else np.array(x)
