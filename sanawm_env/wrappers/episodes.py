"""StoreEpisodes, StoreVectorEpisodes: every episode of an environment goes into an episode store while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from sanawm_env.errors import ConfigError, LifecycleError
from sanawm_env.spaces import check_choice
from sanawm_env.wrappers.recorded import Recorded, recorded
from sanawm_env.wrappers.rows import (
    Rows,
    end_reason,
    provenance,
    start_rows,
    step_rows,
    store_info,
    truth_rows,
    used_actions,
)
from sanawm_env.wrappers.running_episodes import RunningEpisodes

DROPPED = {"frames": ("latents", "start_latents"), "latents": ("frames",), "both": ()}  # by what is kept


class EpisodeLog(RunningEpisodes):
    """The running episodes of an environment of ours. Both wrappers are thin faces of this, and so is a process that
    writes what another one steps.

    world: what is known of the environment; set it anew where its task changes. path: of the store, appended to if it
    is there. keep: "frames"; "latents" instead, a fraction of the bytes, which `EpisodeStore(path,
    decode=Decoder(model))` turns to frames; or "both". The last two need an environment made with latents=True; the
    picture of reset is kept in any case. truth: also render the ground truth, for worlds that start in a room. goals:
    also keep where the task's goal lies. licences: of pictures given as scenes; that of the weights is added. extra:
    kept with the provenance, plain JSON. codec: picture_codec and picture_quality of a `StoreInfo`. durable: as of
    `EpisodeWriter`.
    """

    def __init__(
        self,
        world: Recorded,
        path: str | Path,
        *,
        keep: Literal["frames", "latents", "both"] = "frames",
        truth: bool = False,
        goals: bool = False,
        licences: Sequence[str] = (),
        extra: Mapping[str, Any] | None = None,
        codec: Mapping[str, Any] | None = None,
        durable: bool = True,
    ) -> None:
        check_choice("keep", keep, tuple(DROPPED))
        if keep != "frames" and not world.latents:
            raise ConfigError(f"keep is {keep!r}, but info has no latents; build the environment with latents=True.")
        super().__init__(path, store_info(world, **(codec or {})), durable=durable)
        self.dropped = DROPPED[keep]
        self.world, self.truth, self.goals, self.licences, self.extra = world, truth, goals, licences, extra

    def start(
        self,
        info: Mapping[str, Any],
        worlds: Sequence[int],
        seconds: float,
        identities: Sequence[bytes | None] | None = None,
    ) -> None:
        """A reset of these worlds. info: with a row a world. seconds: that it took. identities: of their episodes, as
        `EpisodeWriter.begin` takes them."""
        self.finish(dict.fromkeys(worlds, ""))
        for world, identity in zip(worlds, identities or [None] * len(worlds)):
            told = {key: rows[world] for key, rows in info.items() if not key.startswith("_")}
            rows, room = self._kept(start_rows(told)), int(told["room"])
            if self.goals and "goal" not in told:
                raise ConfigError(f"goals=True, but task {self.world.task} has none; use task='goto', or leave it.")
            if self.goals:
                rows["start_goals"] = np.array(told["goal"], np.float64)
            if self.truth and room < 0:
                raise ConfigError("truth=True, but the world starts from a picture, which has none; start in a room.")
            if self.truth:
                seen = self._seen(room, rows["start_poses"][None], rows["start_intrinsics"])
                rows |= {f"start_{key}": values[0] for key, values in seen.items()}
            source = provenance(self.world, told, licences=self.licences, extra=self.extra)
            self.begin(
                world,
                rows,
                seconds / len(worlds),
                seed=int(told["seed"]),
                room=room,
                provenance=source,
                identity=identity,
            )

    def step(
        self,
        info: Mapping[str, Any],
        actions: Any,
        seconds: float,
        expert: Any = None,
        batch: int | None = None,
    ) -> None:
        """A step of all worlds. info, actions: with a row a world. seconds: that it took, for `batch` worlds if there
        were more. expert: what an expert would do, like actions, or [B, F, A] for the instant before each frame; at
        every step of the store or at none."""
        running = sorted(self._running)
        if not running:
            return
        poses = np.stack([self._running[world].pose for world in running])
        used = used_actions(self.world, np.asarray(actions)[running], poses)
        shown = None if expert is None else used_actions(self.world, np.asarray(expert)[running], poses)
        for row, world in enumerate(running):
            one = self._running[world]
            rows = step_rows(info, used[row], one.intrinsics, seconds, world)
            if shown is not None:
                rows["expert_actions"] = shown[row]
            if self.truth:
                rows |= self._seen(one.room, rows["poses"], one.intrinsics)
            self.append(world, self._kept(rows), seconds / (batch or len(info["poses"])))
        self.finish({world: reason for world in running if (reason := end_reason(info, world))})

    def keep_state(self, take: Callable[[], bytes]) -> None:
        """Keeps the state that `take` gives of the only world beside its episode; LifecycleError when none runs."""
        if 0 not in self._running:
            raise LifecycleError("no episode is being stored; call reset(), and keep states before the episode ends.")
        self._running[0].episode.keep_state(take())

    def _kept(self, rows: Rows) -> Rows:
        return {key: values for key, values in rows.items() if key not in self.dropped}

    def _seen(self, room: int, poses: np.ndarray, intrinsics: np.ndarray) -> Rows:
        config = self.world.config
        return truth_rows(room, poses, intrinsics, (config.height, config.width))


class StoreEpisodes(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Writes every episode of one world into a store; path and options as of `EpisodeLog`.

    Needs frames="all". Observations, rewards and infos pass through unchanged. `close` when done: it commits the
    running episode and lets others write.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], path: str | Path, **options: Any) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, path=path, **options)
        gymnasium.Wrapper.__init__(self, env)
        self.log = EpisodeLog(recordable(env), path, **options)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A reset of the environment, which begins an episode of the store."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.log.world, seconds = recorded(self.unwrapped), _timing(self)["reset_seconds"]
        self.log.start({key: [value] for key, value in info.items()}, [0], seconds)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step of the environment, kept unless the episode has ended before."""
        result = self.env.step(action)
        seconds = _timing(self)["step_seconds"]
        self.log.step({key: [value] for key, value in result[4].items()}, np.asarray(action)[None], seconds)
        return result

    def keep_state(self) -> None:
        """Stores the world as it is after the steps so far: `EpisodeStore.states` gives it back to
        `Snapshot.from_bytes`, and `set_state` goes on from there. LifecycleError when no episode is running."""
        world: Any = self.unwrapped
        self.log.keep_state(lambda: world.get_state().to_bytes())

    def close(self) -> None:
        """Commits the running episode, closes store and environment."""
        self.log.close()
        super().close()


