"""Which files a store needs, which of them are missing, and which nothing refers to."""

from __future__ import annotations

import dataclasses
import re

from sanawm_env.datasets import schema
from sanawm_env.datasets.layout import METADATA
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.schema import Array
from sanawm_env.datasets.writer import GROUPS, LOCK, STAGING

NUMBERED = re.compile(r"c\.(\d+)(\.0)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inventory:
    """rows: of each array up to the last committed end. files: how many of each these rows take. sizes: bytes of every
    file there, by name. missing: files of those needed. unreferenced: files beyond the end, of writers that were cut
    off. foreign: files that are none of ours."""

    rows: dict[str, int]
    files: dict[str, int]
    sizes: dict[str, int]
    missing: list[tuple[Array, int]]
    unreferenced: list[str]
    foreign: list[str]


def take(store: EpisodeStore) -> Inventory:
    """The inventory of a store, from one listing; no file is read."""
    per_step = store.info.frames_per_step
    tables = {array.name: array for array in (*store.tables.values(), *schema.META)}
    rows = {name: store.rows_of(array) for name, array in tables.items()}
    needed = {name: -(-rows[name] // array.rows_per_file(per_step)) for name, array in tables.items()}
    found = Inventory(rows=rows, files=needed, sizes=store.place.sizes(), missing=[], unreferenced=[], foreign=[])
    ours = {LOCK, METADATA, *(f"{name}/{METADATA}" for name in (*GROUPS, *tables))}
    there: dict[str, set[int]] = {name: set() for name in tables}
    for name in found.sizes.keys() - ours:
        folder, _, file = name.rpartition("/")
        numbered = NUMBERED.fullmatch(file) if folder in tables else None
        if numbered is not None and int(numbered[1]) < needed[folder]:
            there[folder].add(int(numbered[1]))
        elif numbered is not None or name.startswith(f"{STAGING}/") or (folder in schema.BY_NAME and not len(store)):
            found.unreferenced.append(name)
        else:
            found.foreign.append(name)
    for name, array in tables.items():
        found.missing.extend((array, number) for number in range(needed[name]) if number not in there[name])
    return found
