"""The episodes that run in an environment, on their way into a store: what all recording wrappers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.datasets.open_episode import OpenEpisode
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.writer import EpisodeWriter, Finished

Rows = dict[str, np.ndarray]


class RunningEpisode:
    """An episode that is open, and what its next step needs of it. pose: [4, 4], the latest one. intrinsics: [4]."""

    def __init__(self, episode: OpenEpisode, room: int, start: Rows, seconds: float) -> None:
        self.episode, self.room, self.seconds = episode, room, seconds
        self.pose, self.intrinsics = start["start_poses"], start["start_intrinsics"]


class RunningEpisodes:
    """One episode a world at most, in the store at `path`; durable: as of `EpisodeWriter`.

    An episode is committed at the step at which it ends, or when the next one or `close` cuts it off; one without a
    step is dropped. What a world does after its end is not kept.
    """

    def __init__(self, path: str | Path, info: StoreInfo, *, durable: bool = True) -> None:
        self.writer = EpisodeWriter(path, info, durable=durable)
        self._running: dict[int, RunningEpisode] = {}

    def begin(self, world: int, start: Rows, seconds: float, *, room: int = -1, **facts: Any) -> None:
        """A new episode of a world. start: arrays of `start`. seconds: that the reset took. facts: as
        `EpisodeWriter.begin` takes them."""
        self.finish({world: ""})
        self._running[world] = RunningEpisode(self.writer.begin(start, room=room, **facts), room, start, seconds)

    def append(self, world: int, rows: Rows, seconds: float, reason: str = "") -> None:
        """A step of a world. rows: arrays of `data`. seconds: that it took. reason: why the episode ends with it, ""
        while it goes on."""
        one = self._running[world]
        one.pose = rows["poses"][-1]
        one.seconds += seconds
        one.episode.append(rows)
        if reason:
            self.finish({world: reason})

    def select(self, worlds: Sequence[int]) -> None:
        """Goes on with these worlds alone, which are 0, 1, ... from now on; the episodes of the others are cut off."""
        self.finish(dict.fromkeys(set(self._running) - set(worlds), ""))
        self._running = {new: self._running[old] for new, old in enumerate(worlds) if old in self._running}

    def running(self, world: int) -> bool:
        """Whether an episode of this world is open."""
        return world in self._running

    def close(self) -> None:
        """Commits what is running and closes the store; may be called again."""
        if self.writer.open:
            self.finish(dict.fromkeys(sorted(self._running), ""))
            self.writer.close()

    def accept(self, one: RunningEpisode, reason: str) -> bool:
        """Whether an episode that is over is kept; every one is, unless a subclass has another opinion."""
        return True

    def judged(self) -> None:
        """Called when `accept` has been asked of all episodes that are over, before the kept ones are committed."""

    def finish(self, over: Mapping[int, str]) -> None:
        """Commits the episodes of these worlds together, each with the reason of its end; those without a step are
        dropped."""
        finished = []
        for world, reason in over.items():
            one = self._running.pop(world, None)
            if one is not None and one.episode.frames and self.accept(one, reason):
                finished.append(Finished(episode=one.episode, reason=reason, seconds=one.seconds))
            elif one is not None:
                one.episode.abort()
        self.judged()
        if finished:
            self.writer.commit(finished)
