"""SanaWMEnv: one learned world behind Gymnasium's contract."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from sanawm_env.actions import ActionMap
from sanawm_env.config import from_mapping
from sanawm_env.env_config import EnvConfig
from sanawm_env.episodes import Episodes
from sanawm_env.errors import ConfigError, LifecycleError, SceneError
from sanawm_env.learned import LearnedEpisodes
from sanawm_env.model.config import Variant
from sanawm_env.model.offload import Offload
from sanawm_env.placement import Precision
from sanawm_env.running import SEEDS
from sanawm_env.snapshot import Snapshot
from sanawm_env.spaces import action_space, check_choice, observation_space
from sanawm_env.start import check_seed, read_options

if TYPE_CHECKING:
    from torch import Tensor

    from sanawm_env.rooms import Scenes
    from sanawm_env.source import WorldSource
    from sanawm_env.state import WorldState
    from sanawm_env.tasks import Drive
    from sanawm_env.vector_env import SanaWMVectorEnv
    from sanawm_env.world import WorldModel

RENDER_MODES = ("rgb_array", "rgb_array_list")


class Worlds:
    """What the environment of one world and that of a batch share; each adds Gymnasium's base class and its returns."""

    episodes_kind: ClassVar[type[Episodes]] = LearnedEpisodes
    metadata: dict[str, Any]
    action_space: Any
    observation_space: Any
    np_random: Any
    # Until it has episodes: Gymnasium closes a vector environment that it collects, one whose constructor raised too.
    closed: bool = True

    def _open(
        self,
        num_envs: int,
        bundle: str | Path | WorldSource,
        /,
        *,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        """What all constructors do; num_envs: worlds B, the rest as for `SanaWMEnv`."""
        if render_mode == "human":
            raise ConfigError(
                f"render_mode is 'human', allowed is None or one of {', '.join(RENDER_MODES)}; to watch a world live, "
                "wrap it in sanawm_env.wrappers.rerun_log.LogToRerun, or drive by keys with `sanawm teleop`."
            )
        if render_mode is not None:
            check_choice("render_mode", render_mode, RENDER_MODES)
        kind = self.episodes_kind
        placed = {name: options.pop(name) for name in kind.placement if name in options}
        config = read_config(options, kind.config_kind)
        self._adopt(kind(kind.open(bundle, **placed), config, num_envs), render_mode)

    def _adopt(self, episodes: Episodes, render_mode: str | None) -> None:
        """Makes these episodes the environment's own; spaces are those of one world."""
        world, config = episodes.model.config, episodes.config
        self._episodes = episodes
        self.closed = False
        self.render_mode = render_mode
        # One call of render() a step shows one frame in F.
        shown = world.fps if render_mode == "rgb_array_list" else world.fps / world.frames_per_chunk
        self.metadata = {**type(self).metadata, "render_modes": list(RENDER_MODES), "render_fps": shown}
        self.action_space = action_space(episodes.action_map, config.action_mode, world.frames_per_chunk)
        self.observation_space = observation_space(
            config.observation, world.frames_per_chunk, world.height, world.width, goal=episodes.task.has_goal
        )

    @property
    def model(self) -> WorldSource:
        """The shared world model, or what else gives the frames."""
        return self._episodes.model

    @property
    def action_map(self) -> ActionMap:
        """The map from actions to camera poses; its `columns` and `units` say what an action means."""
        return self._episodes.action_map

    @property
    def task(self) -> Drive:
        """The task of the running episodes, or of those to come."""
        running = self._episodes.running
        return self._episodes.task if running is None else running.task

    @property
    def world(self) -> WorldState:
        """The state of the running worlds, to be looked at and not changed: the next step spends it. LifecycleError
        before the first reset."""
        self._check_running()
        return self._episodes.now.world

    @property
    def scenes(self) -> Scenes | None:
        """Geometry of the running worlds' rooms, a row each: what only an expert may look at. None where no world has
        any. LifecycleError before the first reset."""
        self._check_running()
        return self._episodes.now.scenes

    @property
    def ended(self) -> np.ndarray:
        """[B] whether the episode of each world has ended and was not reset since. LifecycleError before the first
        reset."""
        self._check_running()
        return self._episodes.now.over

    @property
    def fps(self) -> float:
        """Frames a second of world time."""
        return self.model.config.fps

    @property
    def frames_per_step(self) -> int:
        """Frames F that a step gives each world."""
        return self.model.config.frames_per_chunk

    @property
    def gives_latents(self) -> bool:
        """Whether `info` carries the latents that the frames are decoded from."""
        return self._episodes.config.latents

    @property
    def last_timing(self) -> dict[str, float]:
        """Seconds of the last reset or step, those in the model among them, and frames/s of the step over all worlds;
        kept out of `info`, which equal runs share."""
        return dict(self._episodes.last_timing)

    @property
    def last_output(self) -> tuple[Tensor | None, Tensor | None]:
        """Frames uint8 [B, T, H, W, 3] and latents [B, n, C, h, w] of the latest step, on the model's device, for
        measuring; not to be changed. None where there are none."""
        running = self._episodes.running
        return (None if running is None else running.frames), self._episodes.last_latents

    def fork(self, n: int, *, reseed: bool = False, decode: bool | Literal["later"] = True) -> SanaWMVectorEnv:
        """n futures of this instant as a vector environment, which is running already: step it without a reset.

        Of a batch, every world gets n futures, row-major: rows 0 .. n-1 come from world 0. All futures carry their
        world's seed, so equal actions give equal frames; with reseed=True each gets a noise of its own. decode=False
        leaves out the pixels, for planning on poses and rewards: observations are then None. decode="later" does too,
        and keeps what `SanaWMVectorEnv.decode` needs to show chosen futures: one full state a world that is forked.
        """
        from sanawm_env.vector_env import SanaWMVectorEnv

        self._check_running()
        return SanaWMVectorEnv.of_episodes(self._episodes.fork(n, reseed=reseed, decode=decode))

    def get_state(self) -> Snapshot:
        """Everything needed to continue from here: world, noise, task, horizon, motion, latest frames, random
        generator."""
        self._check_running()
        return self._episodes.snapshot(self.np_random.bit_generator.state)

    def set_state(self, state: Snapshot) -> None:
        """Continues from a snapshot, bit for bit as it would have gone on. StateError when it does not fit."""
        self._check_open()
        self._episodes.restore(state)
        self.np_random.bit_generator.state = state.rng

    def check_recordable(self) -> None:
        """ConfigError where a recording could not tell one episode's steps from the next one's, or not read them."""
        mode = self.metadata.get("autoreset_mode", AutoresetMode.DISABLED)
        if mode is not AutoresetMode.DISABLED:
            raise ConfigError(
                f"autoreset_mode is {mode.value!r}, and recordings are of episodes that are reset by hand; use "
                "'Disabled', and reset(options={'reset_mask': ...}) where worlds have ended."
            )
        if self._episodes.config.arrays != "numpy":
            raise ConfigError("recordings read arrays='numpy'; build the environment without arrays='torch'.")

    def _check_open(self) -> None:
        if self.closed:
            raise LifecycleError("the environment is closed; make a new one (the model is still loaded).")

    def _check_running(self) -> None:
        self._check_open()
        if self._episodes.running is None:
            raise LifecycleError("the environment has no episode yet; call reset() or set_state() first.")

    def _check_rendering(self) -> None:
        self._check_running()
        if self.render_mode is None:
            raise LifecycleError("render() needs a render_mode; build the environment with render_mode='rgb_array'.")


class SanaWMEnv(Worlds, gymnasium.Env[Any, Any]):
    """One world that an agent steps a chunk of F frames at a time.

    bundle: name or folder of a world model, which all environments of a process share, or a `WorldModel`. device: where
    to run it, the best there is if None. precision: "auto", "bf16", "fp32", or "fp8" and "nvfp4" of `sanawm_env.load`,
    of which `model.execution` says what runs. offload: None, or "parts" or "blocks" of `bundle.load`. captured: whether
    steps are replayed from CUDA graphs; None where they can be. variant: "teacher" or "distilled", another of the
    bundle's than itself, refiner: whether its refiner runs too, both as of `sanawm_env.load`. render_mode: None,
    "rgb_array" (the newest frame) or "rgb_array_list" (all frames since the last call); to watch live, wrap the
    environment in `wrappers.rerun_log.LogToRerun`. options: the fields of `env_config.EnvConfig`: action_map,
    action_options, action_mode, observation, frames, latents, task, horizon, strict.

    `step` returns exactly F frames; k steps after a reset make 1 + kF. The reward is the sum over the chunk's frames
    up to the end of the episode. `terminated` comes from the task alone, `truncated` from the horizon, the task's time
    limit or a fault of the model (`info["truncation_reason"]`). After the end the world still steps, without reward,
    until reset.

    A world's seed drives its room, start pose, goal and noise; nothing else does. Seeds from 10^9 up give rooms that
    the shipped world was never trained on.
    """

    # Around a class that does not list "human" Gymnasium puts a window of its own, which needs pygame. Listed, the word
    # reaches our constructor, whose error says what to do. An environment's own metadata has the true modes.
    metadata: dict[str, Any] = {"render_modes": [*RENDER_MODES, "human"], "render_fps": 10}

    def __init__(
        self,
        bundle: str | Path | WorldModel = "rooms",
        *,
        device: str | None = None,
        precision: Precision = "auto",
        offload: Offload | None = None,
        captured: bool | None = None,
        variant: Variant | None = None,
        refiner: bool = False,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        placed = {"device": device, "precision": precision, "offload": offload, "captured": captured}
        self._start_up(bundle, render_mode, {**placed, "variant": variant, "refiner": refiner, **options})

    def _start_up(self, bundle: str | Path | WorldSource, render_mode: str | None, options: dict[str, Any]) -> None:
        self._open(1, bundle, render_mode=render_mode, **{"frames": "all", **options})
        self._shown: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode and returns the first picture (frame 0) as the autoencoder shows it.

        options: "scene", the seed of a room (the world's seed by default) or a `Scene` with a picture; "image", uint8
        [H, W, 3], short for such a scene; "pose", [4, 4] camera-to-world of the first picture, in the room's frame or
        the caller's; "task", a name, mapping or task for this episode; "horizon", frames until it is truncated.
        Unknown keys are errors. A picture comes without geometry: nothing can be hit in it, and task "goto" refuses it.
        """
        self._check_open()
        super().reset(seed=None if seed is None else check_seed(seed))
        chosen = read_options(check_options(options), self.episodes_kind.options_kind)
        world_seed = int(self.np_random.integers(0, SEEDS)) if seed is None else seed
        facts = self._episodes.start([world_seed], chosen)
        frames = self._episodes.frames()
        self._shown = [] if frames is None else list(frames[0])
        return self._first(self._episodes.observation()), self._scalars(facts)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Moves the world by one chunk of F frames.

        action: [A], held for the chunk, or [F, A] with action_mode="per_frame"; out of limits it is clipped and counted
        in info["clipped"], or refused with strict=True. Interrupted, a step leaves the world as it was.

        `info`: "poses" [F, 4, 4], where each new frame is seen from; "frames" [F, H, W, 3]; with latents=True
        "latents" [n, C, h, w], which they are decoded from (one at a reset); "rewards" [F]; "end_index", the frame of
        the chunk at which the episode ended, or -1; "valid_frames", how many frames belong to the episode; "success";
        "termination_reason" and "truncation_reason", empty while it goes on; "frame", the number of the newest; and the
        facts of the task.
        """
        self._check_running()
        outcome = self._episodes.advance([action])
        info = self._scalars(outcome.info)
        if self.render_mode == "rgb_array_list":
            frames = self._episodes.frames()
            self._shown.extend(() if frames is None else frames[0])
        observation = self._first(self._episodes.observation())
        return observation, float(outcome.reward[0]), bool(outcome.terminated[0]), bool(outcome.truncated[0]), info

    def render(self) -> Any:
        """The newest frame uint8 [H, W, 3] ("rgb_array"), or all frames since the last call ("rgb_array_list")."""
        self._check_rendering()
        if self.render_mode == "rgb_array_list":
            shown, self._shown = self._shown, []
            return shown
        frames = self._episodes.frames(last=True)
        return None if frames is None else frames[0, 0]

    def set_state(self, state: Snapshot) -> None:
        super().set_state(state)
        self._shown = []

    def observe(self) -> tuple[Any, dict[str, Any]]:
        """The observation of this instant and what is known of it, as after set_state()."""
        self._check_running()
        return self._first(self._episodes.observation()), self._scalars(self._episodes.facts())

    def close(self) -> None:
        """Lets go of the world; the model stays with the process. May be called again."""
        self._episodes.running = None
        self._shown = []
        self.closed = True

    @staticmethod
    def _first(rows: Any) -> Any:
        return (
            {name: part[0] for name, part in rows.items()}
            if isinstance(rows, Mapping)
            else rows
            if rows is None
            else rows[0]
        )

    @staticmethod
    def _scalars(facts: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Facts of the only world: arrays as they are, single values as Python's own."""
        return {name: rows[0] if rows.ndim > 1 else rows.tolist()[0] for name, rows in facts.items()}


def read_config(options: Mapping[str, Any], kind: type[EnvConfig] = EnvConfig) -> EnvConfig:
    """Options of an environment, checked; ConfigError names the nearest known one."""
    chosen = dict(options)
    action_map, task = chosen.pop("action_map", "diff_drive"), chosen.pop("task", "goto")
    if not isinstance(action_map, str | ActionMap):
        raise ConfigError(
            f"action_map is {action_map!r}, allowed is the name of one or an ActionMap; see make_action_map."
        )
    return from_mapping(kind, {**chosen, "action_map": action_map, "task": task})


def check_options(options: Any) -> dict[str, Any]:
    """A copy of the options of a reset; SceneError unless they are a mapping or None."""
    if options is not None and not isinstance(options, Mapping):
        raise SceneError(
            f"reset options are {options!r}, allowed is a mapping of names to values, or None; pass for example "
            "options={'scene': 7}."
        )
    return dict(options or {})
