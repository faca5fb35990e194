"""Several stores as one, to read; `merge` makes one of them on the disk."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.datasets.layout import METADATA
from sanawm_env.datasets.reader import Decode, EpisodeStore
from sanawm_env.datasets.writer import EpisodeWriter, Finished
from sanawm_env.errors import StorageError

TOGETHER = 64  # episodes that are made visible at an instant: a commit writes every growing array


class Union:
    """The episodes of several stores one after another, read only; indices go through them in the order given.

    StorageError: stores whose episodes have different rates, columns, codecs, arrays or picture sizes, or one in two.
    """

    def __init__(self, stores: Iterable[EpisodeStore | Path | str]):
        self.stores = [store if isinstance(store, EpisodeStore) else EpisodeStore(store) for store in stores]
        check_alike(self.stores)
        check_apart(self.stores)
        self.info = self.stores[0].info
        self._ends = list(itertools.accumulate(len(store) for store in self.stores))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """As of a store."""
        return self.read(index)

    def read(self, index: int, *, valid_only: bool = True) -> dict[str, np.ndarray]:
        """As of a store."""
        store, own = self.find(index)
        return store.read(own, valid_only=valid_only)

    def describe(self, index: int) -> dict[str, Any]:
        """As of a store."""
        store, own = self.find(index)
        return store.describe(own)

    def find(self, index: int) -> tuple[EpisodeStore, int]:
        """The store that holds episode `index`, and its index there."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        index %= len(self)
        number = next(number for number, end in enumerate(self._ends) if index < end)
        return self.stores[number], index - (self._ends[number - 1] if number else 0)


def open_store(
    source: Path | str | Sequence[Path | str],
    *,
    threads: int | None = None,
    decode: Decode | None = None,
    options: Mapping[str, Any] | None = None,
) -> EpisodeStore | Union:
    """The store in a folder or behind a URL ("s3://bucket/x.zarr", "memory://x.zarr"), or several as one; the rest as
    of `EpisodeStore`."""

    def opened(one: Path | str) -> EpisodeStore:
        return EpisodeStore(one, threads=threads, decode=decode, options=options)

    return opened(source) if isinstance(source, Path | str) else Union(opened(one) for one in source)


def merge(
    sources: Sequence[Path | str],
    target: Path | str,
    *,
    resume: bool = False,
    spend: bool = False,
    durable: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Appends every episode of the sources to the store `target`, which is made if it is not there; returns how many.

    sources: folders or URLs. Files with pictures, depth and latents are copied as they are, nothing is encoded again.
    resume: leaves out what the target has already, after a merge that was cut off. spend: the sources are given up
    afterwards, so that their files need no copy where one file system holds both. durable: as of
    `EpisodeWriter`. progress: called with episodes done
    and all.

    StorageError before anything is copied: sources that differ in rates, columns, codec, arrays or picture size among
    each other or from the target, or an episode that is there twice.
    """
    stores = [EpisodeStore(source) for source in sources]
    there = [EpisodeStore(target)] if (Path(target) / METADATA).exists() else []
    check_alike([*there, *stores])
    check_apart(stores if resume else [*there, *stores])
    total, copied = sum(len(store) for store in stores), 0
    with EpisodeWriter(target, stores[0].info, durable=durable and bool(there)) as writer:
        numbered = [(store, index) for store in stores for index in range(len(store))]
        for first in range(0, total, TOGETHER):
            group = numbered[first : first + TOGETHER]
            new = [(one, index) for one, index in group if not (resume and one.identity(index) in writer)]
            if new:
                writer.commit([_copied(*one, writer, link=spend) for one in new])
                copied += len(new)
            if progress is not None:
                progress(first + len(group), total)
    if durable:
        os.sync()
    return copied


def _copied(store: EpisodeStore, index: int, writer: EpisodeWriter, *, link: bool) -> Finished:
    told = store.describe(index)
    source = store.sources[int(store.meta["episode_sources"][index])]
    facts = {"seed": told["seed"], "room": told["room"], "identity": store.identity(index)}
    episode = writer.begin({}, provenance=source, **facts)
    episode.adopt(store, index, link=link)
    return Finished(episode=episode, reason=told["reason"], seconds=told["seconds"])


def check_alike(stores: Sequence[EpisodeStore]) -> None:
    """StorageError unless the episodes of all stores could lie in one."""
    if not stores:
        raise StorageError("no store was given; name one or more")
    filled = [store for store in stores if len(store)] or stores[:1]
    for store in stores:
        for what, one, first in (
            ("attributes", store.info, stores[0].info),
            ("arrays", sorted(store.keys), sorted(filled[0].keys)),
            ("sizes", store.sizes, filled[0].sizes),
        ):
            if one != first and (len(store) or what == "attributes"):
                raise StorageError(
                    f"{store.place} has {what} {one}, {stores[0].place} has {first}; only stores that agree can be "
                    "joined"
                )


def check_apart(stores: Sequence[EpisodeStore]) -> None:
    """StorageError where two stores hold the same episode."""
    owners: dict[bytes, EpisodeStore] = {}
    for store in stores:
        for index in range(len(store)):
            other = owners.setdefault(store.identity(index), store)
            if other is not store:
                raise StorageError(
                    f"episode {store.identity(index).hex()} is in {other.place} and in {store.place}; leave one of "
                    "them out, or go on with a merge that was cut off by resume=True (--resume)"
                )
