"""Reads an episode store by the same table that wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from sanawm_env.datasets import schema
from sanawm_env.datasets.layout import METADATA, file_name
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.schema import Array
from sanawm_env.errors import StorageError


class EpisodeStore:
    """The committed episodes of the store at `path`, as they were when it was opened; it may be written to meanwhile.

    len(store) episodes; store[i] is one as a mapping of arrays, time first. info: what all episodes share. ends: rows
    of `data` up to the end of each. meta: the other arrays of `meta` by name, one row an episode. sources: the
    provenance that `episode_sources` points to. arrays: every Zarr array of `data` and `start` by key ("frames",
    "start_frames"), for reading windows; rows from `ends[-1]` on are not part of the store.

    StorageError: nothing there, another format or version, an index that points beyond the data.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        # The index first: whatever a writer adds from now on, everything read after it holds at least what it names.
        self.ends = _read_ends(self.path)
        group = open_group(self.path)
        self.attributes: Mapping[str, Any] = dict(group.attrs)
        self.info = StoreInfo.of(self.attributes)
        self.sources: list[dict[str, Any]] = list(self.attributes.get("sources", ()))
        self.frames = int(self.ends[-1]) if len(self) else 0
        self.tables: dict[str, Array] = {}
        self.arrays: dict[str, Any] = {}
        self.meta = {
            array.name.removeprefix("meta/"): self._decode(self._array(group, array), slice(0, len(self)), array.name)
            for array in schema.META
        }
        for array in schema.BY_KEY.values() if len(self) else ():
            if array.required or (self.path / array.name).exists():
                self.arrays[array.key], self.tables[array.key] = self._array(group, array), array

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Episode `index` up to its end: arrays with T valid rows, and without a row axis those of its start."""
        return self.read(index)

    def read(self, index: int, *, valid_only: bool = True) -> dict[str, np.ndarray]:
        """Every array of episode `index`; valid_only=False gives the frames after its end in the last step too.

        `EpisodeWriter.add` takes what valid_only=False gives. StorageError where a file is missing or damaged.
        """
        index = self._number(index)
        arrays = {key: self._read(key, index) for key in self.keys}
        if valid_only:
            count = int(np.count_nonzero(arrays["valid"]))
            arrays = {key: rows[:count] if self._axis(key) == "time" else rows for key, rows in arrays.items()}
        return arrays

    def states(self, index: int) -> dict[int, bytes]:
        """The saved states of episode `index`, by the number of steps that it had then."""
        index = self._number(index)
        blocks, steps = self.stored("states", index), self.stored("state_steps", index)
        joined = {int(step): blocks[steps == step].tobytes() for step in np.unique(steps)}
        return {step: text[8 : 8 + int.from_bytes(text[:8], "little")] for step, text in joined.items()}

    def describe(self, index: int) -> dict[str, Any]:
        """What is known of episode `index`: id, seed, room, why it ended, seconds of computing, and its provenance."""
        index = self._number(index)
        source, reason = (int(self.meta[f"episode_{name}"][index]) for name in ("sources", "reasons"))
        return {
            "id": self.identity(index).hex(),
            "seed": int(self.meta["episode_seeds"][index]),
            "room": int(self.meta["episode_rooms"][index]),
            "reason": schema.END_REASONS[reason],
            "seconds": float(self.meta["episode_seconds"][index]),
            "steps": len(range(*self.rows("frames", index).indices(self.frames))) // self.info.frames_per_step,
            **self.sources[source],
        }

    def identity(self, index: int) -> bytes:
        """The 16 bytes that no other episode has."""
        return bytes(self.meta["episode_ids"][index])

    def rows(self, key: str, index: int) -> slice:
        """Rows of array `key` that episode `index` has."""
        ends = self.row_ends(self.tables[key])
        return slice(int(ends[index - 1]) if index else 0, int(ends[index]))

    def rows_of(self, array: Array) -> int:
        """Rows of an array of the table up to the last committed end."""
        return int(self.row_ends(array)[-1]) if len(self) else 0

    def row_ends(self, array: Array) -> np.ndarray:
        """Rows of an array up to the end of each episode."""
        axis = array.axes[0]
        if axis == "episode":
            return np.arange(1, len(self) + 1)
        if axis == "block":
            return self.meta["episode_blocks"]
        return self.ends // self.info.frames_per_step if axis == "step" else self.ends

    def files(self, key: str, index: int) -> list[Path]:
        """The files with the rows of array `key` of episode `index`."""
        rows, per_file = self.rows(key, index), self.tables[key].rows_per_file(self.info.frames_per_step)
        folder, rank = self.path / self.tables[key].name, len(self.tables[key].axes)
        return [folder / file_name(number, rank) for number in range(rows.start // per_file, -(-rows.stop // per_file))]

    @property
    def keys(self) -> set[str]:
        """Keys of the arrays that its episodes have; none before the first one."""
        return set(self.arrays) - set(schema.STATES)

    @property
    def sizes(self) -> schema.Sizes:
        """Lengths of the named axes of its arrays, without the one that grows."""
        axes = [pair for key, table in self.tables.items() for pair in zip(table.axes[1:], self.arrays[key].shape[1:])]
        return {axis: length for axis, length in axes if isinstance(axis, str)}

    def tail(self, key: str) -> np.ndarray:
        """The rows of array `key` in its last file, none if that is full."""
        table = self.tables[key]
        rows = self.rows_of(table)
        return self._decode(self.arrays[key], slice(rows - rows % table.chunk, rows), key)

    def _array(self, group: Any, array: Array) -> Any:
        """A Zarr array, once it has the rows that the index counts."""
        needed = self.rows_of(array)
        try:
            stored = group[array.name]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise StorageError(f"{self.path}: array {array.name} cannot be opened ({error}); {VERIFY}") from error
        if stored.shape[0] < needed:
            raise StorageError(f"{self.path}: array {array.name} has {stored.shape[0]} rows, not {needed}; {VERIFY}")
        return stored

    def _axis(self, key: str) -> str | int:
        return self.tables[key].axes[0]

    def stored(self, key: str, index: int) -> np.ndarray:
        """The rows of array `key` of episode `index`, with their axis; one row for arrays of its start."""
        self._check_files(key, index)
        return self._decode(self.arrays[key], self.rows(key, index), key)

    def pieces(self, key: str, index: int) -> Iterator[np.ndarray]:
        """The rows of array `key` of episode `index` as they lie in its files, one file in memory at a time."""
        self._check_files(key, index)
        rows, count = self.rows(key, index), self.tables[key].rows_per_file(self.info.frames_per_step)
        starts = [rows.start, *range((rows.start // count + 1) * count, rows.stop, count)]
        for start, stop in zip(starts, [*starts[1:], rows.stop]):
            yield self._decode(self.arrays[key], slice(start, stop), key)

    def _check_files(self, key: str, index: int) -> None:
        for path in self.files(key, index):
            if not path.exists():  # Zarr would show zeros
                raise StorageError(f"{path} is missing, episode {index} needs it; {VERIFY}")

    def _read(self, key: str, index: int) -> np.ndarray:
        rows = self.stored(key, index)
        return rows[0] if self._axis(key) == "episode" else rows

    def _decode(self, stored: Any, rows: slice, name: str) -> np.ndarray:
        try:
            return np.asarray(stored[rows])
        except (ValueError, RuntimeError, OSError) as error:
            raise StorageError(f"{self.path}: {name} rows {rows.start} to {rows.stop}: {error}; {VERIFY}") from error

    def _number(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        return index % len(self)


VERIFY = "`sanawm verify` says what is damaged; restore it from a copy"


def open_group(path: Path) -> Any:
    """The group of a store, once its attributes are found to be of this format and version."""
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise StorageError(f"{path} is not an episode store; give the folder that was written, e.g. x.zarr") from error
    except (KeyError, TypeError) as error:
        raise StorageError(f"{path / METADATA} is damaged ({error}); {VERIFY}") from error
    name, version = group.attrs.get("schema"), group.attrs.get("version")
    if name != schema.NAME or not isinstance(version, int):
        raise StorageError(f"{path} has schema {name!r}, expected {schema.NAME!r}; it was written by something else")
    if version > schema.VERSION:
        raise StorageError(f"{path} has version {version}, this package reads up to {schema.VERSION}; upgrade it")
    if version < schema.VERSION:
        raise StorageError(f"{path} has version {version}, this package reads {schema.VERSION} only; record it again")
    return group


def _read_ends(path: Path) -> np.ndarray:
    group = open_group(path)
    if not (path / schema.ENDS / METADATA).exists():
        raise StorageError(f"{path} has no {schema.ENDS}: it was not written to its end; record it again")
    try:
        return np.asarray(group[schema.ENDS][:])
    except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: {schema.ENDS}: {error}; {VERIFY}") from error
