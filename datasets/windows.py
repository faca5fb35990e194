"""Windows of episodes for training: frames up to an instant, and the actions that follow it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sanawm_env.datasets import schema
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.union import Union, open_store
from sanawm_env.errors import ConfigError, StorageError, nearest

Batch = dict[str, np.ndarray]
# Arrays with a row an instant, and those with a row an action, which have none at the start.
SEEN = tuple(
    key for key, array in schema.EPISODE.items() if array.axes[0] == "time" and f"start_{key}" in schema.BY_KEY
)
DONE = tuple(key for key, array in schema.EPISODE.items() if array.axes[0] == "time" and key not in SEEN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """What a window holds. Instant 0 of an episode shows the picture of reset; action t leads from instant t to t + 1.

    history: instants up to that of the window, itself included. actions: how many follow it. arrays: keys of `data`;
    those that the start has too ("frames", "poses", "intrinsics", "truth_depth") have a row an instant of the history,
    the others ("actions", "rewards", "terminated") a row an action. every: instants from a window to the next. padded:
    a window at every instant with an action, whose rows before the start and after the end repeat the nearest one and
    are marked; without, only windows that lie inside.
    """

    history: int = 1
    actions: int = 1
    arrays: tuple[str, ...] = ("frames", "actions")
    every: int = 1
    padded: bool = True

    def __post_init__(self) -> None:
        if min(self.history, self.actions, self.every) < 1:
            raise ConfigError(
                f"history is {self.history}, actions {self.actions}, every {self.every}; allowed is 1 or more of each."
            )
        for key in self.arrays:
            if key not in (*SEEN, *DONE):
                raise ConfigError(f"a window has no array {key!r}; {nearest(key, (*SEEN, *DONE))}")


class Windows:
    """Every window of the episodes of a store, or of several, in their order; len(windows) of them.

    source: a store, a union, or what `open_store` takes. episodes: those that are used, all if None; a split into
    training and validation is two of these. StorageError where the store lacks an array of the spec.
    """

    def __init__(
        self,
        source: EpisodeStore | Union | Path | str | Sequence[Path | str],
        spec: WindowSpec,
        *,
        episodes: Iterable[int] | None = None,
    ) -> None:
        opened = source if isinstance(source, EpisodeStore | Union) else open_store(source)
        self.spec = spec
        self.stores = opened.stores if isinstance(opened, Union) else [opened]
        self._number = _choose(episodes, len(opened))
        self._store, self._episode, self._first, self._length = self._list_episodes()
        reach = (0, 0) if spec.padded else (spec.history - 1, spec.actions - 1)
        self._begin = reach[0]
        counts = np.maximum(0, -(-(self._length - sum(reach)) // spec.every))
        self._ends = np.cumsum(counts)
        for store in self.stores:
            if missing := sorted(set(spec.arrays) - store.keys) if len(store) else []:
                raise StorageError(f"{store.place} has no {missing}; choose of what it has: {sorted(store.keys)}")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, numbers: Sequence[int] | np.ndarray) -> Batch:
        """The windows with these numbers, B rows each: the arrays of the spec by key, [B, history, ...] or
        [B, actions, ...]; "history_valid" [B, history] and "actions_valid" [B, actions], false where a row is padding;
        "episode" [B], counted over all stores, and "instant" [B].

        Frames and actions after an episode's end are never among the valid ones. The bytes of all windows are read and
        decoded together. StorageError where a file is missing or damaged.
        """
        wanted = np.asarray(numbers, np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"windows {wanted.min()} to {wanted.max()} of {len(self)}")
        row = np.searchsorted(self._ends, wanted, side="right")
        nth = wanted - np.concatenate([[0], self._ends])[row]
        instant = self._begin + nth * self.spec.every
        seen = instant[:, None] + np.arange(1 - self.spec.history, 1)
        done = instant[:, None] + np.arange(self.spec.actions)
        last = self._length[row][:, None] - 1
        batch = {key: self._gather(key, row, np.maximum(seen, 0)) for key in self.spec.arrays if key in SEEN}
        batch |= {key: self._gather(key, row, np.minimum(done, last)) for key in self.spec.arrays if key in DONE}
        batch |= {"history_valid": seen >= 0, "actions_valid": done <= last}
        return batch | {"episode": self._number[row], "instant": instant}

    def _gather(self, key: str, row: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Array `key` at instants, or rows of actions, [B, n] of these episodes."""
        owners, flat = np.repeat(row, places.shape[1]), places.reshape(-1)
        parts = []
        for number in np.unique(self._store[owners]):
            mine = np.flatnonzero(self._store[owners] == number)
            parts.append((mine, self._read(key, self.stores[number], owners[mine], flat[mine])))
        if len(parts) == 1:
            rows = parts[0][1]
        else:
            rows = np.empty((len(flat), *parts[0][1].shape[1:]), parts[0][1].dtype)
            for mine, values in parts:
                rows[mine] = values
        return rows.reshape(*places.shape, *rows.shape[1:])

    def _read(self, key: str, store: EpisodeStore, owners: np.ndarray, places: np.ndarray) -> np.ndarray:
        if key in SEEN:
            return store.at(key, self._episode[owners], places)
        return store.rows_at(key, self._first[owners] + places)

    def _list_episodes(self) -> tuple[np.ndarray, ...]:
        """Of each episode that is used: its store, its number there, its first row and its valid rows."""
        store = np.concatenate([np.full(len(one), number) for number, one in enumerate(self.stores)])
        episode = np.concatenate([np.arange(len(one)) for one in self.stores])
        first = np.concatenate([np.concatenate([[0], one.ends])[:-1] for one in self.stores])
        length = np.concatenate([_valid_rows(one) for one in self.stores])
        return tuple(values[self._number].astype(np.int64) for values in (store, episode, first, length))


def _choose(episodes: Iterable[int] | None, count: int) -> np.ndarray:
    if episodes is None:
        return np.arange(count)
    chosen = np.asarray(list(episodes), np.int64)
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < count:
        raise StorageError(f"episodes {chosen.min()} to {chosen.max()} were chosen of {count}; choose of those there")
    return chosen


def _valid_rows(store: EpisodeStore) -> np.ndarray:
    """Rows of each episode up to its end."""
    if not len(store):
        return np.zeros(0, np.int64)
    valid = store.rows_at("valid", range(store.frames))
    return np.add.reduceat(valid.astype(np.int64), np.concatenate([[0], store.ends[:-1]]))
