"""The truth of Rooms as an environment: the contract of all environments, and that it is the learned world's truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.errors import ConfigError, SceneError, StateError
from sanawm_env.rooms import render, sample_scenes
from sanawm_env.testing import EnvironmentContract
from sanawm_env.truth import RoomsTruthEnv, RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.episodes import StoreEpisodes
from sanawm_env.wrappers.rerun_log import LogToRerun


class TestRoomsTruth(EnvironmentContract):
    """The whole contract, for the truth."""

    reseeded_futures_differ = False

    @pytest.fixture(autouse=True)
    def _model(self, tiny_model: WorldModel) -> None:
        self.model = tiny_model

    def make(self, **options: Any) -> gymnasium.Env[Any, Any]:
        return gymnasium.make("sanawm_env/RoomsTruth-v0", bundle=self.model, **options)

    def make_vector(self, num_envs: int, **options: Any) -> SanaWMVectorEnv:
        made = gymnasium.make_vec("sanawm_env/RoomsTruth-v0", num_envs=num_envs, bundle=self.model, **options)
        assert isinstance(made, RoomsTruthVectorEnv)
        return made


def test_it_starts_as_the_learned_world_does(tiny_model: WorldModel) -> None:
    learned = gymnasium.make("sanawm_env/Rooms-v0", bundle=tiny_model)
    truth = RoomsTruthEnv(tiny_model)
    for seed in (0, 10**9 + 3):
        _, known = learned.reset(seed=seed)
        _, info = truth.reset(seed=seed)
        for key in ("seed", "room", "poses", "intrinsics", "instruction", "goal", "distance"):
            np.testing.assert_array_equal(info[key], known[key], err_msg=key)
    assert truth.action_space == learned.action_space
    assert truth.observation_space == learned.observation_space


def test_rewards_and_ends_are_those_of_the_learned_world(tiny_model: WorldModel) -> None:
    results = []
    for name in ("Rooms-v0", "RoomsTruth-v0"):
        env = gymnasium.make(f"sanawm_env/{name}", bundle=tiny_model, frames="none")
        env.reset(seed=3)
        results.append([env.step([0.9, 0.1])[1:] for _ in range(6)])
    for learned, truth in zip(*results, strict=True):
        assert truth[:3] == learned[:3]
        np.testing.assert_equal(truth[3], learned[3])


def test_every_frame_is_what_the_ray_caster_draws_at_its_pose() -> None:
    env = RoomsTruthEnv(device="cpu")
    _, first = env.reset(seed=5)
    _, _, _, _, info = env.step([0.4, 0.3])
    poses = np.concatenate([first["poses"], info["poses"]])[None]
    seen = render(
        sample_scenes([first["room"]]), torch.from_numpy(poses), torch.tensor(first["intrinsics"]), (128, 160)
    )
    np.testing.assert_array_equal(np.concatenate([first["frames"], info["frames"]]), seen.rgb[0].numpy())


def test_no_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from sanawm_env import bundle_files

    monkeypatch.setattr(bundle_files, "read_weights", None)
    RoomsTruthVectorEnv(2, device="cpu").close()


def test_what_the_truth_cannot_be(tiny_model: WorldModel) -> None:
    env = RoomsTruthEnv(tiny_model)
    with pytest.raises(SceneError, match="picture has no known truth"):
        env.reset(options={"image": np.zeros((32, 40, 3), np.uint8), "task": "drive"})
    with pytest.raises(ConfigError, match="latents is True"):
        RoomsTruthEnv(tiny_model, latents=True)
    with pytest.raises(ConfigError, match="unknown key 'precision'"):
        RoomsTruthEnv(tiny_model, precision="bf16")
    env.reset(seed=0)
    learned = gymnasium.make("sanawm_env/Rooms-v0", bundle=tiny_model)
    with pytest.raises(StateError, match="make the environment with the bundle that took it"):
        learned.unwrapped.set_state(env.get_state())  # type: ignore[attr-defined]


def test_the_truth_is_logged_and_stored_as_a_learned_world_is(tiny_model: WorldModel, tmp_path: Path) -> None:
    env = RoomsTruthEnv(tiny_model, task="drive", horizon=16)
    logged = LogToRerun(StoreEpisodes(env, tmp_path / "truth.zarr"), tmp_path / "truth.rrd")
    _, first = logged.reset(seed=1)
    infos = [first, *(logged.step([0.2, 0.1])[4] for _ in range(2))]
    logged.close()
    assert (tmp_path / "truth.rrd").stat().st_size > 1000
    store = EpisodeStore(tmp_path / "truth.zarr")
    assert store.describe(0)["bundle"] == "tiny-truth"
    np.testing.assert_allclose(store[0]["poses"], np.concatenate([info["poses"] for info in infos[1:]]), atol=1e-6)