class StoreVectorEpisodes(VectorWrapper):
    """Writes the episodes of a batch of worlds into one store, in the order in which they end; options as of
    `EpisodeLog`. Needs frames="all"; `close` when done."""

    def __init__(self, env: VectorEnv[Any, Any, Any], path: str | Path, **options: Any) -> None:
        super().__init__(env)
        self.log = EpisodeLog(recordable(env), path, **options)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """A reset of all worlds, or of those that options["reset_mask"] names."""
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        worlds = np.flatnonzero(info["_seed"]).tolist()
        self.log.world = recorded(self.unwrapped)
        self.log.start(info, worlds, _timing(self)["reset_seconds"])
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """A step of all worlds; those that have ended before are left out of the store until they are reset."""
        result = self.env.step(actions)
        self.log.step(result[4], actions, _timing(self)["step_seconds"])
        return result

    def close(self, **kwargs: Any) -> None:
        """Commits the running episodes, closes store and environment."""
        self.log.close()
        super().close(**kwargs)


def recordable(env: Any) -> Recorded:
    """What is to be known of an environment whose `info` a wrapper stores. ConfigError where it cannot be stored."""
    world = recorded(env.unwrapped)
    env.unwrapped.check_recordable()
    return world


def _timing(env: Any) -> dict[str, float]:
    timing: dict[str, float] = env.unwrapped.last_timing
    return timing
