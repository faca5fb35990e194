"""Spaces of every action map and observation."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium import spaces

from sanawm_env.actions import make_action_map
from sanawm_env.errors import ConfigError, SpaceError
from sanawm_env.spaces import action_space, check_policy, describe_space, observation_space, read_space
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel


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


def test_spaces_go_through_json() -> None:
    for one in (observation_space("dict", 8, 32, 40, goal=True), action_space(make_action_map("twist"), "hold", 8)):
        assert read_space(json.loads(json.dumps(describe_space(one)))) == one
    with pytest.raises(SpaceError, match=r"space Discrete\(3\) cannot be described, allowed are a Box"):
        describe_space(spaces.Discrete(3))


def test_a_policy_made_for_other_spaces_is_refused(tiny_model: WorldModel) -> None:
    env = SanaWMVectorEnv(2, tiny_model, observation="dict")
    fits = SimpleNamespace(observation_space=env.single_observation_space, action_space=env.single_action_space)
    check_policy(fits, env)
    larger = spaces.Dict({**env.single_observation_space.spaces, "image": spaces.Box(0, 255, (64, 64, 3), np.uint8)})
    with pytest.raises(SpaceError, match=r"observation_space\['image'\] Box.*64, 64, 3.*has Box.*32, 40, 3"):
        check_policy(SimpleNamespace(observation_space=larger, action_space=fits.action_space), env)
    fewer = spaces.Dict({name: part for name, part in env.single_observation_space.items() if name != "goal"})
    with pytest.raises(SpaceError, match=r"observation_space\['goal'\] nothing, the environment has Box"):
        check_policy(SimpleNamespace(observation_space=fewer, action_space=fits.action_space), env)
    with pytest.raises(SpaceError, match=r"action_space Discrete\(3\), the environment has Box.*action_mode"):
        check_policy(SimpleNamespace(observation_space=fits.observation_space, action_space=spaces.Discrete(3)), env)
    with pytest.raises(SpaceError, match="action_space is None, allowed is a Gymnasium space"):
        check_policy(SimpleNamespace(observation_space=fits.observation_space), env)
