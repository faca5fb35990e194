"""Spaces of every action map and observation."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from sanawm_env.actions import make_action_map
from sanawm_env.errors import ConfigError
from sanawm_env.spaces import action_space, observation_space


@pytest.mark.parametrize("name", ["twist", "diff_drive", "keys"])
def test_continuous_maps_have_limits_of_one(name: str) -> None:
    chosen = make_action_map(name)
    held, framed = action_space(chosen, "hold", 8), action_space(chosen, "per_frame", 8)
    assert isinstance(held, spaces.Box)
    assert held.shape == (chosen.size,)
    assert framed.shape == (8, chosen.size)
    assert (held.low == -1).all()
    assert (held.high == 1).all()


def test_keys_that_are_not_continuous() -> None:
    discrete = make_action_map("keys", flavour="discrete")
    assert action_space(discrete, "hold", 8) == spaces.Discrete(11)
    assert action_space(discrete, "per_frame", 8) == spaces.MultiDiscrete([11] * 8)
    keyboard = make_action_map("keys", flavour="keyboard")
    assert action_space(keyboard, "per_frame", 8).shape == (8, 8)


def test_observations() -> None:
    assert observation_space("last", 8, 32, 40, goal=True).shape == (32, 40, 3)
    assert observation_space("all", 8, 32, 40, goal=True).shape == (8, 32, 40, 3)
    parts = observation_space("dict", 8, 32, 40, goal=False)
    assert isinstance(parts, spaces.Dict)
    assert set(parts) == {"image", "pose", "velocity"}
    assert all(np.isfinite(part.low).all() for part in parts.values() if isinstance(part, spaces.Box))


def test_wrong_words_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'per_frame'"):
        action_space(make_action_map("twist"), "perframe", 8)
    with pytest.raises(ConfigError, match="observation is 'pixels'"):
        observation_space("pixels", 8, 32, 40, goal=False)
