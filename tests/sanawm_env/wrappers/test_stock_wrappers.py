"""Gymnasium's stock wrappers around our environments: each steps and keeps to its spaces; those that cannot say why."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces, wrappers
from gymnasium.wrappers import vector
from tests.sanawm_env.wrappers.small_truth import small_truth

from sanawm_env.truth import RoomsTruthEnv, RoomsTruthVectorEnv

Wrap = Callable[[Any], Any]
HALF = spaces.Box(0, 255, (8, 24, 3), np.uint8)
NEEDS = {
    "ResizeObservation": "cv2",
    "RecordVideo": "moviepy",
    "HumanRendering": "pygame",
    "NumpyToTorch": "array_api_compat",
}
NUMBERS = {"FilterObservation", "FlattenObservation", "NumpyToTorch", "DiscretizeObservation"}  # of the dictionary

SINGLE: dict[str, Wrap] = {
    "AddRenderObservation": lambda env: wrappers.AddRenderObservation(env, render_only=True),
    "AddWhiteNoise": lambda env: wrappers.AddWhiteNoise(env, 0.5),
    "Autoreset": wrappers.Autoreset,
    "ClipAction": wrappers.ClipAction,
    "ClipReward": lambda env: wrappers.ClipReward(env, -1, 1),
    "DelayObservation": lambda env: wrappers.DelayObservation(env, 1),
    "DiscretizeAction": lambda env: wrappers.DiscretizeAction(env, bins=5, multidiscrete=True),
    "DiscretizeObservation": lambda env: wrappers.DiscretizeObservation(
        wrappers.FlattenObservation(wrappers.FilterObservation(env, ["goal"])), bins=4
    ),
    "DtypeObservation": lambda env: wrappers.DtypeObservation(env, np.float32),
    "FilterObservation": lambda env: wrappers.FilterObservation(env, ["image", "goal"]),
    "FlattenObservation": wrappers.FlattenObservation,
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 3),
    "GrayscaleObservation": wrappers.GrayscaleObservation,
    "HumanRendering": wrappers.HumanRendering,
    "MaxAndSkipObservation": lambda env: wrappers.MaxAndSkipObservation(env, 2),
    "NormalizeObservation": wrappers.NormalizeObservation,
    "NormalizeReward": wrappers.NormalizeReward,
    "NumpyToTorch": lambda env: wrappers.NumpyToTorch(env),
    "ObstructView": lambda env: wrappers.ObstructView(env, 0.2, 4),
    "OrderEnforcing": wrappers.OrderEnforcing,
    "PassiveEnvChecker": wrappers.PassiveEnvChecker,
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "RecordVideo": lambda env: wrappers.RecordVideo(env, "video"),
    "RenderCollection": wrappers.RenderCollection,
    "RepeatAction": lambda env: wrappers.RepeatAction(env, 2),
    "RescaleAction": lambda env: wrappers.RescaleAction(env, -2, 2),
    "RescaleObservation": lambda env: wrappers.RescaleObservation(env, np.float32(0), np.float32(1)),
    "ReshapeObservation": lambda env: wrappers.ReshapeObservation(env, (16 * 24, 3)),
    "ResizeObservation": lambda env: wrappers.ResizeObservation(env, (8, 12)),
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "TimeAwareObservation": lambda env: wrappers.TimeAwareObservation(wrappers.TimeLimit(env, 5)),
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 2),
    "TransformAction": lambda env: wrappers.TransformAction(env, lambda action: action / 2, env.action_space),
    "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda seen: seen[::2], HALF),
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: 2 * reward),
}
VECTOR: dict[str, Wrap] = {
    "ClipAction": vector.ClipAction,
    "ClipReward": lambda env: vector.ClipReward(env, -1, 1),
    "DictInfoToList": vector.DictInfoToList,
    "HumanRendering": vector.HumanRendering,
    "NormalizeReward": vector.NormalizeReward,
    "RecordEpisodeStatistics": vector.RecordEpisodeStatistics,
    "RecordVideo": lambda env: vector.RecordVideo(env, "video"),
    "RescaleAction": lambda env: vector.RescaleAction(env, -2, 2),
    "TransformAction": lambda env: vector.TransformAction(env, lambda actions: actions / 2, env.action_space),
    "TransformReward": lambda env: vector.TransformReward(env, lambda rewards: 2 * rewards),
    "VectorizeTransformAction": lambda env: vector.VectorizeTransformAction(
        env, wrappers.TransformAction, func=lambda action: action, action_space=env.single_action_space
    ),
    "VectorizeTransformReward": lambda env: vector.VectorizeTransformReward(
        env, wrappers.ClipReward, min_reward=-1.0, max_reward=1.0
    ),
}
# Of these Gymnasium itself says that they do not know "SameStep", where an ended world's last observation is in info.
VECTOR_OBSERVATION: dict[str, Wrap] = {
    "DtypeObservation": lambda env: vector.DtypeObservation(env, np.float32),
    "FilterObservation": lambda env: vector.FilterObservation(env, ["image", "goal"]),
    "FlattenObservation": vector.FlattenObservation,
    "GrayscaleObservation": vector.GrayscaleObservation,
    "RescaleObservation": lambda env: vector.RescaleObservation(env, 0.0, 1.0),
    "ReshapeObservation": lambda env: vector.ReshapeObservation(env, (16 * 24, 3)),
    "ResizeObservation": lambda env: vector.ResizeObservation(env, (8, 12)),
    "TransformObservation": lambda env: vector.TransformObservation(
        env, lambda seen: seen[:, ::2], single_observation_space=HALF
    ),
    "VectorizeTransformObservation": lambda env: vector.VectorizeTransformObservation(
        env, wrappers.GrayscaleObservation
    ),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def options(name: str, **more: Any) -> dict[str, Any]:
    if (package := NEEDS.get(name)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"Gymnasium's {name} needs {package}, which is not installed")
    kind = "dict" if name in NUMBERS else "last"
    return {"observation": kind, "frames": "none", "render_mode": "rgb_array", "device": "cpu", "horizon": 8, **more}


@pytest.mark.parametrize("name", SINGLE)
def test_around_one_world(name: str) -> None:
    env = SINGLE[name](gymnasium.make("sanawm_env/RoomsTruth-v0", bundle=small_truth(), **options(name)))
    observation, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(2):
        if name != "NumpyToTorch":  # whose spaces stay NumPy's
            assert observation in env.observation_space
        action = env.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(
            torch.as_tensor(action) if name == "NumpyToTorch" else action
        )
        assert np.isfinite(float(reward))
        if terminated or truncated:
            break
    env.close()


def steps(env: Any, mode: str) -> None:
    observation, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(2):
        assert observation in env.observation_space
        observation, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
        assert np.isfinite(rewards).all()
        if mode == "Disabled" and (terminated | truncated).any():
            observation, _ = env.reset(options={"reset_mask": terminated | truncated})
    env.close()


@pytest.mark.parametrize("mode", ["Disabled", "NextStep", "SameStep"])
@pytest.mark.parametrize("name", VECTOR)
@pytest.mark.filterwarnings("ignore:.*autoreset mode is same-step.*")
def test_around_a_batch(name: str, mode: str) -> None:
    steps(VECTOR[name](RoomsTruthVectorEnv(2, small_truth(), **options(name, autoreset_mode=mode))), mode)


@pytest.mark.parametrize("mode", ["Disabled", "NextStep", "SameStep"])
@pytest.mark.parametrize("name", VECTOR_OBSERVATION)
def test_around_a_batchs_observations(name: str, mode: str) -> None:
    env = RoomsTruthVectorEnv(2, small_truth(), **options(name, autoreset_mode=mode))
    if mode == "SameStep":
        with pytest.raises(ValueError, match=r"NEXT_STEP or DISABLED, got AutoresetMode\.SAME_STEP"):
            VECTOR_OBSERVATION[name](env)
    else:
        steps(VECTOR_OBSERVATION[name](env), mode)


def test_running_means_of_a_batch_are_for_one_mode() -> None:
    modes = [options("NormalizeObservation", autoreset_mode=mode) for mode in ("NextStep", "Disabled")]
    steps(vector.NormalizeObservation(RoomsTruthVectorEnv(2, small_truth(), **modes[0])), "NextStep")
    with pytest.raises(ValueError, match=r"to be AutoresetMode\.NEXT_STEP"):
        vector.NormalizeObservation(RoomsTruthVectorEnv(2, small_truth(), **modes[1]))


def test_statistics_are_of_the_episodes_of_every_world() -> None:
    env = vector.RecordEpisodeStatistics(
        RoomsTruthVectorEnv(2, small_truth(), **options("", autoreset_mode="SameStep"))
    )
    env.reset(seed=0)
    for _ in range(4):
        _, _, _, _, info = env.step(np.zeros((2, 2), np.float32))
    assert list(env.length_queue) == [1] * 8 and info["episode"]["l"].tolist() == [1, 1]


def test_the_list_is_whole() -> None:
    """What is not tried: wrappers of other things than our environments."""
    left_out = {"ArrayConversion", "JaxToNumpy", "JaxToTorch", "AtariPreprocessing", "vector"}
    assert set(wrappers.__all__) - set(SINGLE) == left_out
    tried = {*VECTOR, *VECTOR_OBSERVATION, "NormalizeObservation"}
    assert set(vector.__all__) - tried == left_out - {"AtariPreprocessing", "vector"} | {"NumpyToTorch"}


def test_a_wrapper_shows_what_is_inside() -> None:
    env = wrappers.TimeLimit(gymnasium.make("sanawm_env/RoomsTruth-v0", bundle=small_truth(), device="cpu"), 5)
    assert isinstance(env.unwrapped, RoomsTruthEnv) and env.get_wrapper_attr("fps") == env.unwrapped.fps
