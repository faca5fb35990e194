"""Reads an episode store by the same table that wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.datasets import schema
from sanawm_env.datasets.array_reader import ArrayReader
from sanawm_env.datasets.layout import METADATA
from sanawm_env.datasets.place import Folder, Part, Place, open_place
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.recent import Threads
from sanawm_env.datasets.schema import Array
from sanawm_env.errors import StorageError

Numbers = Sequence[int] | np.ndarray
Decode = Callable[[np.ndarray, np.ndarray, Mapping[str, Any]], np.ndarray]  # `sanawm_env.playback.Decoder`


class EpisodeStore:
    """The committed episodes of the store at `source`, as they were when it was opened; it may be written to meanwhile.

    source: a folder, or a URL that fsspec knows ("s3://bucket/x.zarr"); options: of the file system behind a URL.
    threads: that decode pictures at a time, None for one a core and one in the child process of a data loader. decode:
    makes the frames of episodes that were stored as latents only (`sanawm_env.playback.Decoder`). A store may be shared
    by threads, used after a fork, and pickled: files are opened anew in each process.

    len(store) episodes; store[i] is one as a mapping of arrays, time first. info: what all episodes share. ends: rows
    of `data` up to the end of each. meta: the other arrays of `meta` by name, one row an episode. sources: the
    provenance that `episode_sources` points to. arrays: a reader of every array of `data` and `start` by key
    ("frames", "start_frames"); rows from `ends[-1]` on are not part of the store.

    StorageError: nothing there, another format or version, an index that points beyond the data.
    """

    def __init__(
        self,
        source: Path | str,
        *,
        threads: int | None = None,
        decode: Decode | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        self.place = open_place(source, options)
        self.decode = decode
        self._threads = Threads(threads)
        # The index first: whatever a writer adds from now on, everything read after it holds at least what it names.
        self.ends = self._read_ends()
        self.attributes = read_attributes(self.place)
        self.sources: list[dict[str, Any]] = list(self.attributes.get("sources", ()))
        self.frames = int(self.ends[-1]) if len(self) else 0
        self.meta: dict[str, np.ndarray] = {}
        self.arrays: dict[str, ArrayReader] = {}
        self.tables: dict[str, Array] = {}
        self._open_arrays()

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Episode `index` up to its end: arrays with T valid rows, and without a row axis those of its start."""
        return self.read(index)

    def read(self, index: int, *, valid_only: bool = True) -> dict[str, np.ndarray]:
        """Every array of episode `index`; valid_only=False gives the frames after its end in the last step too.

        `EpisodeWriter.add` takes what valid_only=False gives, without the frames that `decode` has made of latents.
        StorageError where a file is missing or damaged.
        """
        index = self._number(index)
        arrays = {key: self._read(key, index) for key in self.keys}
        if "frames" not in arrays and self.decode is not None:
            arrays["frames"] = self.decode(arrays["start_latents"], arrays["latents"], self.describe(index))
        if valid_only:
            count = int(np.count_nonzero(arrays["valid"]))
            over_time = [key for key in arrays if schema.BY_KEY[key].axes[0] == "time"]
            arrays |= {key: arrays[key][:count] for key in over_time}
        return arrays

    def at(self, key: str, episodes: Numbers, instants: Numbers) -> np.ndarray:
        """Rows [n, ...] of what was seen at instants of episodes, in any order: n of each, of the same length.

        Instant 0 is that of reset (`start/<key>`), instant t that of row t - 1 of the episode. One byte range is read a
        row, or a file a step where frames are AV1, and every picture decoded once. StorageError where a file is missing
        or damaged.
        """
        number, instant = np.asarray(episodes, np.int64), np.asarray(instants, np.int64)
        first = np.concatenate([[0], self.ends])[number]
        lengths = self.ends[number] - first
        if len(instant) and (instant.min() < 0 or (instant > lengths).any()):
            raise IndexError(f"instants reach from {instant.min()} to {instant.max()} of {lengths.min()} and more")
        later = instant > 0
        if later.all():
            return self.rows_at(key, first + instant - 1)
        began = self.rows_at(f"start_{key}", number[~later])
        out = np.empty((len(instant), *began.shape[1:]), began.dtype)
        out[~later] = began
        out[later] = self.rows_at(key, (first + instant - 1)[later])
        return out

    def rows_at(self, key: str, rows: Numbers) -> np.ndarray:
        """Rows of array `key` by their numbers, in any order. StorageError as for `at`."""
        if key not in self.arrays:
            hint = "; read whole episodes, whose latents `decode` turns to frames" * ("latents" in self.arrays)
            raise StorageError(f"{self.place} has no array {key}; it has {sorted(self.arrays)}{hint}")
        numbers = np.asarray(rows, np.int64)
        try:
            return self.arrays[key].read(numbers)
        except StorageError as error:
            span = f"{numbers.min()} to {numbers.max() + 1}"
            raise StorageError(f"{self.place}: {key} rows {span}: {error}; {VERIFY}") from error

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
            "steps": len(range(*self.rows("valid", index).indices(self.frames))) // self.info.frames_per_step,
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

    def files(self, key: str, index: int) -> list[str]:
        """Names, in the store, of the files with the rows of array `key` of episode `index`."""
        rows, per_file = self.rows(key, index), self.tables[key].rows_per_file(self.info.frames_per_step)
        return [self.arrays[key].name(file) for file in range(rows.start // per_file, -(-rows.stop // per_file))]

    def pieces(self, key: str, index: int) -> Iterator[np.ndarray]:
        """The rows of array `key` of episode `index` as they lie in its files, one file in memory at a time."""
        rows, count = self.rows(key, index), self.tables[key].rows_per_file(self.info.frames_per_step)
        starts = [rows.start, *range((rows.start // count + 1) * count, rows.stop, count)]
        for start, stop in zip(starts, [*starts[1:], rows.stop]):
            yield self.rows_at(key, range(start, stop))

    def content(self, name: str) -> bytes:
        """A file of the store as it is."""
        content = self.place.read(name)
        if content is None:
            raise StorageError(f"{self.place}/{name} is missing; {VERIFY}")
        return content

    def stored(self, key: str, index: int) -> np.ndarray:
        """The rows of array `key` of episode `index`, with their axis; one row for arrays of its start."""
        rows = self.rows(key, index)
        return self.rows_at(key, range(rows.start, rows.stop))

    def tail(self, key: str) -> np.ndarray:
        """The rows of array `key` in its last file, none if that is full."""
        rows = self.rows_of(self.tables[key])
        return self.rows_at(key, range(rows - rows % self.tables[key].chunk, rows))

    @property
    def path(self) -> Path:
        """The folder of the store. StorageError where it lies in an object store."""
        if not isinstance(self.place, Folder):
            raise StorageError(f"{self.place} can be read, and no more: copy it to a folder and give that")
        return self.place.path

    @property
    def keys(self) -> set[str]:
        """Keys of the arrays that its episodes have; none before the first one."""
        return set(self.arrays) - set(schema.STATES)

    @property
    def sizes(self) -> schema.Sizes:
        """Lengths of the named axes of its arrays, without the one that grows."""
        axes = [pair for key, table in self.tables.items() for pair in zip(table.axes[1:], self.arrays[key].shape[1:])]
        return {axis: length for axis, length in axes if isinstance(axis, str)}

    def _read_ends(self) -> np.ndarray:
        table, attributes = schema.BY_NAME[schema.ENDS], read_attributes(self.place)
        metadata = self._metadata([table])
        if table.name not in metadata:
            raise StorageError(f"{self.place} has no {schema.ENDS}: it was not written to its end; record it again")
        self.info = StoreInfo.of(attributes)
        return self._decoded(self._array(table, metadata[table.name]), table)

    def _open_arrays(self) -> None:
        metadata = self._metadata(schema.TABLE)
        for table in schema.META:
            if table.name != schema.ENDS:
                array = self._array(table, metadata.get(table.name), len(self))
                self.meta[table.name.removeprefix("meta/")] = self._decoded(array, table, len(self))
        for key, table in schema.BY_KEY.items() if len(self) else ():
            if table.required or table.name in metadata:
                self.arrays[key] = self._array(table, metadata.get(table.name), self.rows_of(table))
                self.tables[key] = table
        if len(self):
            schema.check_names(self.keys, None)

    def _metadata(self, tables: Sequence[Array]) -> dict[str, bytes]:
        contents = self.place.read_parts([Part(f"{table.name}/{METADATA}") for table in tables])
        return {table.name: content for table, content in zip(tables, contents) if content is not None}

    def _array(self, table: Array, metadata: bytes | None, rows: int = 0) -> ArrayReader:
        """An array, once it has the rows that the index counts."""
        try:
            if metadata is None:
                raise StorageError(f"{METADATA} is missing")
            array = ArrayReader(self.place, table, self.info, json.loads(metadata), self._threads)
        except (StorageError, ValueError) as error:
            raise StorageError(f"{self.place}: array {table.name} cannot be opened ({error}); {VERIFY}") from error
        if len(array) < rows:
            raise StorageError(f"{self.place}: array {table.name} has {len(array)} rows, not {rows}; {VERIFY}")
        return array

    def _decoded(self, array: ArrayReader, table: Array, rows: int | None = None) -> np.ndarray:
        try:
            return array[:rows]
        except StorageError as error:
            raise StorageError(f"{self.place}: {table.name}: {error}; {VERIFY}") from error

    def _read(self, key: str, index: int) -> np.ndarray:
        rows = self.stored(key, index)
        return rows[0] if self.tables[key].axes[0] == "episode" else rows

    def _number(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        return index % len(self)


VERIFY = "`sanawm verify` says what is damaged; restore it from a copy"


def read_attributes(place: Place) -> Mapping[str, Any]:
    """The attributes of a store, once they are found to be of this format and version."""
    content = place.read(METADATA)
    if content is None:
        raise StorageError(f"{place} is not an episode store; give the folder that was written, e.g. x.zarr")
    try:
        metadata = json.loads(content)
        attributes: dict[str, Any] = dict(metadata["attributes"])
        kind = metadata["node_type"], metadata["zarr_format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{place}/{METADATA} is damaged ({error!r}); {VERIFY}") from error
    name, version = attributes.get("schema"), attributes.get("version")
    if kind != ("group", 3) or name != schema.NAME or not isinstance(version, int):
        raise StorageError(f"{place} has schema {name!r}, expected {schema.NAME!r}; it was written by something else")
    if version > schema.VERSION:
        raise StorageError(f"{place} has version {version}, this package reads up to {schema.VERSION}; upgrade it")
    if version < schema.VERSION:
        raise StorageError(f"{place} has version {version}, this package reads {schema.VERSION} only; record it again")
    return attributes
