"""Our environments under stable-baselines3: its checker, and our batch as its own batch of single environments."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from tests.sanawm_env.wrappers.small_truth import small_truth

from sanawm_env.errors import ConfigError
from sanawm_env.model.config import tiny_config
from sanawm_env.policies.goal_network import NetworkConfig, View
from sanawm_env.testing import assert_same
from sanawm_env.truth import RoomsTruthEnv, RoomsTruthVectorEnv
from sanawm_env.world import WorldModel

pytest.importorskip("stable_baselines3", reason="the extra `rl` is not installed")

from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sanawm_env.wrappers.sb3 import SB3VecEnv

OPTIONS: dict[str, Any] = {"observation": "dict", "frames": "none", "horizon": 12, "device": "cpu"}


def make(worlds: int = 3, **changes: Any) -> RoomsTruthVectorEnv:
    return RoomsTruthVectorEnv(worlds, small_truth(), **{**OPTIONS, "autoreset_mode": "SameStep", **changes})


@pytest.mark.parametrize("kind", ["last", "dict"])
@pytest.mark.parametrize("name", ["Rooms-v0", "RoomsTruth-v0"])
def test_its_checker_has_nothing_to_warn_of(name: str, kind: str) -> None:
    larger = dataclasses.replace(tiny_config(), height=40, width=48, intrinsics=(36.0, 36.0, 23.5, 19.5))
    model = WorldModel.random(larger, seed=0)  # it warns of pictures below 36x36
    env = gymnasium.make(f"sanawm_env/{name}", bundle=model, observation=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


def test_all_frames_are_an_unusual_observation_for_it(tiny_model: WorldModel) -> None:
    env = gymnasium.make("sanawm_env/Rooms-v0", bundle=tiny_model, observation="all")
    with pytest.warns(UserWarning, match="unconventional shape"):
        check_env(env)


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_a_batch_is_what_its_own_batch_of_single_environments_is(arrays: str) -> None:
    """Over several episodes of each world: observations, rewards, ends, last observations, infos."""
    ours = SB3VecEnv(make(arrays=arrays))
    theirs = DummyVecEnv([lambda: RoomsTruthEnv(small_truth(), **OPTIONS)] * 3)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    assert ours.seed(8) == theirs.seed(8) == [8, 9, 10]
    assert_same(ours.reset(), dict(theirs.reset()))
    actions = np.array([[0.0, 0.2], [0.3, 0.8], [1.0, 0.0]], np.float32)  # the last one gets there
    ends = set()
    for _ in range(4):
        seen, rewards, done, infos = ours.step(actions)
        seen_, rewards_, done_, infos_ = theirs.step(actions)
        assert_same(seen, dict(seen_))
        assert_same((rewards, done), (rewards_, done_))
        for info, info_ in zip(infos, infos_):
            assert "is_success" not in info or info.pop("is_success") == info_["success"]
            assert info.keys() == info_.keys()
            for key in info:
                np.testing.assert_equal(info[key], info_[key], err_msg=key)
        for world in np.flatnonzero(done):
            ends.add(infos[world]["TimeLimit.truncated"])
            assert infos[world]["terminal_observation"] in ours.observation_space
            assert ours.reset_infos[world]["seed"] == theirs.reset_infos[world]["seed"]
    assert ends == {True, False}, "some were cut by the horizon, some ended"


def test_a_view_changes_what_is_seen_last_observations_too() -> None:
    env = make(arrays="torch")
    view = View(env.single_observation_space, NetworkConfig(shrink=2))
    worlds = VecMonitor(SB3VecEnv(env, view))
    seen = worlds.reset()
    assert seen["image"].shape == (3, 3, 8, 12)
    lengths = []
    for _ in range(2):
        seen, _, _, infos = worlds.step(np.zeros((3, 2), np.float32))
        assert {name: part[0] for name, part in seen.items()} in worlds.observation_space
        lengths += [info["episode"]["l"] for info in infos if "episode" in info]
        assert all(info["terminal_observation"] in worlds.observation_space for info in infos if "episode" in info)
    assert lengths == [2, 2, 2]


def test_what_it_may_ask_of_the_worlds() -> None:
    worlds = SB3VecEnv(make(render_mode="rgb_array"))
    assert worlds.get_attr("fps", [0, 2]) == [worlds.env.unwrapped.fps] * 2  # type: ignore[attr-defined]
    assert worlds.get_attr("action_space")[0] == worlds.action_space
    assert not worlds.has_attr("joint") and worlds.env_is_wrapped(Monitor) == [False] * 3
    worlds.reset()
    pictures = worlds.get_images()
    assert len(pictures) == 3 and worlds.render().shape == (2 * 16, 2 * 24, 3)  # type: ignore[union-attr]
    np.testing.assert_array_equal(worlds.env_method("render")[1], pictures[1])
    with pytest.raises(ConfigError, match=r"get_state\(\) gave a Snapshot, which has no row a world"):
        worlds.env_method("get_state")
    with pytest.raises(ConfigError, match=r"asked of worlds \[1\], which share one batch"):
        worlds.env_method("render", indices=[1])
    worlds.set_options({"horizon": 8})
    worlds.reset()
    assert worlds.step(np.zeros((3, 2), np.float32))[2].all()
    worlds.set_options([{"horizon": 8}, {}, {}])
    with pytest.raises(ConfigError, match="options differ between worlds"):
        worlds.reset()
    worlds.close()
    assert worlds.env.closed


def test_other_autoreset_modes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"autoreset_mode is 'Disabled'.*build the environment"):
        SB3VecEnv(make(autoreset_mode="Disabled"))
