"""How an environment presents its worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sanawm_env.actions import ActionMap, make_action_map
from sanawm_env.errors import ConfigError
from sanawm_env.spaces import ACTION_MODES, OBSERVATIONS, check_choice

FRAMES = ("all", "last", "none")
ARRAYS = ("numpy", "torch")


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """How an environment presents its worlds.

    action_map: a name for `make_action_map`, built with action_options, or a map. action_mode: an action is held for
    the chunk ("hold", [A]) or given for each of its frames ("per_frame", [F, A]). observation: "last", "all" or "dict",
    see `spaces.observation_space`. frames: which frames `info` carries, "all", "last" or "none". latents: whether it
    also carries the latents that they are decoded from. task: its name, mapping or itself. horizon: frames after which
    an episode is truncated, None for never. strict: whether an action out of limits raises instead of being clipped and
    counted. scene: what worlds start from when a reset names nothing, as `reset(options={"scene": ...})` takes it; None
    for a room of each world's seed. prompts: a `PromptReader` for a model that reads text; it reads the scene's prompt,
    "" where there is none. arrays: what observations, and the frames and latents of `info`, are: "numpy", or "torch"
    for tensors that stay on the model's device. Rewards, ends and other facts are on the host anyway and stay NumPy.
    resident: for more worlds than a device holds: so many are on it at a time, while the states of all lie in the
    host's memory; None for all. On a CPU it changes nothing. guard: a `DriftGuard`, its file, or the bundle whose one
    it is; then `info` carries the "confidence" of every chunk, 0 .. 1, NaN where nothing is decoded. truncate_below: a
    confidence below which an episode is truncated, reason "drift"; None for never.
    """

    action_map: str | ActionMap = "diff_drive"
    action_options: Mapping[str, Any] = field(default_factory=dict)
    action_mode: str = "hold"
    observation: str = "last"
    frames: str = "all"
    latents: bool = False
    task: Any = "goto"
    horizon: int | None = None
    strict: bool = False
    scene: Any = None
    prompts: Any = None
    arrays: str = "numpy"
    resident: int | None = None
    guard: Any = None
    truncate_below: float | None = None

    def __post_init__(self) -> None:
        check_choice("arrays", self.arrays, ARRAYS)
        check_choice("action_mode", self.action_mode, ACTION_MODES)
        check_choice("observation", self.observation, OBSERVATIONS)
        check_choice("frames", self.frames, FRAMES)
        if self.horizon is not None and not is_count(self.horizon):
            raise ConfigError(f"horizon is {self.horizon!r}, allowed is a number of frames >= 1, or None for no end.")
        if self.resident is not None and not is_count(self.resident):
            raise ConfigError(f"resident is {self.resident!r}, allowed is a number of worlds >= 1, or None for all.")
        if self.truncate_below is not None and (self.guard is None or not 0 <= self.truncate_below <= 1):
            raise ConfigError(
                f"truncate_below is {self.truncate_below!r} with guard={self.guard!r}; allowed is a confidence 0 .. 1 "
                "beside a guard, guard='rooms' for example."
            )

    def make_map(self) -> ActionMap:
        """The action map."""
        if not isinstance(self.action_map, ActionMap):
            return make_action_map(self.action_map, **self.action_options)
        if self.action_options:
            raise ConfigError("action_options were given with a finished action map; set them on the map, or name it.")
        return self.action_map


def is_count(value: Any) -> bool:
    """Whether the value is a whole number of at least 1."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)
