"""Episodes on their way from a batch of worlds into a folder: measured, judged, recorded and stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.drift_guard import DriftGuard, open_guard
from sanawm_env.generation.config import Generate
from sanawm_env.generation.filters import Measured, Scores, reasons
from sanawm_env.generation.plan import Plan
from sanawm_env.generation.record import STORE, Line, Record
from sanawm_env.scene import load_scene
from sanawm_env.wrappers.episodes import EpisodeLog
from sanawm_env.wrappers.recorded import Recorded
from sanawm_env.wrappers.running_episodes import RunningEpisode


class Recorder(EpisodeLog):
    """An `EpisodeLog` of planned episodes. An episode that is cut off leaves nothing, one that a filter rejects a line
    in the record. done: called with the line of every episode that is over, once it is stored or rejected."""

    def __init__(self, world: Recorded, folder: Path, config: Generate, done: Callable[[Line], object]) -> None:
        codec = {"picture_codec": config.picture_codec, "picture_quality": config.picture_quality}
        kept: dict[str, Any] = {"keep": config.keep, "truth": config.truth, "durable": config.durable}
        super().__init__(world, folder / STORE, codec=codec, **kept)
        self.config, self.done = config, done
        self.record = Record(folder, durable=config.durable)
        self._guard = _guard(config, world.fingerprint)
        self._scores: dict[bytes, Scores] = {}
        self._returns: dict[bytes, float] = {}
        self._lines: list[Line] = []

    def begin_planned(
        self, info: Mapping[str, Any], worlds: Sequence[int], plans: Sequence[Plan], seconds: float
    ) -> None:
        """A reset of these worlds, all of them in rooms or all at one scene."""
        scene = plans[0].scene
        together = None if self.world.device == "cpu" else self.config.batch
        self.extra = {"job": self.config.job_id.hex(), "threads": self.config.threads, "batch": together}
        shown = None if scene is None else load_scene(scene, self.world.config.height, self.world.config.width)
        self.extra |= {"scene": scene}
        self.extra |= {} if shown is None or shown.prompt is None else {"prompt": shown.prompt}
        self.licences = [] if shown is None or shown.licence is None else [shown.licence]
        identities = [self.config.identity(one.number) for one in plans]
        self.start(info, worlds, seconds, identities)
        for world, identity in zip(worlds, identities):
            self._scores[identity] = Scores(self.config.filters, self._running[world].pose, self._guard)
            self._returns[identity] = 0.0

    def add(
        self, info: Mapping[str, Any], actions: Any, seconds: float, measured: Measured, batch: int | None = None
    ) -> None:
        """A step of all worlds; as `EpisodeLog.step`."""
        for world, one in self._running.items():
            valid, identity = int(info["valid_frames"][world]), one.episode.identity
            self._scores[identity].add(measured, world, info["frames"][world][:valid], info["poses"][world][:valid])
            self._returns[identity] += float(np.sum(info["rewards"][world]))
        self.step(info, actions, seconds, batch=batch)

    def accept(self, one: RunningEpisode, reason: str) -> bool:
        identity = one.episode.identity
        scores, total = self._scores.pop(identity), self._returns.pop(identity)
        if not reason:
            return False
        told = scores.result(one.room, self.world.config)
        rejected = reasons(told, self.config.filters)
        line: Line = {
            "episode": int.from_bytes(identity[8:], "big"),
            "stored": self.config.keep_rejected or not rejected,
            "rejected": rejected,
            "scores": told,
            "frames": scores.frames,
            "return": round(total, 6),
            "end": reason,
            "seconds": round(one.seconds, 6),
        }
        self._lines.append(line)
        return bool(line["stored"])

    def close(self) -> None:
        super().close()
        self.record.close()

    def judged(self) -> None:
        self.record.write(self._lines)

    def finish(self, over: Mapping[int, str]) -> None:
        super().finish(over)
        told, self._lines = self._lines, []
        for line in told:
            self.done(line)


def _guard(config: Generate, fingerprint: str) -> DriftGuard | None:
    """The drift guard that the filters ask for; ConfigError or BundleError where there is none for this world."""
    if config.filters.confidence is None:
        return None
    return open_guard(config.filters.guard or config.bundle).check_fits(fingerprint)
