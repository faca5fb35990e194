from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import sanawm_env
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.verify import verify
from sanawm_env.errors import ConfigError, LifecycleError, StorageError
from sanawm_env.scene import Scene
from sanawm_env.snapshot import Snapshot
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.episodes import StoreEpisodes, StoreVectorEpisodes
from sanawm_env.wrappers.tape import EpisodeTape

FORWARD = np.array([0.2, 0.1], np.float32)


def made(model: WorldModel, **options: object) -> gym.Env:
    return gym.make("sanawm_env/Rooms-v0", bundle=model, task="drive", **options)


def test_an_episode_is_stored_as_it_was_seen(tiny_model: WorldModel, tmp_path: Path) -> None:
    tape = EpisodeTape(made(tiny_model, horizon=12))
    env = StoreEpisodes(tape, tmp_path / "a.zarr", truth=True, extra={"run": 3})
    env.reset(seed=5)
    for _ in range(2):
        _, _, terminated, truncated, _ = env.step(FORWARD)
    assert truncated and not terminated
    store = EpisodeStore(tmp_path / "a.zarr")  # committed at its end, not at close
    expected, read = tape.arrays(), store.read(0, valid_only=False)
    for name in set(expected) - {"frames", "start_frames"}:
        np.testing.assert_array_equal(read[name], expected[name], err_msg=name)
    assert np.abs(read["frames"].astype(int) - expected["frames"]).mean() < 6
    assert np.flatnonzero(read["truncated"]).tolist() == [11] and len(store[0]["frames"]) == 12
    assert read["truth_depth"].shape == read["frames"].shape[:3] and (read["start_truth_depth"] > 0).all()
    told = store.describe(0)
    assert (told["seed"], told["room"], told["reason"], told["steps"]) == (5, 5, "horizon", 2)
    assert told["intrinsics_source"] == "bundle" and told["synthetic"] and told["extra"] == {"run": 3}
    assert told["task"].startswith("Drive(") and told["action_map"].startswith("DiffDrive(")
    assert (told["precision"], told["package_version"]) == ("fp32", sanawm_env.__version__)
    assert told["seconds"] > 0
    env.step(FORWARD)
    env.close()
    assert len(EpisodeStore(tmp_path / "a.zarr")) == 1, "what happens after the end is not kept"


def test_episodes_that_are_cut_off_are_kept(tiny_model: WorldModel, tmp_path: Path) -> None:
    env = StoreEpisodes(made(tiny_model), tmp_path / "a.zarr")
    for seed, steps in ((0, 2), (1, 0), (2, 1)):
        env.reset(seed=seed)
        for _ in range(steps):
            env.step(np.zeros(2, np.float32))
    env.close()
    env.close()
    store = EpisodeStore(tmp_path / "a.zarr")
    assert store.meta["episode_seeds"].tolist() == [0, 2], "one without a step is none"
    assert store.describe(0)["reason"] == "" and store.ends.tolist() == [16, 24]
    again = StoreEpisodes(made(tiny_model), tmp_path / "a.zarr")
    again.reset(seed=3)
    again.step(FORWARD)
    again.close()
    assert len(EpisodeStore(tmp_path / "a.zarr")) == 3 and not verify(tmp_path / "a.zarr").problems


def test_goes_on_from_a_state_that_was_kept(tiny_model: WorldModel, tmp_path: Path) -> None:
    env = StoreEpisodes(made(tiny_model), tmp_path / "a.zarr")
    with pytest.raises(LifecycleError, match="no episode is being stored"):
        env.keep_state()
    env.reset(seed=5)
    env.step(FORWARD)
    env.keep_state()
    expected = env.step(FORWARD)[4]["frames"]
    env.close()
    states = EpisodeStore(tmp_path / "a.zarr").states(0)
    assert list(states) == [1]
    other = made(tiny_model)
    other.unwrapped.set_state(Snapshot.from_bytes(states[1], tiny_model))
    np.testing.assert_array_equal(other.unwrapped.step(FORWARD)[4]["frames"], expected)
    with pytest.raises(StorageError, match="no snapshot"):
        Snapshot.from_bytes(states[1][512:600], tiny_model)


def test_worlds_of_a_batch_end_at_different_times(tiny_model: WorldModel, tmp_path: Path) -> None:
    batch = SanaWMVectorEnv(3, tiny_model, frames="all", task="drive", horizon=24)
    env = StoreVectorEpisodes(batch, tmp_path / "a.zarr", codec={"picture_codec": "webp", "picture_quality": 0})
    env.reset(seed=10)
    seen = [[] for _ in range(3)]
    for step in range(4):
        if step == 1:
            env.reset(seed=20, options={"reset_mask": np.array([False, True, False])})
            seen[1] = []
        _, _, _, truncated, info = env.step(np.tile(FORWARD, (3, 1)))
        for world in range(3):
            seen[world].append(info["frames"][world])
    assert truncated.all()
    env.close()
    store = EpisodeStore(tmp_path / "a.zarr")
    assert store.meta["episode_seeds"].tolist() == [11, 10, 12, 21]
    assert [store.describe(index)["reason"] for index in range(4)] == ["", "horizon", "horizon", "horizon"]
    for index, world in ((1, 0), (2, 2), (3, 1)):
        np.testing.assert_array_equal(store[index]["frames"], np.concatenate(seen[world][:3]))
    assert not verify(tmp_path / "a.zarr").problems


def test_says_what_it_needs(tiny_model: WorldModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no world to record"):
        StoreEpisodes(gym.make("CartPole-v1"), tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())
    env = StoreEpisodes(made(tiny_model, frames="last"), tmp_path / "b.zarr")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="frames='all'"):
        env.step(FORWARD)
    env.close()
    picture = np.zeros((tiny_model.config.height, tiny_model.config.width, 3), np.uint8)
    scene = Scene(image=picture, intrinsics=(30, 30, 19.5, 15.5), intrinsics_from="exif")
    env = StoreEpisodes(made(tiny_model), tmp_path / "c.zarr", truth=True)
    with pytest.raises(ConfigError, match="start in a room"):
        env.reset(options={"scene": scene})
    env.close()
    env = StoreEpisodes(made(tiny_model), tmp_path / "d.zarr", licences=("CC-BY-4.0",))
    env.reset(options={"scene": scene})
    env.step(FORWARD)
    env.close()
    told = EpisodeStore(tmp_path / "d.zarr").describe(0)
    assert (told["intrinsics_source"], told["room"], told["licences"]) == ("exif", -1, ["CC-BY-4.0"])
