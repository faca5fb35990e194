"""LogToRerun, LogVectorToRerun: what an environment does goes into Rerun recordings while it runs, one a world."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from sanawm_env.env import Worlds
from sanawm_env.errors import ConfigError
from sanawm_env.wrappers.memory_probe import MemoryProbe, latent_statistics
from sanawm_env.wrappers.rerun_layout import Contents
from sanawm_env.wrappers.rerun_recording import Recording
from sanawm_env.wrappers.rerun_sink import GrowingFile, Sink, Viewer
from sanawm_env.wrappers.rerun_world import LoggedWorld, Step, plots_of


class RerunLog:
    """Recordings of the worlds of an environment. Both wrappers are thin faces of this.

    path: an .rrd file; of a batch, a folder that gets world-000.rrd, world-001.rrd, ...; None opens the viewer. worlds:
    which of the batch, all by default. codec: "av1" or "jpeg", see `Recording`. truth: also what the ray-caster sees
    there, with depth and PSNR, for worlds that start in a room; it takes longer than the logging itself. memory_every:
    reads memory and latents at every so many steps, 0 for never. viewer_memory: what the viewer may take.

    Encoding and writing happen in a thread, a step behind; what fails there is raised by the next call. The recordings
    go on over resets: an episode begins where the one before it has ended.
    """

    def __init__(
        self,
        env: Any,
        path: str | Path | None = None,
        *,
        worlds: Sequence[int] | None = None,
        codec: str = "av1",
        truth: bool = False,
        memory_every: int = 1,
        viewer_memory: str = "2GB",
    ) -> None:
        if not isinstance(env, Worlds):
            raise ConfigError(f"{type(env).__name__} has no world to log; wrap an environment of sanawm_env.")
        env.check_recordable()
        if memory_every < 0:
            raise ConfigError(f"memory_every is {memory_every}, allowed is a number of steps, or 0 for never.")
        self.env, self.memory_every = env, memory_every
        self.probe = MemoryProbe(env.model)
        count = int(getattr(env, "num_envs", 1))
        chosen = range(count) if worlds is None else worlds
        if unknown := [world for world in chosen if not 0 <= world < count]:
            raise ConfigError(f"worlds holds {unknown[0]}, allowed are 0 .. {count - 1}; change it.")
        plots = plots_of(env, self.probe, truth=truth)
        contents = Contents(videos=("truth",) if truth else (), depth=truth, plots=plots)
        self._worlds = {}
        for world in chosen:
            sink = _sink(path, world if isinstance(env, VectorEnv) else None, viewer_memory)
            recording = Recording(sink, contents, fps=env.fps, frames_per_chunk=env.frames_per_step, codec=codec)
            self._worlds[world] = LoggedWorld(env, recording, truth=truth)
        self._steps = 0
        self._writer = ThreadPoolExecutor(1, "rerun")
        self._written: Future[None] | None = None

    def start(self, info: Mapping[str, Any], worlds: Sequence[int]) -> None:
        """A reset of these worlds. info: with a row a world."""
        told = {world: _row(info, world) for world in worlds if world in self._worlds}
        seconds = self.env.last_timing["reset_seconds"]

        def write() -> None:
            for world, row in told.items():
                self._worlds[world].start(row, seconds)

        self._write(write)

    def step(self, take: Callable[[], Any], actions: Any, *, scalar: bool) -> Any:
        """What `take` gives, which steps the environment. actions: with a row a world."""
        read = self.memory_every and self._steps % self.memory_every == 0
        self._steps += 1
        if read:
            with self.probe.watching(self.env.world):
                result = take()
            made = self.env.last_output[1]
        else:
            result, made = take(), None
        # A clip that is replayed denoises nothing and moves no memory.
        readings = {} if made is None else self.probe.readings(self.env.world)
        latents = None if made is None else latent_statistics(made)
        info = {key: [value] for key, value in result[4].items()} if scalar else result[4]
        seconds = self.env.last_timing["step_seconds"]
        steps = {
            world: Step(
                info=_row(info, world),
                action=np.array(actions[world]),
                seconds=seconds,
                memory={plot: {name: rows[world] for name, rows in s.items()} for plot, s in readings.items()},
                latents=(latents[0][world], latents[1][world]) if latents is not None else None,
            )
            for world in self._worlds
        }

        def write() -> None:
            for world, step in steps.items():
                self._worlds[world].step(step)

        self._write(write)
        return result

    def flush(self) -> None:
        """Waits until everything so far is written. StorageError where it cannot be."""
        if self._written is not None:
            pending, self._written = self._written, None
            pending.result()

    def close(self) -> None:
        """Writes the rest and closes the recordings; may be called again."""
        try:
            self.flush()
        finally:
            self._writer.shutdown()
            for world in self._worlds.values():
                world.recording.close()

    def _write(self, job: Callable[[], None]) -> None:
        self.flush()
        self._written = self._writer.submit(job)


class LogToRerun(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Logs one world to an .rrd file, or to the viewer if path is None; path and options as of `RerunLog`.

    Needs frames="all". Observations, rewards and infos pass through unchanged. `close` when done; a process that dies
    before leaves a file that can be opened.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], path: str | Path | None = None, **options: Any) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, path=path, **options)
        gymnasium.Wrapper.__init__(self, env)
        self.log = RerunLog(env.unwrapped, path, **options)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A reset of the environment, which begins an episode of the recording."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.log.start({key: [value] for key, value in info.items()}, [0])
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step of the environment, logged after the end of an episode too."""
        result: tuple[Any, Any, bool, bool, dict[str, Any]] = self.log.step(
            lambda: self.env.step(action), np.asarray(action)[None], scalar=True
        )
        return result

    def close(self) -> None:
        """Writes the rest, closes recording and environment."""
        try:
            self.log.close()
        finally:
            super().close()


class LogVectorToRerun(VectorWrapper):
    """Logs a batch of worlds into a folder, one recording each; options as of `RerunLog`. Needs frames="all"."""

    def __init__(self, env: VectorEnv[Any, Any, Any], path: str | Path | None = None, **options: Any) -> None:
        super().__init__(env)
        self.log = RerunLog(env.unwrapped, path, **options)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """A reset of all worlds, or of those that options["reset_mask"] names."""
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self.log.start(info, np.flatnonzero(info["_seed"]).tolist())
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """A step of all worlds."""
        result: tuple[Any, Any, Any, Any, dict[str, Any]] = self.log.step(
            lambda: self.env.step(actions), np.asarray(actions), scalar=False
        )
        return result

    def close(self, **kwargs: Any) -> None:
        """Writes the rest, closes recordings and environment."""
        try:
            self.log.close()
        finally:
            super().close(**kwargs)


def _sink(path: str | Path | None, world: int | None, memory: str) -> Sink:
    name = "world" if world is None else f"world-{world:03d}"
    if path is None:
        return Viewer(name, memory=memory)
    return GrowingFile(path if world is None else Path(path) / f"{name}.rrd", name)


def _row(info: Mapping[str, Any], world: int) -> dict[str, Any]:
    """What is told of one world; the arrays are our own, since they are read later."""
    return {
        key: np.array(rows[world]) if isinstance(rows[world], np.ndarray) else rows[world]
        for key, rows in info.items()
        if not key.startswith("_")
    }
