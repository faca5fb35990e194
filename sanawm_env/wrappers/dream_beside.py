"""DreamBeside: worlds that are acted in, with a dream of each kept in step, for planners that try plans out in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorWrapper

from sanawm_env.env import check_options
from sanawm_env.errors import ConfigError, StateError
from sanawm_env.vector_env import SanaWMVectorEnv


class DreamBeside(VectorWrapper[Any, Any, Any, Any, np.ndarray]):
    """A vector environment whose every reset and step another one, the dream, goes along with.

    env: the truth, which is what is seen, rewarded and judged. dream: as many worlds of the same rooms and actions. It
    begins with the truth's seeds and options and takes the same actions; a planner made with the dream thus plans where
    the truth stands, from the first picture and the actions since, and acts in the truth. The dream never sees a later
    true frame. Worlds reset by mask are reset in both.

    Raises ConfigError for environments of different sizes or action maps, or that begin episodes by themselves, and
    StateError when the two are apart: one was stepped alone, or a step was interrupted; reset then.
    """

    env: SanaWMVectorEnv

    def __init__(self, env: SanaWMVectorEnv, dream: SanaWMVectorEnv) -> None:
        super().__init__(env)
        self.dream = dream
        for one in (env, dream):
            if one.autoreset_mode is not AutoresetMode.DISABLED:
                raise ConfigError(
                    f"autoreset_mode is {one.autoreset_mode.value!r}, and two environments that begin episodes by "
                    "themselves do not stay together; use 'Disabled', and reset_mask where worlds have ended."
                )
        mine, other = (
            (one.num_envs, one.single_action_space, one.action_map, one.fps, one.frames_per_step)
            for one in (env, dream)
        )
        if mine != other:
            raise ConfigError(
                f"the truth and its dream differ: worlds, actions, action map, frames/s and frames a step are {mine} "
                f"and {other}; make both with the same options."
            )

    def __getattr__(self, name: str) -> Any:
        """What the truth has beside Gymnasium's own: fps, autoreset_mode, observe ..."""
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts new episodes in both, in all worlds or those of options["reset_mask"]."""
        observation, info = self.env.reset(seed=seed, options=options)
        mask = check_options(options).get("reset_mask")
        begun = np.ones(self.num_envs, bool) if mask is None else np.asarray(mask)
        self.dream.reset(
            seed=[int(one) if new else None for one, new in zip(info["seed"], begun, strict=True)], options=options
        )
        return observation, info

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """A step of the truth; the dream takes the same."""
        result = self.env.step(actions)
        dreamed = self.dream.step(actions)
        if not np.array_equal(result[4]["poses"], dreamed[4]["poses"]):
            raise StateError("the truth and its dream are at different poses: one was stepped alone; reset them.")
        return result

    def close(self, **kwargs: Any) -> None:
        """Closes both."""
        self.dream.close(**kwargs)
        super().close(**kwargs)
