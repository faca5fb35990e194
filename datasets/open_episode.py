"""An episode while it is being written: whole files wait in a staging folder, small rows in memory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sanawm_env.datasets import files, schema
from sanawm_env.errors import StorageError

if TYPE_CHECKING:
    from sanawm_env.datasets.reader import EpisodeStore
    from sanawm_env.datasets.writer import EpisodeWriter

# Of another file system, of one without links, or with too many of a file.
NO_LINK = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class OpenEpisode:
    """Made by `EpisodeWriter.begin`. `append` steps, then `commit`; leaving a `with` block without a commit drops it.

    A failure of any method drops the episode, and the writer goes on with others.
    """

    def __init__(
        self, writer: EpisodeWriter, folder: Path, *, seed: int, room: int, source: dict[str, Any], identity: bytes
    ):
        self.seed, self.room, self.source, self.identity = seed, room, source, identity
        self.frames = 0
        self.keys: set[str] = set()
        self.files: dict[str, list[Path]] = {"states": []}  # by key; of arrays that are written once
        self.rows: dict[str, list[np.ndarray]] = {"state_steps": [np.zeros(0, np.int64)]}  # by key; of those that grow
        self._writer: EpisodeWriter | None = writer
        self._folder = folder
        self._staged = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def begin(self, start: Mapping[str, np.ndarray]) -> None:
        """Takes what reset returned; `EpisodeWriter.begin` calls it."""
        with self._dropping() as writer:
            schema.check_start(start, writer.sizes())
            self._put({key: np.asarray(values)[None] for key, values in start.items()})
            self.keys |= set(start)

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds one or more whole steps: arrays of `data` by key, F rows a step. The arrays stay the caller's."""
        with self._dropping() as writer:
            keys = set(arrays) | {key for key in self.keys if key.startswith("start_")}
            schema.check_names(keys, (self.keys if self.frames else None) or writer.known())
            steps = schema.check_rows(arrays, writer.sizes())
            schema.check_valid(np.concatenate([*self.rows.get("valid", []), arrays["valid"]]))
            self._put(arrays)
            self.keys |= set(arrays)
            self.frames += steps * writer.info.frames_per_step

    def keep_state(self, content: bytes) -> None:
        """Keeps a saved state of the world as it is after the steps so far; one at an instant."""
        with self._dropping() as writer:
            step = self.frames // writer.info.frames_per_step
            if step in np.concatenate(self.rows["state_steps"]):
                raise StorageError(f"the state after {step} steps is kept already; keep one, or step in between")
            text = len(content).to_bytes(8, "little") + content
            blocks = -(-len(text) // schema.BLOCK)
            rows = np.frombuffer(text.ljust(blocks * schema.BLOCK, b"\0"), np.uint8).reshape(blocks, schema.BLOCK)
            self._put({"states": rows, "state_steps": np.full(blocks, step)})

    def adopt(self, store: EpisodeStore, index: int, *, link: bool = False) -> None:
        """Takes episode `index` of another store, its encoded files as they are. link: both stores have the same files
        then, where that is possible; else copies."""
        with self._dropping() as writer:
            sizes = writer.sizes()
            if different := {axis for axis, length in store.sizes.items() if sizes.setdefault(axis, length) != length}:
                raise StorageError(f"{store.path} has other lengths of {sorted(different)}: {store.sizes}, not {sizes}")
            for key, table in store.tables.items():
                if table.written == "growing":
                    self.rows[key] = [store.stored(key, index)]
                    continue
                take = self._link if link else self._copy
                self.files[key] = [take(store, name) for name in store.files(key, index)]
            self.keys, self.frames = store.keys, len(self.rows["valid"][0])

    def commit(self, *, reason: str = "", seconds: float = 0.0) -> int:
        """Makes the episode visible, and returns its index once it is. reason, seconds: as of `Finished`."""
        from sanawm_env.datasets.writer import Finished

        return self.check_open().commit([Finished(episode=self, reason=reason, seconds=seconds)])[0]

    def abort(self) -> None:
        """Drops the episode unless it is committed; may be called again."""
        writer, self._writer = self._writer, None
        if writer is not None and writer.open:  # a forked child has no say in what its parent writes
            writer.forget(self)
            shutil.rmtree(self._folder, ignore_errors=True)

    def check_open(self) -> EpisodeWriter:
        """Its writer; StorageError once it is committed or dropped."""
        if self._writer is None:
            raise StorageError("the episode is committed or dropped already; begin another")
        return self._writer

    def once(self) -> list[schema.Array]:
        """Its arrays that are written once."""
        return [schema.BY_KEY[key] for key in sorted(self.files)]

    def growing(self) -> list[schema.Array]:
        """Its arrays that grow."""
        return [schema.BY_KEY[key] for key in sorted(self.rows)]

    def stage(self, content: bytes) -> Path:
        """A finished file that waits for its place."""
        self._staged += 1
        path = self._folder / str(self._staged)
        files.write(path, content)
        return path

    def _copy(self, store: EpisodeStore, name: str) -> Path:
        return self.stage(store.content(name))

    def _link(self, store: EpisodeStore, name: str) -> Path:
        path = self._folder / str(self._staged + 1)
        try:
            os.link(store.path / name, path)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            return self._copy(store, name)
        self._staged += 1
        return path

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[EpisodeWriter]:
        """The writer; whatever fails while it is used drops the episode."""
        writer = self.check_open()
        try:
            with files.storing(writer.path):
                yield writer
        except BaseException:
            self.abort()
            raise

    def _put(self, arrays: Mapping[str, np.ndarray]) -> None:
        assert self._writer is not None
        for key, values in arrays.items():
            array = schema.BY_KEY[key]
            if array.written == "growing":
                self.rows.setdefault(key, []).append(np.array(values))
                continue
            encoder = self._writer.encoder(array)
            parts = range(0, len(values), encoder.rows)
            staged = [self.stage(encoder.encode(np.asarray(values[k : k + encoder.rows]))) for k in parts]
            self.files.setdefault(key, []).extend(staged)
