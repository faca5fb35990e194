"""The environments over a tiny random world: Gymnasium's contract, actions, tasks, snapshots, interrupts."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import sanawm_env
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ActionError, ConfigError
from sanawm_env.model.config import tiny_config
from sanawm_env.snapshot import Snapshot
from sanawm_env.testing import EnvironmentContract, assert_same
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel


class TestRooms(EnvironmentContract):
    """The whole contract, for Rooms."""

    @pytest.fixture(autouse=True)
    def _model(self, tiny_model: WorldModel) -> None:
        self.model = tiny_model

    def make(self, **options: Any) -> gymnasium.Env[Any, Any]:
        return gymnasium.make("sanawm_env/Rooms-v0", bundle=self.model, **options)

    def make_vector(self, num_envs: int, **options: Any) -> SanaWMVectorEnv:
        made = gymnasium.make_vec("sanawm_env/Rooms-v0", num_envs=num_envs, bundle=self.model, **options)
        assert isinstance(made, SanaWMVectorEnv)
        return made


def picture(height: int = 32, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("action_map", ["diff_drive", "holonomic", "quadrotor", "twist", "keys", "pose"])
@pytest.mark.parametrize("mode", ["hold", "per_frame"])
def test_every_action_map_samples_and_steps(tiny_model: WorldModel, action_map: str, mode: str) -> None:
    env = SanaWMEnv(tiny_model, action_map=action_map, action_mode=mode)
    env.reset(seed=0)
    env.action_space.seed(0)
    _, _, _, _, info = env.step(env.action_space.sample())
    assert info["poses"].shape == (8, 4, 4)
    assert info["clipped"] == 0


@pytest.mark.parametrize("flavour", ["discrete", "keyboard"])
@pytest.mark.parametrize("mode", ["hold", "per_frame"])
def test_keys_without_continuous_axes(tiny_model: WorldModel, flavour: str, mode: str) -> None:
    options = {"action_map": "keys", "action_options": {"flavour": flavour}, "action_mode": mode, "task": "drive"}
    env, vector = SanaWMEnv(tiny_model, **options), SanaWMVectorEnv(2, tiny_model, **options)
    env.reset(seed=0), vector.reset(seed=0)
    env.step(env.action_space.sample())
    vector.step(vector.action_space.sample())


def test_an_action_held_equals_the_same_for_every_frame(tiny_model: WorldModel) -> None:
    held, framed = SanaWMEnv(tiny_model), SanaWMEnv(tiny_model, action_mode="per_frame")
    held.reset(seed=0), framed.reset(seed=0)
    assert_same(held.step([0.4, 0.2])[4], framed.step(np.tile([0.4, 0.2], (8, 1)))[4])


def test_poses_given_outright_are_where_the_frames_are_seen(tiny_model: WorldModel) -> None:
    env = SanaWMEnv(
        tiny_model, action_map="pose", action_options={"mode": "absolute"}, action_mode="per_frame", task="drive"
    )
    _, info = env.reset(seed=0)
    path = np.tile(info["poses"][0], (8, 1, 1))
    path[:, 0, 3] += np.linspace(0.01, 0.08, 8)
    np.testing.assert_allclose(env.step(path)[4]["poses"], path, atol=1e-9)


def test_clipping_is_counted_in_info_or_refused(tiny_model: WorldModel, env: SanaWMEnv) -> None:
    env.reset(seed=0)
    assert env.step([1.5, 0.0])[4]["clipped"] == 1
    strict = SanaWMEnv(tiny_model, strict=True)
    strict.reset(seed=0)
    with pytest.raises(ActionError, match=r"'v' is 1.5, allowed is -1 \.\. 1 m/s"):
        strict.step([1.5, 0.0])


def test_goto_pays_for_coming_closer(tiny_model: WorldModel) -> None:
    env = SanaWMEnv(tiny_model, observation="dict")
    observation, info = env.reset(seed=4)
    assert info["instruction"].startswith("go to the ")
    far = np.linalg.norm(observation["goal"])
    _, reward, _, _, after = env.step([0.2, 0.0])
    assert reward == pytest.approx(info["distance"] - after["distance"])
    away = info["goal"] - info["poses"][0][:3, 3]
    assert far == pytest.approx(np.linalg.norm(away), rel=1e-5)


def test_observed_velocity_is_what_was_driven(tiny_model: WorldModel) -> None:
    env = SanaWMEnv(tiny_model, observation="dict", task="drive")
    assert env.reset(seed=0)[0]["velocity"].tolist() == [0] * 6
    np.testing.assert_allclose(env.step([0.4, 0.2])[0]["velocity"][[0, 5]], [0.4, 0.2], atol=0.01)


def test_a_collision_ends_the_episode_at_its_frame_and_for_good(env: SanaWMEnv) -> None:
    env.reset(seed=0)
    for _ in range(40):
        _, _, terminated, truncated, info = env.step([1.0, 0.0])
        if terminated:
            break
    assert terminated
    assert not truncated
    assert info["termination_reason"] == "collision"
    assert info["valid_frames"] == info["end_index"] + 1
    _, reward, terminated, _, info = env.step([1.0, 0.0])
    assert (reward, terminated, info["end_index"], info["valid_frames"]) == (0.0, True, -1, 0)


def test_time_limit_of_a_task_truncates(tiny_model: WorldModel) -> None:
    env = SanaWMEnv(tiny_model, task={"name": "drive", "time_limit": 0.5})
    env.reset(seed=0)
    _, _, _, truncated, info = env.step([0.0, 0.0])
    assert truncated
    assert (info["truncation_reason"], info["end_index"]) == ("timeout", 4)


def test_an_interrupt_within_a_step_leaves_the_last_committed_world(
    env: SanaWMEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    env.reset(seed=0)
    env.step([0.2, 0.1])
    taken = env.get_state()
    with monkeypatch.context() as patch:
        patch.setattr(env.model.autoencoder, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            env.step([0.4, 0.2])
    continued = env.step([0.4, 0.2])
    env.set_state(taken)
    for one, other in zip(env.step([0.4, 0.2]), continued, strict=True):
        assert_same(one, other)


def test_a_fault_of_the_model_truncates(env: SanaWMEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    from sanawm_env import world

    real = world.step

    def faulty(*given: Any, **named: Any) -> Any:
        state, output = real(*given, **named)
        return state, dataclasses.replace(output, latents=torch.full_like(output.latents, float("nan")))

    env.reset(seed=0)
    monkeypatch.setattr(world, "step", faulty)
    _, reward, terminated, truncated, info = env.step([0.1, 0.0])
    assert (reward, terminated, truncated, info["truncation_reason"]) == (0.0, False, True, "model_fault")


def test_snapshots_survive_a_round_trip_through_a_folder(env: SanaWMEnv, tmp_path: Any) -> None:
    env.reset(seed=0, options={"horizon": 50})
    env.step([0.2, 0.1])
    env.get_state().save(tmp_path / "here")
    expected = env.step([0.3, 0.0])
    env.set_state(Snapshot.load(tmp_path / "here", env.model))
    for one, other in zip(env.step([0.3, 0.0]), expected, strict=True):
        assert_same(one, other)
    with pytest.raises(sanawm_env.errors.StorageError, match="exists already"):
        env.get_state().save(tmp_path / "here")
    with pytest.raises(sanawm_env.errors.StorageError, match="not a readable snapshot"):
        Snapshot.load(tmp_path / "nowhere", env.model)


def test_render_modes(tiny_model: WorldModel) -> None:
    env = SanaWMEnv(tiny_model, render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step([0.1, 0.0])
    assert len(env.render()) == 9
    assert env.render() == []
    assert env.metadata["render_fps"] == 10
    single = SanaWMEnv(tiny_model, render_mode="rgb_array")
    single.reset(seed=0)
    observation = single.step([0.1, 0.0])[0]
    np.testing.assert_array_equal(single.render(), observation)


def test_planning_without_pixels_pays_the_same(tiny_model: WorldModel) -> None:
    env = SanaWMEnv(tiny_model)
    env.reset(seed=0)
    shown, blind = env.fork(2), env.fork(2, decode=False)
    actions = np.array([[0.3, 0.1], [0.3, -0.1]])
    first, second = shown.step(actions), blind.step(actions)
    assert second[0] is None
    np.testing.assert_array_equal(first[1], second[1])
    assert "frames" not in second[4]


def test_gymnasium_can_list_the_infos_of_a_batch(tiny_model: WorldModel) -> None:
    vector = gymnasium.wrappers.vector.DictInfoToList(SanaWMVectorEnv(2, tiny_model))
    vector.reset(seed=0)
    infos = vector.step(np.zeros((2, 2)))[4]
    assert [info["frame"] for info in infos] == [8, 8]


def test_gymnasiums_own_vector_environment_gives_the_same_frames(tiny_model: WorldModel) -> None:
    ours = SanaWMVectorEnv(2, tiny_model)
    theirs = gymnasium.make_vec("sanawm_env/Rooms-v0", num_envs=2, vectorization_mode="sync", bundle=tiny_model)
    assert ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    actions = np.array([[0.3, 0.1], [-0.2, 0.4]])
    np.testing.assert_array_equal(ours.step(actions)[0], theirs.step(actions)[0])


def test_resets_of_a_fork_without_a_seed_repeat_themselves(env: SanaWMEnv) -> None:
    env.reset(seed=0)
    assert_same(env.fork(2).reset()[0], env.fork(2).reset()[0])


def test_timings_stay_out_of_info(env: SanaWMEnv) -> None:
    env.reset(seed=0)
    _, _, _, _, info = env.step([0.0, 0.0])
    assert env.last_timing["frames_per_second"] > 0
    assert not any("second" in key for key in info)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from Linux's /proc")
def test_a_thousand_steps_take_no_more_memory_than_three() -> None:
    config = tiny_config()
    # A block of each kind and one level of noise: a step leaves the same kinds of memory, in half of the time.
    small = dataclasses.replace(config, timesteps=(1000,), denoiser=dataclasses.replace(config.denoiser, depth=2))
    env = SanaWMEnv(WorldModel.random(small), task="drive")
    env.reset(seed=0, options={"image": picture()})
    sizes, resident = [], []
    for step in range(1000):
        observation, _, _, _, info = env.step([0.5, 0.9])
        if step in (2, 50, 999):
            sizes.append(env.get_state().world.nbytes()["total"])
            resident.append(resident_bytes())
    assert info["frame"] == 8000
    assert observation.std() > 0
    assert len(set(sizes)) == 1
    assert resident[2] - resident[1] < 20 * 2**20


@pytest.mark.gpu
def test_the_environments_run_on_a_gpu() -> None:
    model = WorldModel.random(tiny_config(), device="cuda")
    env = SanaWMEnv(model, observation="dict")
    env.reset(seed=0)
    taken = env.get_state()
    first = env.step([0.3, 0.1])
    env.set_state(taken)
    for one, other in zip(first, env.step([0.3, 0.1]), strict=True):
        assert_same(one, other)
    blind = env.fork(2, decode=False)
    assert blind.step(np.zeros((2, 2)))[0] is None
    vector = SanaWMVectorEnv(3, model)
    vector.reset(seed=0)
    vector.step(np.zeros((3, 2)))
    vector.reset(options={"reset_mask": np.array([False, True, False])})
    assert vector.step(np.zeros((3, 2)))[4]["frame"].tolist() == [16, 8, 16]


def test_some_worlds_of_a_batch_go_on_alone(tiny_model: WorldModel) -> None:
    whole = SanaWMVectorEnv(3, tiny_model, task="drive", frames="all")
    whole.reset(seed=[4, 5, 6])
    action = np.full((3, 2), 0.3, np.float32)
    whole.step(action)
    some = whole.select([2, 0])
    expected = whole.step(action)
    got = some.step(action[:2])
    np.testing.assert_array_equal(got[0], expected[0][[2, 0]])
    np.testing.assert_array_equal(got[4]["frames"], expected[4]["frames"][[2, 0]])
    assert some.num_envs == 2 and some.last_output[0].shape[:2] == (2, whole.frames_per_step)
    for wrong in ([], [3], [-1]):
        with pytest.raises(ConfigError, match=r"allowed are one or more of 0 \.\. 2"):
            whole.select(wrong)
