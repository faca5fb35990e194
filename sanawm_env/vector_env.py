"""SanaWMVectorEnv: a batch of learned worlds behind Gymnasium's vector contract, stepped together by one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sanawm_env.actions import ActionMap
from sanawm_env.env import RENDER_MODES, SEEDS, observation_of, read_config
from sanawm_env.episodes import Episodes, Precision, open_model
from sanawm_env.errors import ConfigError, LifecycleError, SceneError
from sanawm_env.snapshot import Snapshot
from sanawm_env.spaces import action_space, check_choice
from sanawm_env.start import check_seed, read_options

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel


class SanaWMVectorEnv(VectorEnv[Any, Any, np.ndarray]):
    """num_envs worlds in one batch; arguments as for `SanaWMEnv`, except that `info` carries only the last frame.

    Worlds that have ended are not reset by themselves (AutoresetMode.DISABLED): they step on without reward until
    `reset(options={"reset_mask": mask})` names them, which touches no other world. `info` holds arrays with one row a
    world, and beside each key "_key", the mask of worlds that have it, as Gymnasium's own vector environments do.
    """

    metadata: dict[str, Any] = {
        "render_modes": list(RENDER_MODES),
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        num_envs: int = 1,
        bundle: str | Path | WorldModel = "rooms",
        *,
        device: str | None = None,
        precision: Precision = "auto",
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ConfigError(f"num_envs is {num_envs!r}, allowed is a whole number >= 1.")
        if render_mode is not None:
            check_choice("render_mode", render_mode, RENDER_MODES)
        config = read_config(options, frames="last")
        self._adopt(Episodes(open_model(bundle, device, precision), config, int(num_envs)), render_mode)

    @classmethod
    def of_episodes(cls, episodes: Episodes) -> SanaWMVectorEnv:
        """A vector environment over episodes that are running already; `SanaWMEnv.fork` makes these."""
        made = cls.__new__(cls)
        made._adopt(episodes, None)
        # Later resets without a seed draw one; they too then depend on nothing but the world that was forked.
        made._np_random, made._np_random_seed = seeding.np_random(int(episodes.now.world.seed[0]))
        return made

    def _adopt(self, episodes: Episodes, render_mode: str | None) -> None:
        world = episodes.model.config
        self._episodes = episodes
        self.num_envs = episodes.batch
        self.render_mode = render_mode
        shown = world.fps if render_mode == "rgb_array_list" else world.fps / world.frames_per_chunk
        self.metadata = {**type(self).metadata, "render_fps": shown}
        self.single_action_space = action_space(
            episodes.action_map, episodes.config.action_mode, world.frames_per_chunk
        )
        self.single_observation_space = observation_of(episodes)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    @property
    def model(self) -> WorldModel:
        """The shared world model."""
        return self._episodes.model

    @property
    def action_map(self) -> ActionMap:
        """The map from actions to camera poses."""
        return self._episodes.action_map

    @property
    def fps(self) -> float:
        """Frames a second of world time."""
        return self.model.config.fps

    @property
    def frames_per_step(self) -> int:
        """Frames F that a step gives each world."""
        return self.model.config.frames_per_chunk

    @property
    def last_timing(self) -> dict[str, float]:
        """Seconds of the last reset or step, and frames/s of all worlds together."""
        return dict(self._episodes.last_timing)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts new episodes in all worlds, or in those of options["reset_mask"] (bool [num_envs]).

        seed: one for each world, or a number s, which gives world i the seed s + i. The other options are those of
        `SanaWMEnv.reset`; scene, image and pose may have one row for each world that is reset.
        """
        self._check_open()
        given = dict(options or {})
        mask = self._mask(given.pop("reset_mask", None))
        chosen = read_options(given)
        seeds = self._seeds(seed)
        first = next((one for one in seeds if one is not None), None)
        super().reset(seed=first)
        slots = np.flatnonzero(mask).tolist()
        drawn = self.np_random.integers(0, SEEDS, size=self.num_envs)
        picked = [int(drawn[slot]) if (own := seeds[slot]) is None else own for slot in slots]
        facts = self._episodes.start(picked, chosen, None if mask.all() else slots)
        return self._episodes.observation(), masked(facts, mask)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Moves every world by one chunk; actions [num_envs, A], or [num_envs, F, A] with action_mode="per_frame"."""
        self._check_running()
        outcome = self._episodes.advance(actions)
        info = masked(outcome.info, np.ones(self.num_envs, bool))
        return self._episodes.observation(), outcome.reward, outcome.terminated, outcome.truncated, info

    def render(self) -> tuple[Any, ...] | None:
        """What each world shows: its newest frame ("rgb_array") or the frames of its latest chunk
        ("rgb_array_list")."""
        self._check_running()
        if self.render_mode is None:
            raise LifecycleError("render() needs a render_mode; build the environment with render_mode='rgb_array'.")
        newest = self.render_mode == "rgb_array"
        frames = self._episodes.frames(last=newest)
        if frames is None:
            return None
        return tuple(frames[:, 0]) if newest else tuple(list(rows) for rows in frames)

    def fork(self, n: int, *, reseed: bool = False, decode: bool = True) -> SanaWMVectorEnv:
        """n futures of every world, row-major (rows 0 .. n-1 come from world 0); see `SanaWMEnv.fork`."""
        self._check_running()
        return SanaWMVectorEnv.of_episodes(self._episodes.fork(n, reseed=reseed, decode=decode))

    def get_state(self) -> Snapshot:
        """Everything needed to continue from here; see `SanaWMEnv.get_state`."""
        self._check_running()
        return self._episodes.snapshot(self.np_random.bit_generator.state)

    def set_state(self, state: Snapshot) -> None:
        """Continues from a snapshot of as many worlds. StateError when it does not fit."""
        self._check_open()
        self._episodes.restore(state)
        self.np_random.bit_generator.state = state.rng

    def observe(self) -> tuple[Any, dict[str, Any]]:
        """The observations of this instant and what is known of it, as after fork() or set_state()."""
        self._check_running()
        return self._episodes.observation(), masked(self._episodes.facts(), np.ones(self.num_envs, bool))

    def close_extras(self, **kwargs: Any) -> None:
        """Lets go of the worlds; the model stays with the process."""
        self._episodes.running = None

    def _check_open(self) -> None:
        if self.closed:
            raise LifecycleError("the environment is closed; make a new one (the model is still loaded).")

    def _check_running(self) -> None:
        self._check_open()
        if self._episodes.running is None:
            raise LifecycleError("the environment has no episodes yet; call reset() or set_state() first.")

    def _mask(self, given: Any) -> np.ndarray:
        if given is None:
            return np.ones(self.num_envs, bool)
        mask = np.asarray(given)
        if mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise SceneError(
                f"reset_mask is {mask.dtype} of shape {mask.shape}, {np.count_nonzero(mask)} of it "
                f"true, allowed is bool ({self.num_envs},) with one or more true; name the worlds to reset."
            )
        if not mask.all():
            self._check_running()
        return mask

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [check_seed(seed + world) for world in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise SceneError(
                f"{len(seed)} seeds were given for num_envs={self.num_envs}; pass one for each, or a number."
            )
        return [None if one is None else check_seed(one) for one in seed]


def masked(facts: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    """Facts with the mask of worlds that have each beside it, under the key with an underscore in front."""
    return {key: value for name, rows in facts.items() for key, value in ((name, rows), (f"_{name}", mask.copy()))}
