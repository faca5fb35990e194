"""From the table to files: each array's metadata, and its rows as the bytes of a file.

Zarr itself writes the metadata and encodes all rows but pictures. A file of pictures is put together here, byte for
byte what Zarr would write (its sharding codec, index at the end), because Zarr's way takes four times as long as the
pictures' codec, and holds Python's lock while the codec does not.
"""

from __future__ import annotations

import functools
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from sanawm_env.datasets.codec import PictureCodec, picture_codec
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.schema import Array

METADATA = "zarr.json"
PARTS = 4  # of a file of pictures, encoded side by side; a thread's start costs as much as a small picture


class Encoder:
    """One array of a store: rows [n, *shape] to the bytes of a file, and the metadata of n rows.

    Files are named without folders ("c.3.0.0.0"): a file more then costs one entry of one folder, not four folders.
    """

    def __init__(self, array: Array, shape: tuple[int, ...], info: StoreInfo):
        self.array = array
        self.rows = array.rows_per_file(info.frames_per_step)
        self._picture, self._chunk = codec_of(array, info), rows_per_chunk(array, info)
        self._files: dict[str, Any] = {}
        self._rank = 1 + len(shape)
        self._buffer: Any = zarr.create_array(
            store=MemoryStore(self._files),
            shape=(self.rows, *shape),
            dtype=array.dtype,
            chunks=(self._chunk, *shape),
            shards=None if self.rows == self._chunk else (self.rows, *shape),
            chunk_key_encoding={"name": "default", "separator": "."},
            serializer="auto" if self._picture is None else self._picture,
            # The checksum comes last, so that it covers what lies on the disk.
            compressors=[*([ZstdCodec(level=3)] if self._picture is None else []), Crc32cCodec()],
            dimension_names=[None if isinstance(axis, int) else axis for axis in array.axes],
            attributes={"unit": array.unit, "meaning": array.meaning},
            config={"write_empty_chunks": True},  # else a file of zeros is left out and cannot be told from a lost one
        )
        self._metadata = json.loads(self._files.pop(METADATA).to_bytes())

    @property
    def folder(self) -> str:
        """Of the array in the store."""
        return self.array.name

    def metadata(self, rows: int) -> bytes:
        """`zarr.json` of the array with so many rows."""
        shape = [rows, *self._metadata["shape"][1:]]
        return sealed({**self._metadata, "shape": shape})

    def encode(self, rows: np.ndarray) -> bytes:
        """The file that holds these rows, missing ones at its end zero; of pictures none may be missing."""
        if self._picture is not None:
            return self._shard(rows)
        self._buffer[: len(rows)] = rows
        if len(rows) < self.rows:
            self._buffer[len(rows) :] = 0
        return bytes(self._files.pop(self.file(0)).to_bytes())

    def _shard(self, pictures: np.ndarray) -> bytes:
        assert len(pictures) == self.rows
        chunks = pictures.reshape(-1, self._chunk, *pictures.shape[1:])
        parts = np.array_split(chunks, min(PARTS, len(chunks)))
        encoded = [content for part in _threads().map(self._encoded, parts) for content in part]
        if self.rows == self._chunk:
            return encoded[0]
        lengths = np.array([len(content) for content in encoded], "<u8")
        index = np.stack([lengths.cumsum() - lengths, lengths], axis=1).astype("<u8").tobytes()
        return b"".join([*encoded, index, _crc32c(index)])

    def _encoded(self, chunks: np.ndarray) -> list[bytes]:
        assert self._picture is not None
        encoded = [self._picture.encode_pictures(chunk) for chunk in chunks]
        return [content + _crc32c(content) for content in encoded]

    def file(self, index: int) -> str:
        """Name of the array's file number `index`."""
        return file_name(index, self._rank)


def _crc32c(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(4, "little")


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads that encode pictures; the codecs let go of Python's lock while they work."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="pictures")


# The threads of a parent do not live in a child that a fork made.
os.register_at_fork(after_in_child=_threads.cache_clear)


def codec_of(array: Array, info: StoreInfo) -> PictureCodec | None:
    """What encodes the pictures of an array, None where it has none."""
    return picture_codec(info.picture_codec, info.picture_quality) if array.codec == "picture" else None


def rows_per_chunk(array: Array, info: StoreInfo) -> int:
    """Rows of an array that are encoded, and decoded, together."""
    picture = codec_of(array, info)
    return array.chunk if picture is None else picture.rows_per_chunk(array.rows_per_file(info.frames_per_step))


def file_name(index: int, rank: int) -> str:
    """Name of file number `index` along the first axis of an array with `rank` axes, undivided along the others."""
    return ".".join(["c", str(index), *["0"] * (rank - 1)])


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """`zarr.json` of a group."""
    return sealed({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def sealed(metadata: dict[str, Any]) -> bytes:
    """Metadata as the text of a file, with a checksum of itself among the attributes: Zarr has one for data only."""
    attributes = {name: value for name, value in metadata["attributes"].items() if name != "checksum"}
    plain = {**metadata, "attributes": attributes}
    attributes["checksum"] = _checksum(plain)
    return json.dumps(plain, indent=1).encode()


def is_sealed(content: bytes) -> bool:
    """Whether metadata are what was written. ValueError, KeyError or TypeError where they are none."""
    return content == sealed(json.loads(content))


def _checksum(metadata: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(metadata, sort_keys=True).encode()):08x}"
