"""`sanawm verify`: reads every committed byte of a store and says what is wrong; `sanawm repair`: drops what no
episode refers to.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.datasets import files, inventory, schema
from sanawm_env.datasets.inventory import Inventory
from sanawm_env.datasets.layout import METADATA, Encoder, is_sealed
from sanawm_env.datasets.lock import WriterLock
from sanawm_env.datasets.place import Part, Place, open_place
from sanawm_env.datasets.reader import EpisodeStore, read_attributes
from sanawm_env.datasets.schema import Array
from sanawm_env.datasets.writer import GROUPS, LOCK, STAGING
from sanawm_env.errors import PoseError, StorageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify` found. problems: a line each; a store without any is sound. unreferenced: files of writers that
    were cut off, with their bytes; they harm nothing, and `repair` removes them. foreign: files that are none of ours.
    """

    store: str
    episodes: int
    frames: int
    files: int
    bytes: int
    problems: tuple[str, ...]
    unreferenced: int
    unreferenced_bytes: int
    foreign: tuple[str, ...]

    def text(self) -> str:
        """A line on the whole, and one for each problem."""
        state = f"{len(self.problems)} problems" if self.problems else "sound"
        lines = [f"{self.store}: {state}; {self.episodes} episodes, {self.frames} frames, {self.bytes / 1e6:.1f} MB"]
        lines += [f"  {problem}" for problem in self.problems]
        if self.unreferenced:
            size = f"{self.unreferenced_bytes / 1e6:.1f} MB"
            lines.append(f"  {self.unreferenced} files ({size}) belong to no episode; `sanawm repair` removes them")
        return "\n".join([*lines, *(f"  {name} is not a file of the store" for name in self.foreign)])

    def as_json(self) -> str:
        """The same for a program, on one line."""
        return json.dumps(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repaired:
    """What `repair` removed: files with their bytes, and rows of these arrays beyond the last committed end."""

    files: int
    bytes: int
    rows: dict[str, int]

    def text(self) -> str:
        """What was removed, in words."""
        if not self.files and not self.rows:
            return "nothing to remove"
        rows = ", ".join(f"{name} {count}" for name, count in self.rows.items())
        return f"removed {self.files} files ({self.bytes / 1e6:.1f} MB)" + (
            f"; rows beyond the end: {rows}" * bool(rows)
        )


Progress = Callable[[int, int], None]  # files read so far, all files


def verify(source: Path | str, progress: Progress | None = None, *, options: Mapping[str, Any] | None = None) -> Report:
    """Reads a store up to its last committed episode: checksums, metadata, counts, ranges. Changes nothing.

    source, options: as of `EpisodeStore`. A store that is being written to can be verified. StorageError where there is
    no store at all.
    """
    place = open_place(source, options)
    if place.read(METADATA) is None:
        read_attributes(place)
    problems = list(_check_metadata(place))
    try:
        store = EpisodeStore(source, options=options)
    except StorageError as error:
        return _report(place, None, None, [*problems, str(error)])
    problems += _check_index(store)
    if any(problem.startswith(("meta/episode_ends", "meta/episode_blocks")) for problem in problems):
        return _report(place, store, None, problems)  # no telling which rows belong to what
    found = inventory.take(store)
    problems += [
        f"{array.name}: file {number} is missing{_whose(store, array, number)}" for array, number in found.missing
    ]
    problems += _check_files(store, found, progress or (lambda done, total: None))
    return _report(place, store, found, problems)


def repair(path: Path | str) -> Repaired:
    """Removes what lies beyond the last committed end of a store, and says what. Committed episodes are not touched.

    What `verify` calls a problem is not repaired: lost bytes come back from a copy only. StorageError: another process
    writes to the store, or there is none.
    """
    store = EpisodeStore(path)
    lock = WriterLock(store.path / LOCK)
    try:
        store = EpisodeStore(path)
        found = inventory.take(store)
        with files.storing(store.path):
            rows = _cut(store, found)
            for name in found.unreferenced:
                (store.path / name).unlink()
            shutil.rmtree(store.path / STAGING, ignore_errors=True)
            for group in GROUPS[:2] if not len(store) else ():
                for folder in (store.path / group).iterdir():
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()
        size = sum(found.sizes[name] for name in found.unreferenced)
        return Repaired(files=len(found.unreferenced), bytes=size, rows=rows)
    finally:
        lock.release()


def _cut(store: EpisodeStore, found: Inventory) -> dict[str, int]:
    """Ends every array at the last committed row; rows that it loses, by name."""
    lost = {}
    for array in [*store.tables.values(), *schema.META]:
        stored = _shape(_metadata(store.place, array.name))
        surplus = stored[0] - found.rows[array.name]
        if surplus > 0:
            lost[array.name] = surplus
            metadata = Encoder(array, stored[1:], store.info).metadata(found.rows[array.name])
            staged = store.path / STAGING / METADATA
            staged.parent.mkdir(exist_ok=True)
            files.write(staged, metadata)
            files.flush([staged])
            files.move(staged, store.path / array.name / METADATA)
    return lost


def _check_metadata(place: Place) -> Iterator[str]:
    names = ["", *GROUPS, *schema.BY_NAME]
    for name, content in zip(names, place.read_parts([Part(f"{name}/{METADATA}".lstrip("/")) for name in names])):
        if content is None:
            needed = name not in schema.BY_NAME or name.startswith("meta/")
            if needed:
                yield f"{name}/{METADATA} is missing"
            continue
        try:
            sealed = is_sealed(content)
        except (ValueError, KeyError, TypeError) as error:
            yield f"{name}/{METADATA} cannot be read ({error})"
            continue
        if not sealed:
            yield f"{name}/{METADATA} is not what was written: its checksum differs"


def _check_index(store: EpisodeStore) -> Iterator[str]:
    """Counts and ranges of what is kept an episode."""
    per_step, ends = store.info.frames_per_step, store.ends
    if (np.diff(ends, prepend=0) <= 0).any() or (ends % per_step).any():
        yield f"meta/episode_ends does not grow by whole steps of {per_step} rows: {ends[:8].tolist()} ..."
    if (np.diff(store.meta["episode_blocks"], prepend=0) < 0).any():
        yield "meta/episode_blocks does not grow"
    for name, limit in (("sources", len(store.sources)), ("reasons", len(schema.END_REASONS))):
        values = store.meta[f"episode_{name}"]
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit:
            yield f"meta/episode_{name} reaches from {values.min()} to {values.max()}, allowed is 0 to {limit - 1}"
    if len({store.identity(index) for index in range(len(store))}) != len(store):
        yield "meta/episode_ids holds an id twice"
    if not np.isfinite(store.meta["episode_seconds"]).all():
        yield "meta/episode_seconds holds NaN or infinity"
    for array in [*store.tables.values(), *schema.META]:
        written = _metadata(store.place, array.name)
        shape = _shape(written)
        if written != Encoder(array, shape[1:], store.info).metadata(shape[0]):
            yield f"{array.name}/{METADATA} does not say what the table of version {schema.VERSION} says"


def _check_files(store: EpisodeStore, found: Inventory, progress: Progress) -> Iterator[str]:
    missing, total, done = {(array.name, number) for array, number in found.missing}, sum(found.files.values()), 0
    for key, array in store.tables.items():
        per_file = array.rows_per_file(store.info.frames_per_step)
        for number in range(found.files[array.name]):
            rows = slice(number * per_file, min((number + 1) * per_file, found.rows[array.name]))
            if (array.name, number) not in missing:
                try:
                    wrong = _range(array, store.arrays[key][rows])
                except StorageError as error:
                    wrong = f"is damaged ({error})"
                if wrong:
                    yield f"{array.name}: file {number} {wrong}{_whose(store, array, number)}"
            done += 1
            progress(done, total)
    progress(total, total)
    yield from _check_valid(store, {name for name, _ in missing})


def _check_valid(store: EpisodeStore, incomplete: set[str]) -> Iterator[str]:
    if "data/valid" in incomplete:
        return
    for index in range(len(store)):
        try:
            valid = store.stored("valid", index)
        except StorageError:
            return  # said already
        try:
            schema.check_valid(valid)
        except StorageError as error:
            yield f"episode {index}: {error}"


def _range(array: Array, rows: np.ndarray) -> str:
    """What is wrong with the values of a file, "" if nothing is."""
    if rows.dtype.kind == "f" and (np.isnan(rows).any() or (array.unit != "m" and np.isinf(rows).any())):
        return "holds NaN or infinity"  # a depth may be infinite
    try:
        if array.key.endswith("poses"):
            import torch

            from sanawm_env.camera import check_rigid

            check_rigid(torch.from_numpy(rows), array.key)
        if array.key.endswith("intrinsics") and (rows[:, :2] <= 0).any():
            return "holds a focal length that is not above 0"
    except PoseError as error:
        return f"is out of range ({error})"
    return ""


def _whose(store: EpisodeStore, array: Array, number: int) -> str:
    """Which episodes a file holds, in words."""
    per_file = array.rows_per_file(store.info.frames_per_step)
    ends = store.row_ends(array)
    first, last = (
        int(np.searchsorted(ends, row, side="right")) for row in (number * per_file, (number + 1) * per_file - 1)
    )
    last = min(last, len(store) - 1)
    return f"; it belongs to episode {first}" if first == last else f"; it belongs to episodes {first} to {last}"


def _metadata(place: Place, array: str) -> bytes:
    content = place.read(f"{array}/{METADATA}")
    if content is None:
        raise StorageError(f"{place}/{array}/{METADATA} went missing while it was read; verify again")
    return content


def _shape(metadata: bytes) -> tuple[int, ...]:
    return tuple(json.loads(metadata)["shape"])


def _report(place: Place, store: EpisodeStore | None, found: Inventory | None, problems: list[str]) -> Report:
    sizes = place.sizes() if found is None else found.sizes
    beyond = [] if found is None else [sizes[name] for name in found.unreferenced]
    return Report(
        store=str(place),
        episodes=0 if store is None else len(store),
        frames=0 if store is None else store.frames,
        files=len(sizes) - len(beyond),
        bytes=sum(sizes.values()) - sum(beyond),
        problems=tuple(problems),
        unreferenced=len(beyond),
        unreferenced_bytes=sum(beyond),
        foreign=() if found is None else tuple(sorted(found.foreign)),
    )
