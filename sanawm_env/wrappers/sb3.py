"""A vector environment of ours, or any of Gymnasium's, as a `VecEnv` of stable-baselines3. Needs the extra `rl`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList

from sanawm_env.errors import ConfigError, MissingExtraError

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise MissingExtraError(
        "stable-baselines3, which learns here, is not installed; pip install 'sanawm-env[rl]'."
    ) from error


class View(Protocol):
    """What a learner is shown of observations: `observation_space`, of one world, and the call on B worlds' rows."""

    observation_space: Any

    def __call__(self, observation: Any) -> Any: ...


class SB3VecEnv(VecEnv):
    """The worlds of a vector environment, which step in one batch, as stable-baselines3 wants them.

    env: made with autoreset_mode="SameStep", the only mode that stable-baselines3 knows; `arrays` may be "torch". view:
    what the learner is shown in place of the whole observations, computed where these are; the learner gets NumPy.

    An ended world's info is that of its last step, with "terminal_observation", "TimeLimit.truncated" and "is_success"
    beside; `reset_infos` has that of its new episode. Episodes' returns and lengths: put stable-baselines3's own
    `VecMonitor` around it. `seed(s)` seeds world i with s + i at the next reset. Attributes are those of the batch;
    methods are called on the whole batch. ConfigError: another autoreset mode, options that differ between worlds, a
    method's result without a row a world.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], view: View | None = None) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(
                f"autoreset_mode is {getattr(mode, 'value', mode)!r}, and stable-baselines3 expects 'SameStep'; build "
                "the environment with autoreset_mode='SameStep'."
            )
        self.env, self._view = env, view
        self._listed = DictInfoToList(env)
        self._actions: np.ndarray | None = None
        seen = env.single_observation_space if view is None else view.observation_space
        super().__init__(env.num_envs, seen, env.single_action_space)

    def reset(self) -> Any:
        """First observations of all worlds, which begin new episodes."""
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ConfigError("options differ between worlds, which share one batch; set the same for all.")
        observation, infos = self._listed.reset(seed=list(self._seeds), options=options or None)  # type: ignore[arg-type]
        self.reset_infos = list(infos)
        self._reset_seeds()
        self._reset_options()
        return self._shown(observation)

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions; `step_wait` takes them."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations, rewards float32 [B], which worlds have ended and begun again [B], and an info a world."""
        observation, rewards, terminated, truncated, listed = self._listed.step(self._actions)
        infos, done = list(listed), terminated | truncated
        ended = np.flatnonzero(done).tolist()
        last = self._shown(_stack([infos[world].pop("final_obs") for world in ended])) if ended else None
        for row, world in enumerate(ended):
            final = infos[world].pop("final_info")
            self.reset_infos[world], infos[world] = infos[world], final
            final["terminal_observation"] = _row(last, row)
            if "success" in final:
                final["is_success"] = bool(final["success"])
        for world, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncated[world] and not terminated[world])
        return self._shown(observation), rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """Closes the vector environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """What each world shows."""
        shown: Any = self.env.render()
        return [None] * self.num_envs if shown is None else list(shown)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The batch's attribute, of one world where it has such ("single_..."), once for each index."""
        names = (f"single_{attr_name}", attr_name)
        owners = [(owner, name) for name in names for owner in (self.env, self.env.unwrapped) if hasattr(owner, name)]
        if not owners:
            raise AttributeError(f"{type(self.env.unwrapped).__name__} has no attribute {attr_name!r}")
        return [getattr(*owners[0])] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets an attribute of the batch, which all worlds share."""
        self._check_all(indices, attr_name)
        setattr(self.env.unwrapped, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Calls a method of the batch once; the row of each world in its result."""
        self._check_all(indices, method_name)
        result = getattr(self.env.unwrapped, method_name)(*method_args, **method_kwargs)
        if result is None:
            return [None] * self.num_envs
        if not isinstance(result, Sequence | np.ndarray | torch.Tensor) or len(result) != self.num_envs:
            raise ConfigError(
                f"{method_name}() gave a {type(result).__name__}, which has no row a world; call it on `.env`."
            )
        return list(result)

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """False for each: wrappers of single environments have nothing to be around here."""
        return [False] * len(list(self._get_indices(indices)))

    def _check_all(self, indices: Any, name: str) -> None:
        if sorted(self._get_indices(indices)) != list(range(self.num_envs)):
            raise ConfigError(f"{name!r} was asked of worlds {indices}, which share one batch; leave indices out.")

    def _shown(self, observation: Any) -> Any:
        return _map(_numpy, observation if self._view is None else self._view(observation))


def _map(change: Callable[[Any], Any], observation: Any) -> Any:
    if isinstance(observation, Mapping):
        return {name: change(part) for name, part in observation.items()}
    return change(observation)


def _row(observations: Any, row: int) -> Any:
    return _map(lambda part: part[row], observations)


def _numpy(part: Any) -> np.ndarray:
    return part.cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part)


def _stack(rows: Iterable[Any]) -> Any:
    """Observations of single worlds as those of a batch."""
    rows = list(rows)
    if isinstance(rows[0], Mapping):
        return {name: _stack(row[name] for row in rows) for name in rows[0]}
    return torch.stack(rows) if isinstance(rows[0], torch.Tensor) else np.stack(rows)
