"""Reads an episode store by the same table that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from sanawm_env.datasets import schema
from sanawm_env.errors import StorageError


class EpisodeStore:
    """A finished store at `path`. len(store) episodes; store[i] is one as a mapping of arrays, time first.

    attributes: fps, action_map, action_columns, action_units, bundle_sha256, package_version and what the writer added.
    StorageError: nothing there, another format, a newer version, an index that points beyond the data.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._group = _open(self.path)
        self.attributes: Mapping[str, Any] = dict(self._group.attrs)
        _check_version(self.path, self.attributes)
        if schema.ENDS not in self._group:
            raise StorageError(f"{self.path} has no {schema.ENDS}: its writer did not finish; record it again")
        self.ends: np.ndarray = self._group[schema.ENDS][:]
        self.seeds: np.ndarray = self._group[schema.SEEDS][:]
        self.arrays: dict[str, Any] = dict(self._group["data"].arrays()) if len(self.ends) else {}
        for name, array in self.arrays.items():
            if array.shape[0] < self.ends[-1]:
                raise StorageError(f"{self.path}: array {name} has {array.shape[0]} rows, the index {self.ends[-1]}")

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Every array of episode `index`, rows of that episode only."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        index %= len(self)
        rows = slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))
        return {name: array[rows] for name, array in self.arrays.items()}


def _open(path: Path) -> Any:
    try:
        return zarr.open_group(path, mode="r", zarr_format=3)
    except (FileNotFoundError, ValueError) as error:
        raise StorageError(f"{path} is not an episode store; give the folder that was written, e.g. x.zarr") from error


def _check_version(path: Path, attributes: Mapping[str, Any]) -> None:
    name, version = attributes.get("schema"), attributes.get("version")
    if name != schema.NAME or not isinstance(version, int):
        raise StorageError(f"{path} has schema {name!r}, expected {schema.NAME!r}; it was written by something else")
    if version > schema.VERSION:
        raise StorageError(f"{path} has version {version}, this package reads up to {schema.VERSION}; upgrade it")
