"""Action and observation spaces of an environment over a world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sanawm_env.actions import ActionMap
from sanawm_env.errors import ConfigError, SpaceError, nearest

ACTION_MODES = ("hold", "per_frame")
OBSERVATIONS = ("last", "all", "dict")
POSITION_LIMIT, VELOCITY_LIMIT = 1e4, 1e3


def action_space(chosen: ActionMap, mode: str, frames: int) -> spaces.Space[Any]:
    """Space of one world's action: the map's columns, held for the chunk ("hold") or for each of its frames."""
    check_choice("action_mode", mode, ACTION_MODES)
    leading = () if mode == "hold" else (frames,)
    if chosen.kind == "choice":
        count = int(chosen.high[0]) + 1
        return spaces.Discrete(count) if mode == "hold" else spaces.MultiDiscrete([count] * frames)
    if chosen.kind == "binary":
        return spaces.MultiBinary([*leading, chosen.size])
    low, high = (
        np.broadcast_to(limit, (*leading, chosen.size)).astype(np.float32) for limit in (chosen.low, chosen.high)
    )
    return spaces.Box(low, high, dtype=np.float32)


def observation_space(kind: str, frames: int, height: int, width: int, *, goal: bool) -> spaces.Space[Any]:
    """Space of one world's observation.

    kind "last": the newest frame, uint8 [H, W, 3] RGB. "all": every frame of the chunk [F, H, W, 3]. "dict": "image",
    the newest frame; "pose", the first three rows of its camera-to-world matrix [12], row by row; "velocity" [6],
    forward, left, up in m/s and roll, pitch, yaw in rad/s in the camera's body axes; and "goal" [3], where the task's
    goal lies from the camera (forward, left, up in metres), if the task has one.
    """
    check_choice("observation", kind, OBSERVATIONS)
    image = spaces.Box(0, 255, (height, width, 3), np.uint8)
    if kind == "last":
        return image
    if kind == "all":
        return spaces.Box(0, 255, (frames, height, width, 3), np.uint8)
    row = [1.001] * 3 + [POSITION_LIMIT]
    pose, velocity = np.array(row * 3, np.float32), np.full(6, VELOCITY_LIMIT, np.float32)
    parts: dict[str, spaces.Space[Any]] = {
        "image": image,
        "pose": spaces.Box(-pose, pose, dtype=np.float32),
        "velocity": spaces.Box(-velocity, velocity, dtype=np.float32),
    }
    if goal:
        parts["goal"] = spaces.Box(-POSITION_LIMIT, POSITION_LIMIT, (3,), np.float32)
    return spaces.Dict(parts)


def check_policy(policy: Any, env: Any) -> None:
    """SpaceError unless a policy with `observation_space` and `action_space` (as stable-baselines3's have) was made for
    the spaces of an environment, of one world of it where it is a vector environment."""
    for name in ("observation_space", "action_space"):
        wanted, given = getattr(policy, name, None), getattr(env, f"single_{name}", getattr(env, name))
        if not isinstance(wanted, spaces.Space):
            raise SpaceError(f"the policy's {name} is {wanted!r}, allowed is a Gymnasium space; set it on the policy.")
        if difference := _difference(wanted, given):
            where, mine, theirs = difference
            option = "observation" if name == "observation_space" else "action_map, action_options and action_mode"
            raise SpaceError(
                f"the policy was made for {name}{where} {mine}, the environment has {theirs}; make the environment "
                f"with the {option} that the policy was trained with, or adapt it by a wrapper."
            )


def _difference(one: spaces.Space[Any], other: spaces.Space[Any]) -> tuple[str, str, str] | None:
    """Where two spaces differ and what they are there, None where they are equal."""
    if one == other:
        return None
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        for key in one.spaces | other.spaces:
            if key not in one.spaces or key not in other.spaces:
                return f"[{key!r}]", str(one.spaces.get(key, "nothing")), str(other.spaces.get(key, "nothing"))
            if deeper := _difference(one[key], other[key]):
                return f"[{key!r}]{deeper[0]}", *deeper[1:]
    return "", str(one), str(other)


def describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """A Box, or a Dict of them, as plain JSON from which `read_space` makes an equal one. SpaceError for any other."""
    if isinstance(space, spaces.Dict):
        return {"parts": {name: describe_space(part) for name, part in space.items()}}
    if not isinstance(space, spaces.Box):
        raise SpaceError(f"space {space} cannot be described, allowed are a Box and a Dict of them.")
    low, high = (
        limit.flat[0].item() if (limit == limit.flat[0]).all() else limit.tolist() for limit in (space.low, space.high)
    )
    return {"shape": list(space.shape), "dtype": str(space.dtype), "low": low, "high": high}


def read_space(described: Mapping[str, Any]) -> spaces.Space[Any]:
    """The space of which `describe_space` gave this."""
    if "parts" in described:
        return spaces.Dict({name: read_space(part) for name, part in described["parts"].items()})
    shape, dtype = tuple(described["shape"]), np.dtype(described["dtype"])
    low, high = (np.broadcast_to(np.array(described[name], dtype), shape) for name in ("low", "high"))
    return spaces.Box(low, high, dtype=dtype.type)


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError unless `value` is one of the allowed words."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; {nearest(str(value), allowed)}")
