"""Appends episodes to a store, each visible whole or not at all, whatever happens at any instant.

Nothing is written in its place: files are finished in a staging folder and then moved, the index of episodes last. That
last move is the commit. What else is not Zarr lies in the folder of that array, since readers list groups, not arrays.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from sanawm_env.datasets import files, schema
from sanawm_env.datasets.codec import picture_codec
from sanawm_env.datasets.layout import METADATA, Encoder, group_metadata
from sanawm_env.datasets.lock import WriterLock
from sanawm_env.datasets.open_episode import OpenEpisode
from sanawm_env.datasets.place import Folder
from sanawm_env.datasets.provenance import Provenance, StoreInfo
from sanawm_env.datasets.reader import EpisodeStore, read_attributes
from sanawm_env.errors import StorageError, nearest

LOCK, STAGING = f"{schema.ENDS}/writer.lock", f"{schema.ENDS}/staging"
GROUPS = ("data", "start", "meta")


class EpisodeWriter:
    """The one writer of the store at `path`, which is made if it is not there (then `info` must be given).

    durable: flushes files to the medium before a commit, so that what was reported outlives a loss of power too;
    without it, only the death of the process. A context manager: its end closes the store and drops open episodes.

    StorageError: another process writes to the store, `info` differs from the store's, or something else is there.
    """

    def __init__(self, path: Path | str, info: StoreInfo | None = None, *, durable: bool = True):
        self.path = Path(path)
        self.durable = durable
        check_place(self.path, info)
        with files.storing(self.path):
            (self.path / STAGING).parent.mkdir(parents=True, exist_ok=True)
        self._open: list[OpenEpisode] = []
        self._committed: _Committed | None = None
        self._encoders: dict[str, Encoder] = {}
        self._sizes: schema.Sizes = {}
        self._lock = WriterLock(self.path / LOCK)
        try:
            self._prepare(info)
        except BaseException:
            self._lock.release()
            raise

    def __len__(self) -> int:
        return self._state().episodes

    def __contains__(self, identity: bytes) -> bool:
        """Whether the episode with this id is committed: a job that resumes leaves it out."""
        return identity in self._state().ids

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        seed: int,
        room: int = -1,
        reason: str = "",
        seconds: float = 0.0,
        provenance: Provenance | Mapping[str, Any] | None = None,
        identity: bytes | None = None,
    ) -> int:
        """Appends an episode and returns its index, once it is committed.

        arrays: by key of `schema.TABLE`: those of `data` with k F rows, those of `start` ("start_frames") without a
        row axis. Every episode of a store has the same ones, and one picture size. StorageError otherwise.
        """
        start = {key: values for key, values in arrays.items() if key.startswith("start_")}
        with self.begin(start, seed=seed, room=room, provenance=provenance, identity=identity) as episode:
            episode.append({key: values for key, values in arrays.items() if key not in start})
            return episode.commit(reason=reason, seconds=seconds)

    def begin(
        self,
        start: Mapping[str, np.ndarray],
        *,
        seed: int,
        room: int = -1,
        provenance: Provenance | Mapping[str, Any] | None = None,
        identity: bytes | None = None,
    ) -> OpenEpisode:
        """An episode that is appended to step by step; any number of them may be open at once.

        start: what reset returned, by key ("start_frames", "start_poses", "start_intrinsics"). room: seed of its room,
        -1 for none. identity: 16 bytes that no other episode has, drawn if None. provenance: where it comes from, or
        its mapping as a store gives it.
        """
        state = self._state()
        if not state.episodes and not self._open:
            self._sizes, self._encoders = self._fixed_sizes(), {}
        identity = uuid.uuid4().bytes if identity is None else bytes(identity)
        if len(identity) != 16 or identity in state.ids or identity in {one.identity for one in self._open}:
            raise StorageError(
                f"episode id {identity.hex()} is in the store or not of 16 bytes; leave this episode out"
            )
        source = (
            provenance.mapping() if isinstance(provenance, Provenance) else dict(provenance or Provenance().mapping())
        )
        with files.storing(self.path):
            folder = self.path / STAGING / uuid.uuid4().hex
            folder.mkdir(parents=True)
        episode = OpenEpisode(self, folder, seed=int(seed), room=int(room), source=source, identity=identity)
        self._open.append(episode)
        episode.begin(start)
        return episode

    def close(self) -> None:
        """Drops open episodes and lets others write; may be called again."""
        for episode in list(self._open):
            episode.abort()
        if self.open:
            shutil.rmtree(self.path / STAGING, ignore_errors=True)
        self._lock.release()

    @property
    def open(self) -> bool:
        """False after `close`, and in a child process that a fork made."""
        return self._lock.held

    # What open episodes ask of their writer.

    def sizes(self) -> schema.Sizes:
        """Lengths of the axes that the store has."""
        return self._sizes

    def known(self) -> set[str] | None:
        """Keys of the arrays that its episodes have; None before the first one."""
        return set(self._state().keys) or None

    def encoder(self, array: schema.Array) -> Encoder:
        """Of an array, whose axes have their lengths by now."""
        if array.name not in self._encoders:
            shape = tuple(axis if isinstance(axis, int) else self._sizes[axis] for axis in array.axes[1:])
            self._encoders[array.name] = Encoder(array, shape, self.info)
        return self._encoders[array.name]

    def forget(self, episode: OpenEpisode) -> None:
        """The episode is no longer open."""
        if episode in self._open:
            self._open.remove(episode)

    def commit(self, finished: Sequence[Finished]) -> list[int]:
        """Makes finished episodes visible, all in one instant, and returns their indices. A failure drops them all."""
        try:
            with files.storing(self.path):
                return self._commit(finished)
        finally:
            for one in finished:
                one.episode.abort()

    def _commit(self, finished: Sequence[Finished]) -> list[int]:
        before = self._state()
        after, moves, staging = before, list[Move](), finished[-1].episode
        for one in finished:
            one.check(set(after.keys) or None)
            state, after = after, after.with_episode(one)
            moves += [move for array in one.episode.once() for move in self._whole_files(array, one.episode, state)]
        rows = {array.name: self._joined(array, finished) for array in staging.growing()}
        rows |= after.new
        ordered = sorted(rows, key=lambda name: name == schema.ENDS)
        for name in ordered:
            moves += self._grown(schema.BY_NAME[name], rows[name], before, after, staging)
        metadata = [(array.name, self._metadata(array, after)) for array in staging.once()]
        metadata += [(name, self._metadata(schema.BY_NAME[name], after)) for name in ordered]
        if after.sources != before.sources:
            metadata.insert(0, ("", group_metadata(self.info.attributes(after.sources))))
        moves += [(staging.stage(content), self.path / name / METADATA) for name, content in metadata]
        self._committed = None  # until it is known which of the two holds, the disk is asked
        self._publish(moves)
        after.new.clear()
        self._committed = after
        return list(range(before.episodes, after.episodes))

    def _joined(self, array: schema.Array, finished: Sequence[Finished]) -> np.ndarray:
        return np.concatenate([part for one in finished for part in one.episode.rows[array.key]])

    def _whole_files(self, array: schema.Array, episode: OpenEpisode, state: _Committed) -> list[Move]:
        encoder, first = self.encoder(array), self._rows(array, state) // array.rows_per_file(self.info.frames_per_step)
        staged = episode.files[array.key]
        return [(path, self.path / array.name / encoder.file(first + k)) for k, path in enumerate(staged)]

    def _grown(
        self, array: schema.Array, rows: np.ndarray, state: _Committed, after: _Committed, episode: OpenEpisode
    ) -> list[Move]:
        """Files with new rows, the first of them with the rows that the last file of the store has already."""
        encoder, kept = self.encoder(array), state.tails.get(array.name, rows[:0])
        rows, first = np.concatenate([kept, rows]), (self._rows(array, state) - len(kept)) // array.chunk
        after.tails[array.name] = rows[len(rows) - len(rows) % array.chunk :]
        moves = []
        for k in range(-(-len(rows) // array.chunk)):
            name = encoder.file(first + k)
            staged = episode.stage(encoder.encode(rows[k * array.chunk : (k + 1) * array.chunk]))
            moves.append((staged, self.path / array.name / name))
        return moves

    def _metadata(self, array: schema.Array, state: _Committed) -> bytes:
        return self.encoder(array).metadata(self._rows(array, state))

    def _rows(self, array: schema.Array, state: _Committed) -> int:
        steps = state.frames // self.info.frames_per_step
        return {"time": state.frames, "step": steps, "episode": state.episodes, "block": state.blocks}[
            str(array.axes[0])
        ]

    def _publish(self, moves: list[Move]) -> None:
        with files.storing(self.path):
            if self.durable:
                files.flush(source for source, _ in moves)
            for _, target in moves:
                target.parent.mkdir(parents=True, exist_ok=True)
            for source, target in moves[:-1]:
                files.move(source, target)
            if self.durable:
                files.flush({folder for _, target in moves for folder in (target.parent, target.parent.parent)})
            files.move(*moves[-1])
            if self.durable:
                files.flush([moves[-1][1].parent])

    def _prepare(self, info: StoreInfo | None) -> None:
        """Makes the store if it is not there, or reads it."""
        shutil.rmtree(self.path / STAGING, ignore_errors=True)  # of a writer that was killed
        if info is not None and not (self.path / METADATA).exists():
            self._create(info)
        self.info = StoreInfo.of(read_attributes(Folder(self.path)))
        if info is not None and info != self.info:
            raise StorageError(f"{self.path} was made with {self.info}, not {info}; use another store")
        self._sizes = {**self._fixed_sizes(), **self._state().sizes}

    def _create(self, info: StoreInfo) -> None:
        """An empty store; it is one as soon as the metadata of the whole, written last, are there."""
        self.info = info
        content = {f"{group}/{METADATA}": group_metadata({}) for group in GROUPS}
        content |= {f"{array.name}/{METADATA}": self.encoder(array).metadata(0) for array in schema.META}
        content[METADATA] = group_metadata(self.info.attributes([]))
        with files.storing(self.path):
            moves = []
            for number, (name, metadata) in enumerate(content.items()):
                staged = self.path / STAGING / str(number)
                staged.parent.mkdir(exist_ok=True)
                files.write(staged, metadata)
                moves.append((staged, self.path / name))
        self._publish(moves)

    def _fixed_sizes(self) -> schema.Sizes:
        return {"frames_per_step": self.info.frames_per_step, "action": len(self.info.action_columns)}

    def _state(self) -> _Committed:
        if not self.open:
            raise StorageError(
                f"the writer of {self.path} is closed, or belongs to the parent of this process; open one"
            )
        if self._committed is None:
            self._committed = self._load()
        return self._committed

    def _load(self) -> _Committed:
        store = EpisodeStore(self.path)
        if not len(store):  # a first episode that was cut off may have had arrays which the next one lacks
            for group in ("data", "start"):
                for folder in (self.path / group).iterdir():
                    if folder.is_dir():
                        shutil.rmtree(folder)
        state = _Committed(
            episodes=len(store),
            frames=store.frames,
            ids={store.identity(index) for index in range(len(store))},
            sources=store.sources,
            blocks=int(store.meta["episode_blocks"][-1]) if len(store) else 0,
            keys=store.keys,
            sizes=store.sizes,
        )
        for key, table in store.tables.items():
            if table.written == "growing":
                state.tails[table.name] = store.tail(key)
        for name, rows in {**store.meta, "episode_ends": store.ends}.items():
            state.tails[f"meta/{name}"] = rows[len(rows) - len(rows) % schema.ROWS :]
        return state


Move = tuple[Path, Path]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """An episode to commit. reason: why it ended, of `END_REASONS`. seconds: spent on computing it."""

    episode: OpenEpisode
    reason: str = ""
    seconds: float = 0.0

    def check(self, known: set[str] | None) -> None:
        """StorageError unless it can lie beside episodes with the arrays `known`."""
        self.episode.check_open()
        if not self.episode.frames:
            raise StorageError("the episode has no step; append one before commit, or abort it")
        if self.reason not in schema.END_REASONS:
            raise StorageError(f"reason is {self.reason!r}; {nearest(self.reason, schema.END_REASONS)}")
        schema.check_names(self.episode.keys, known)


@dataclass
class _Committed:
    """What the store holds. tails: of each growing array, the rows of its last file if that has room for more."""

    episodes: int
    frames: int
    blocks: int
    ids: set[bytes]
    sources: list[dict[str, Any]]
    keys: set[str]
    sizes: schema.Sizes = field(default_factory=dict)
    tails: dict[str, np.ndarray] = field(default_factory=dict)
    new: dict[str, np.ndarray] = field(default_factory=dict)

    def with_episode(self, one: Finished) -> _Committed:
        """What it holds with one more episode, whose tails are not known yet. new: the rows of `meta` of all episodes
        added so far."""
        episode, sources = one.episode, self.sources
        if episode.source not in sources:
            sources = [*sources, episode.source]
        frames, blocks = self.frames + episode.frames, self.blocks + len(episode.files["states"])
        rows: dict[str, np.ndarray] = {
            schema.ENDS: np.array([frames], np.int64),
            "meta/episode_seeds": np.array([episode.seed], np.int64),
            "meta/episode_blocks": np.array([blocks], np.int64),
            "meta/episode_rooms": np.array([episode.room], np.int64),
            "meta/episode_reasons": np.array([schema.END_REASONS.index(one.reason)], np.uint8),
            "meta/episode_sources": np.array([sources.index(episode.source)], np.int32),
            "meta/episode_ids": np.frombuffer(episode.identity, np.uint8)[None],
            "meta/episode_seconds": np.array([one.seconds], np.float64),
        }
        return _Committed(
            episodes=self.episodes + 1,
            frames=frames,
            blocks=blocks,
            ids=self.ids | {episode.identity},
            sources=sources,
            keys=episode.keys,
            sizes=self.sizes,
            new={name: np.concatenate([self.new.get(name, own[:0]), own]) for name, own in rows.items()},
        )


def check_place(path: Path, info: StoreInfo | None) -> None:
    """StorageError unless a store is at `path`, or can be made there from `info`."""
    if info is not None:
        picture_codec(info.picture_codec, info.picture_quality)
    if (path / METADATA).exists():
        read_attributes(Folder(path))
        return
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in GROUPS) if path.is_dir() else []
    if others or (path.exists() and not path.is_dir()):
        raise StorageError(f"{path} is no episode store but holds {others[:3] or 'a file'}; choose another folder")
    if info is None:
        raise StorageError(f"no episode store is at {path}; pass a StoreInfo to make one")
