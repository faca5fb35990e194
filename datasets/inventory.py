"""Which files a store needs, which of them are missing, and which nothing refers to."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from sanawm_env.datasets import schema
from sanawm_env.datasets.layout import METADATA, file_name
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.schema import Array
from sanawm_env.datasets.writer import GROUPS, LOCK, STAGING

NUMBERED = re.compile(r"c\.(\d+)(\.0)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inventory:
    """rows: of each array up to the last committed end. files: how many of each these rows take. missing: of those.
    unreferenced: files beyond the end, of writers that were cut off. foreign: files that are none of ours."""

    rows: dict[str, int]
    files: dict[str, int]
    missing: list[tuple[Array, int]]
    unreferenced: list[Path]
    foreign: list[Path]


def take(store: EpisodeStore) -> Inventory:
    """The inventory of a store; every folder is listed once, no file is read."""
    per_step = store.info.frames_per_step
    tables = [*store.tables.values(), *schema.META]
    rows = {array.name: store.rows_of(array) for array in tables}
    found = Inventory(
        rows=rows,
        files={array.name: -(-rows[array.name] // array.rows_per_file(per_step)) for array in tables},
        missing=[],
        unreferenced=[path for path in (store.path / STAGING).rglob("*") if path.is_file()],
        foreign=[],
    )
    for array in tables:
        _list(store.path / array.name, array, found)
    known = {Path(name).name for name in (*rows, METADATA)}
    for group in GROUPS:
        for path in (store.path / group).iterdir():
            if path.name not in known:
                ours = f"{group}/{path.name}" in schema.BY_NAME and not len(store)
                (found.unreferenced if ours else found.foreign).extend(path.rglob("*") if path.is_dir() else [path])
    return found


def _list(folder: Path, array: Array, found: Inventory) -> None:
    there = set()
    for path in folder.iterdir():
        numbered = NUMBERED.fullmatch(path.name)
        if numbered is None:
            if path.name not in (METADATA, Path(LOCK).name, Path(STAGING).name):
                found.foreign.append(path)
        elif int(numbered[1]) >= found.files[array.name]:
            found.unreferenced.append(path)
        else:
            there.add(path.name)
    for number in range(found.files[array.name]):
        if file_name(number, len(array.axes)) not in there:
            found.missing.append((array, number))
