"""Rows of one array of a store, wherever they lie: the index of a shard once, then one byte range a row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np

from sanawm_env.datasets.codec import PictureCodec
from sanawm_env.datasets.layout import codec_of, file_name, rows_per_chunk
from sanawm_env.datasets.place import Part, Place
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.recent import Recent, Threads
from sanawm_env.datasets.schema import Array
from sanawm_env.errors import StorageError

INDICES = 4096  # of shards, 130 bytes a frame at most
BLOCKS, KEPT = 64, 2**24  # decoded files that an array keeps, and their bytes; two files always
CHECKSUM = 4  # bytes
INTACT = google_crc32c.value(bytes(CHECKSUM))  # of any bytes with their own checksum behind them
ABSENT = 2**64 - 1  # in an index: a chunk that was not written
Index = list[tuple[int, int]]


class ArrayReader:
    """An array of the store at `place`, read as `schema.TABLE` says it was written. metadata: its `zarr.json`.

    shape: as written; rows beyond the store's end are among them. Every read checks the checksums of what it takes.
    StorageError where the metadata say something else than the table, or bytes are missing or damaged.
    """

    def __init__(
        self, place: Place, array: Array, info: StoreInfo, metadata: Mapping[str, Any], threads: Threads
    ) -> None:
        self.array, self.dtype = array, np.dtype(array.dtype)
        self.rows_per_file = array.rows_per_file(info.frames_per_step)
        self._picture, self._chunk = codec_of(array, info), rows_per_chunk(array, info)
        self.shape = _check(metadata, array, (self.rows_per_file, self._chunk), self._picture)
        self._place, self._threads = place, threads
        self._sharded = self.rows_per_file != self._chunk
        self._indices: Recent[int, Index] = Recent(INDICES)
        size = self.dtype.itemsize * math.prod((self.rows_per_file, *self.shape[1:]))
        self._blocks: Recent[int, np.ndarray] = Recent(max(2, min(BLOCKS, KEPT // max(1, size))))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | int) -> np.ndarray:
        """A stretch of rows, or one."""
        return self.read(range(*rows.indices(len(self)))) if isinstance(rows, slice) else self.read([rows])[0]

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """These rows [n, *shape], in the order given; one that is named twice is decoded once."""
        wanted = np.asarray(rows, np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise StorageError(f"rows {wanted.min()} to {wanted.max()} were asked of {len(self)}; ask for those there")
        different, place = np.unique(wanted, return_inverse=True)
        if len(different) < len(wanted):
            return self.read(different)[place]
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        if self._chunk > 1:
            self._read_blocks(wanted, out)
        else:
            self._read_single(wanted.tolist(), out)
        return out

    def name(self, file: int) -> str:
        """Name of file number `file` in the store."""
        return f"{self.array.name}/{file_name(file, len(self.shape))}"

    def _read_single(self, rows: list[int], out: np.ndarray) -> None:
        parts = self._parts(rows)

        def work(start: int, stop: int) -> None:
            contents = self._place.read_parts(parts[start:stop])
            for number, content in zip(range(start, stop), contents):
                self._decode(self._intact(content, parts[number].name), out[number], parts[number].name)

        self._threads.share(work, len(rows))

    def _parts(self, rows: list[int]) -> list[Part]:
        """Where the bytes of each row lie."""
        files = [row // self.rows_per_file for row in rows]
        if not self._sharded:
            return [Part(self.name(file)) for file in files]
        indices = self._find_indices(files)
        names = {file: self.name(file) for file in indices}
        parts = []
        for row, file in zip(rows, files):
            start, length = indices[file][row % self.rows_per_file]
            if start == ABSENT:
                raise StorageError(f"{names[file]} lacks row {row}")
            parts.append(Part(names[file], start, length))
        return parts

    def _find_indices(self, files: list[int]) -> dict[int, Index]:
        found = {file: self._indices.get(file) for file in files}
        new = [file for file, index in found.items() if index is None]
        size = 16 * self.rows_per_file + CHECKSUM
        for file, content in zip(new, self._place.read_parts([Part(self.name(file), -size) for file in new])):
            table = np.frombuffer(self._intact(content, self.name(file), size), "<u8", 2 * self.rows_per_file)
            found[file] = self._indices.put(file, [(start, length) for start, length in table.reshape(-1, 2).tolist()])
        return {file: index for file, index in found.items() if index is not None}

    def _read_blocks(self, rows: np.ndarray, out: np.ndarray) -> None:
        files = rows // self.rows_per_file
        different = np.unique(files).tolist()

        def work(start: int, stop: int) -> None:
            for file, block in self._find_blocks(different[start:stop]):
                mine = files == file
                out[mine] = block[rows[mine] % self.rows_per_file]

        self._threads.share(work, len(different))

    def _find_blocks(self, files: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """These files decoded, one at a time."""
        found = {file: self._blocks.get(file) for file in files}
        new = [file for file, block in found.items() if block is None]
        contents = dict(zip(new, self._place.read_parts([Part(self.name(file)) for file in new])))
        for file, kept in found.items():
            if kept is not None:
                yield file, kept
                continue
            block = np.empty((self.rows_per_file, *self.shape[1:]), self.dtype)
            self._decode(self._intact(contents.pop(file), self.name(file)), block, self.name(file))
            # The last file is replaced as a store grows: what is kept has all rows that this reader may ask for.
            yield file, self._blocks.put(file, block)

    def _intact(self, content: bytes | None, name: str, size: int | None = None) -> bytes:
        if content is None:
            raise StorageError(f"{name} is missing")
        if (size is not None and len(content) != size) or google_crc32c.value(content) != INTACT:
            raise StorageError(f"{name} is damaged: the checksum of its content differs")
        return content

    def _decode(self, content: bytes, out: np.ndarray, name: str) -> None:
        """Puts what is encoded in `content`, which ends with its checksum, into `out`."""
        try:
            if self._picture is not None:
                self._picture.decode_pictures(content[:-CHECKSUM], out.reshape(-1, *out.shape[-3:]))
                return
            plain = imagecodecs.zstd_decode(content[:-CHECKSUM])
            out[...] = np.frombuffer(plain, self.dtype.newbyteorder("<")).reshape(out.shape)
        except (ValueError, RuntimeError) as error:
            raise StorageError(f"{name} cannot be decoded ({error})") from error


def _check(
    metadata: Mapping[str, Any], array: Array, rows: tuple[int, int], picture: PictureCodec | None
) -> tuple[int, ...]:
    """The shape that the metadata of an array state, once all that its reader relies on is found in them. rows: a file,
    and decoded together."""
    try:
        shape = tuple(int(length) for length in metadata["shape"])
        codecs, inner = [codec["name"] for codec in metadata["codecs"]], None
        if codecs == ["sharding_indexed"]:
            sharding = metadata["codecs"][0]["configuration"]
            inner = tuple(sharding["chunk_shape"])
            codecs = [codec["name"] for codec in sharding["codecs"]]
            if sharding["index_location"] != "end":
                raise StorageError(f"{array.name} has its shard index at {sharding['index_location']!r}, not the end")
        seen = {
            "dtype": metadata["data_type"],
            "chunk": tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"]),
            "rows decoded together": inner or tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"]),
            "codecs": codecs,
            "names": metadata["chunk_key_encoding"]["configuration"]["separator"],
            "axes": len(shape),
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StorageError(f"the metadata of {array.name} cannot be read ({error!r})") from error
    expected = {
        "dtype": array.dtype,
        "chunk": (rows[0], *shape[1:]),
        "rows decoded together": (rows[1], *shape[1:]),
        "codecs": [picture.name, "crc32c"] if picture is not None else ["bytes", "zstd", "crc32c"],
        "names": ".",
        "axes": len(array.axes),
    }
    for what, value in expected.items():
        if seen[what] != value:
            raise StorageError(f"{array.name} has {what} {seen[what]}, the table says {value}")
    return shape
