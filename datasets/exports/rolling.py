"""Series of Parquet and MP4 files, each closed when it has reached its size: the next episode begins another."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sanawm_env.datasets.video import Mp4Writer

T = TypeVar("T", bound=Any)
Place = tuple[int, int]  # chunk_index, file_index
# Every second frame can be decoded at once: training reads single frames. No reordering, so times start at 0.
RANDOM_ACCESS = {"g": "2", "bf": "0"}


class _Rolling(ABC, Generic[T]):
    """Files named by `pattern`, `chunk_files` in a folder, of about `megabytes` at most."""

    def __init__(self, folder: Path, pattern: str, megabytes: float, chunk_files: int) -> None:
        self._folder, self._pattern, self._chunk_files = folder, pattern, chunk_files
        self._limit = megabytes * 2**20
        self._number, self._largest, self._before = 0, 0, 0
        self._open: T | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.__exit__(kind, error, trace)

    def path(self, place: Place) -> Path:
        """The file at this place."""
        return self._folder / self._pattern.format(chunk_index=place[0], file_index=place[1])

    def place(self) -> Place:
        """Where the next episode goes; the file before is closed if another one as large as any yet would not fit."""
        if self._open is not None:
            size = self._size(self._open)
            self._largest, self._before = max(self._largest, size - self._before), size
            if size + self._largest >= self._limit:
                self._open.__exit__(None, None, None)
                self._open, self._before = None, 0
                self._number += 1
        self.path(self._now).parent.mkdir(parents=True, exist_ok=True)
        return self._now

    @abstractmethod
    def _size(self, file: T) -> int:
        """Bytes written to the open file so far."""

    @property
    def _now(self) -> Place:
        return divmod(self._number, self._chunk_files)


class RollingTable(_Rolling[pq.ParquetWriter]):
    """Tables of one schema, one group of rows each."""

    def write(self, table: pa.Table) -> Place:
        """Appends a table and returns where it lies."""
        place = self.place()
        if self._open is None:
            self._open = pq.ParquetWriter(self.path(place), table.schema, compression="snappy")
        self._open.write_table(table)
        return place

    def _size(self, file: pq.ParquetWriter) -> int:
        return self.path(self._now).stat().st_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """Where the video of an episode lies: its file, and the number of its first frame there."""

    place: Place
    start: int


class RollingVideo(_Rolling[Mp4Writer]):
    """Episodes one after the other in H.264."""

    def __init__(self, folder: Path, pattern: str, megabytes: float, chunk_files: int, fps: float) -> None:
        super().__init__(folder, pattern, megabytes, chunk_files)
        self._fps = fps

    def write(self, pictures: Iterator[np.ndarray], size: tuple[int, int]) -> Film:
        """Appends the frames of an episode, the first of them one at which decoding can start. size: height, width."""
        place = self.place()
        if self._open is None:
            self._open = Mp4Writer(self.path(place), self._fps, size, RANDOM_ACCESS)
        film = Film(place=place, start=self._open.frames)
        for k, picture in enumerate(pictures):
            self._open.add(picture, keyframe=k == 0)
        return film

    def _size(self, file: Mp4Writer) -> int:
        return file.bytes

    def told(self) -> dict[str, Any]:
        """What `meta/info.json` says of the videos, read from the first of them."""
        with av.open(str(self.path((0, 0)))) as container:
            stream = container.streams.video[0]
            return {
                "video.height": stream.height,
                "video.width": stream.width,
                "video.codec": stream.codec.canonical_name,
                "video.pix_fmt": stream.pix_fmt,
                "video.is_depth_map": False,
                "video.fps": int(self._fps),
                "video.channels": 3,
                "has_audio": False,
            }
