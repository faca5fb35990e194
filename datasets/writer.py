"""Writes an episode store: into a hidden folder beside its place, which takes its name when everything is there."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from sanawm_env.datasets import schema
from sanawm_env.datasets.atomic import appearing
from sanawm_env.datasets.codec import Jpeg
from sanawm_env.datasets.schema import Array, StoreInfo
from sanawm_env.errors import StorageError


class EpisodeWriter:
    """A store under construction at `folder`; `open_writer` gives one and publishes it at the end."""

    def __init__(self, folder: Path, info: StoreInfo):
        self.info = info
        self._ends: list[int] = []
        self._seeds: list[int] = []
        self._group: Any = zarr.create_group(store=folder, zarr_format=3)
        self._group.attrs.update({"schema": schema.NAME, "version": schema.VERSION, **_attributes(info)})

    def add(self, arrays: Mapping[str, np.ndarray], *, seed: int) -> int:
        """Appends one episode, arrays as `schema.TABLE` says (T rows each), and returns its index.

        Every episode of a store has the same arrays and picture size. StorageError otherwise.
        """
        length = schema.check_episode(arrays, self.info)
        if self._ends and set(arrays) != set(self._group["data"]):
            raise StorageError(f"episode has arrays {sorted(arrays)}, the store {sorted(self._group['data'])}")
        start = self._ends[-1] if self._ends else 0
        for name, values in arrays.items():
            target = self._array(schema.BY_NAME[name], values.shape[1:])
            target.resize((start + length, *target.shape[1:]))
            target[start:] = values
        self._ends.append(start + length)
        self._seeds.append(seed)
        return len(self._ends) - 1

    def finish(self) -> None:
        """Publishes the episodes: the index is written after everything that it points to."""
        for name, values in ((schema.SEEDS, self._seeds), (schema.ENDS, self._ends)):
            self._group.create_array(name, data=np.asarray(values, dtype=np.int64))

    def _array(self, array: Array, shape: tuple[int, ...]) -> Any:
        path = f"data/{array.name}"
        if path not in self._group:
            return self._create(array, path, shape)
        existing = self._group[path]
        if existing.shape[1:] != shape:
            raise StorageError(f"array {array.name} has rows of {shape}, the store {existing.shape[1:]}; use a new one")
        return existing

    def _create(self, array: Array, path: str, shape: tuple[int, ...]) -> Any:
        picture = array.codec == "jpeg"
        return self._group.create_array(
            path,
            shape=(0, *shape),
            dtype=array.dtype,
            chunks=(array.chunk, *shape),
            shards=(array.shard, *shape) if array.shard else None,
            serializer=Jpeg() if picture else "auto",
            compressors=None if picture else ZstdCodec(level=3),
            dimension_names=["time", *(None if isinstance(axis, int) else axis for axis in array.axes[1:])],
            attributes={"unit": array.unit, "meaning": array.meaning},
        )


@contextlib.contextmanager
def open_writer(path: Path | str, info: StoreInfo, *, overwrite: bool = False) -> Iterator[EpisodeWriter]:
    """A writer whose store appears at `path` when the block ends without an error, and never half.

    StorageError if something is there already (and `overwrite` is false) or if the disk is full.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise StorageError(f"{path} exists; remove it, choose another name or pass overwrite=True")
    with appearing(path) as draft:
        writer = EpisodeWriter(draft, info)
        yield writer
        writer.finish()


def _attributes(info: StoreInfo) -> dict[str, Any]:
    values = dataclasses.asdict(info)
    return {**values.pop("extra"), **{key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}}
