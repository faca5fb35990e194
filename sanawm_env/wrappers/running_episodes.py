"""The episodes that run in an environment, on their way into a store: what all recording wrappers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.datasets.open_episode import OpenEpisode
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.writer import EpisodeWriter

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
        self._finish(world, "")
        self._running[world] = RunningEpisode(self.writer.begin(start, room=room, **facts), room, start, seconds)

    def append(self, world: int, rows: Rows, seconds: float, reason: str) -> None:
        """A step of a world. rows: arrays of `data`. seconds: that it took. reason: why the episode ends with it, ""
        while it goes on."""
        one = self._running[world]
        one.pose = rows["poses"][-1]
        one.seconds += seconds
        one.episode.append(rows)
        if reason:
            self._finish(world, reason)

    def running(self, world: int) -> bool:
        """Whether an episode of this world is open."""
        return world in self._running

    def close(self) -> None:
        """Commits what is running and closes the store; may be called again."""
        if self.writer.open:
            for world in sorted(self._running):
                self._finish(world, "")
            self.writer.close()

    def _finish(self, world: int, reason: str) -> None:
        one = self._running.pop(world, None)
        if one is not None and one.episode.frames:
            one.episode.commit(reason=reason, seconds=one.seconds)
        elif one is not None:
            one.episode.abort()
