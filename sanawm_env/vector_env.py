"""SanaWMVectorEnv: a batch of learned worlds behind Gymnasium's vector contract, stepped together by one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sanawm_env import autoreset
from sanawm_env.autoreset import masked
from sanawm_env.env import RENDER_MODES, Worlds, check_options
from sanawm_env.env_config import is_count
from sanawm_env.episodes import Episodes
from sanawm_env.errors import ConfigError, SceneError
from sanawm_env.running import SEEDS, fresh_lines, next_in_line
from sanawm_env.start import check_seed, read_options

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel


class SanaWMVectorEnv(Worlds, VectorEnv[Any, Any, np.ndarray]):
    """num_envs worlds in one batch; arguments as for `SanaWMEnv`, except that `info` carries only the last frame.

    autoreset_mode: what becomes of worlds that have ended, an `AutoresetMode` of Gymnasium or its value, which
    `metadata` tells. "Disabled": they step on without reward until `reset(options={"reset_mask": mask})` names them,
    which touches no other world. "NextStep": the next step begins their next episode, whatever their action, with
    reward 0. "SameStep": the step in which they end begins it; `info` has "final_obs" and "final_info". Episodes that
    begin by themselves take the environment's own scene and horizon and the task that runs.

    Every world has a line of seeds of its own, from the one it was last reset with, as a single environment has: what
    a world shows does not depend on its neighbours, over all its episodes. `info` holds arrays with one row a world,
    and beside each key "_key", the mask of worlds that have it, as Gymnasium's own vector environments do.
    """

    metadata: dict[str, Any] = {
        "render_modes": list(RENDER_MODES),
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    autoreset_mode = AutoresetMode.DISABLED

    def __init__(
        self,
        num_envs: int = 1,
        bundle: str | Path | WorldModel = "rooms",
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        **options: Any,
    ) -> None:
        self.autoreset_mode = autoreset.read_mode(autoreset_mode)
        if not is_count(num_envs):
            raise ConfigError(f"num_envs is {num_envs!r}, allowed is a whole number >= 1; pass how many worlds to run.")
        self._open(int(num_envs), bundle, **{"frames": "last", **options})

    @classmethod
    def of_episodes(cls, episodes: Episodes, autoreset_mode: AutoresetMode = AutoresetMode.DISABLED) -> SanaWMVectorEnv:
        """A vector environment over episodes that are running already; `SanaWMEnv.fork` makes these."""
        made = cls.__new__(cls)
        made.autoreset_mode = autoreset_mode
        made._adopt(episodes, None)
        # Later resets without a seed draw one; they too then depend on nothing but the world that was forked.
        made._np_random, made._np_random_seed = seeding.np_random(int(episodes.now.world.seed[0]))
        return made

    def _adopt(self, episodes: Episodes, render_mode: str | None) -> None:
        super()._adopt(episodes, render_mode)
        self.metadata["autoreset_mode"] = self.autoreset_mode
        self.num_envs = episodes.batch
        self.single_action_space, self.single_observation_space = self.action_space, self.observation_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts new episodes in all worlds, or in those of options["reset_mask"] (bool [num_envs]).

        seed: one for each world, or a number s, which gives world i the seed s + i; a world without one goes on along
        its line of seeds, or begins a new one at the first reset. The other options are those of `SanaWMEnv.reset`;
        scene, image and pose may have one row for each world that is reset.
        """
        self._check_open()
        given = check_options(options)
        mask = self._mask(given.pop("reset_mask", None))
        chosen = read_options(given)
        seeds = self._seeds(seed)
        first = next((one for one in seeds if one is not None), None)
        super().reset(seed=first)
        slots = np.flatnonzero(mask).tolist()
        picked, lines = self._lines([seeds[slot] for slot in slots], slots)
        facts = self._episodes.start(picked, chosen, None if mask.all() else slots, lines)
        return self._episodes.observation(), masked(facts, mask)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Moves every world by one chunk, or begins its next episode as `autoreset_mode` says; actions [num_envs, A],
        or [num_envs, F, A] with action_mode="per_frame"."""
        self._check_running()
        outcome, info = autoreset.step(self._episodes, actions, self.autoreset_mode)
        return self._episodes.observation(), outcome.reward, outcome.terminated, outcome.truncated, info

    def render(self) -> tuple[Any, ...] | None:
        """What each world shows: its newest frame ("rgb_array") or the frames of its latest chunk
        ("rgb_array_list")."""
        self._check_rendering()
        newest = self.render_mode == "rgb_array"
        frames = self._episodes.frames(last=newest)
        if frames is None:
            return None
        return tuple(frames[:, 0]) if newest else tuple(list(rows) for rows in frames)

    def observe(self) -> tuple[Any, dict[str, Any]]:
        """The observations of this instant and what is known of it, as after fork() or set_state()."""
        self._check_running()
        return self._episodes.observation(), masked(self._episodes.facts(), np.ones(self.num_envs, bool))

    def select(self, worlds: Sequence[int]) -> SanaWMVectorEnv:
        """These worlds alone as a vector environment, which goes on where they are; this one stays as it is."""
        return self.of_episodes(self._episodes.select(self._chosen(worlds)), self.autoreset_mode)

    def decode(self, worlds: Sequence[int] | None = None) -> Any:
        """Frames uint8 [n, k F, H, W, 3] of futures forked with decode="later": what these worlds, all by default, have
        seen in the k steps since, to the bit (on a GPU, to rounding) what they would have shown.

        They are stepped again for it, so it costs k steps of a batch of n; the worlds here stay where they are.
        StateError for others, and after a reset or set_state.
        """
        return self._episodes.decoded(self._chosen(range(self.num_envs) if worlds is None else worlds))

    def _chosen(self, worlds: Sequence[int]) -> Sequence[int]:
        self._check_running()
        if not len(worlds) or not all(is_count(world + 1) and world < self.num_envs for world in worlds):
            raise ConfigError(f"worlds are {list(worlds)}, allowed are one or more of 0 .. {self.num_envs - 1}.")
        return worlds

    def close_extras(self, **kwargs: Any) -> None:
        """Lets go of the worlds; the model stays with the process."""
        self._episodes.running = self._episodes.last_latents = None

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

    def _lines(self, seeds: Sequence[int | None], slots: Sequence[int]) -> tuple[list[int], np.ndarray]:
        """Seeds of the worlds in `slots` [n], those without one the next of their line, and the lines [n, 2] then."""
        drawn = self.np_random.integers(0, SEEDS, size=self.num_envs)
        running = self._episodes.running
        picked, lines = [], []
        for seed, slot in zip(seeds, slots, strict=True):
            if seed is None and running is not None:
                first, line = next_in_line(running.rows["line"][slot])
            else:
                first = int(drawn[slot]) if seed is None else seed
                line = fresh_lines([first])[0]
            picked.append(first)
            lines.append(line)
        return picked, np.stack(lines)

    def _seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, np.ndarray):
            seed = seed.tolist()
        if not isinstance(seed, Sequence):
            return [check_seed(check_seed(seed) + world) for world in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise SceneError(
                f"{len(seed)} seeds were given for num_envs={self.num_envs}; pass one for each, or a number."
            )
        return [None if one is None else check_seed(one) for one in seed]
