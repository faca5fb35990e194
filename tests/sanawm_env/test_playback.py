"""Stored latents give the frames of the rollout again."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tests.sanawm_env.test_refined_worlds import path, pictures, refined, text

from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.union import merge
from sanawm_env.datasets.verify import verify
from sanawm_env.datasets.windows import Windows, WindowSpec
from sanawm_env.errors import BundleError, ConfigError, StorageError
from sanawm_env.model.config import tiny_config
from sanawm_env.planned_env import PlannedEnv
from sanawm_env.playback import Decoder
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel, initial, step
from sanawm_env.wrappers.episodes import StoreEpisodes, StoreVectorEpisodes

FORWARD = np.array([0.2, 0.1], np.float32)


def made(model: WorldModel, **options: object) -> gym.Env:
    return gym.make("sanawm_env/Rooms-v0", bundle=model, task="drive", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_give_the_frames_of_the_rollout(dtype: torch.dtype, tmp_path: Path) -> None:
    model = WorldModel.random(tiny_config(), seed=0)
    model.denoiser.to(dtype), model.autoencoder.to(dtype)
    env = StoreEpisodes(made(model, latents=True, horizon=20), tmp_path / "a.zarr", keep="latents")
    _, info = env.reset(seed=3)
    assert info["latents"].shape == (1, 8, *model.config.grid) and info["latents"].dtype == np.float32
    seen = []
    for _ in range(3):
        info = env.step(FORWARD)[4]
        seen.append(info["frames"])
    assert info["latents"].shape == (model.config.chunk_latents, 8, *model.config.grid)
    env.close()
    plain = EpisodeStore(tmp_path / "a.zarr")
    assert "frames" not in plain[0] and plain[0]["latents"].shape[0] == 3
    store = EpisodeStore(tmp_path / "a.zarr", decode=Decoder(model))
    np.testing.assert_array_equal(store.read(0, valid_only=False)["frames"], np.concatenate(seen))
    np.testing.assert_array_equal(store[0]["frames"], np.concatenate(seen)[:20])
    assert not verify(tmp_path / "a.zarr").problems
    merge([tmp_path / "a.zarr"], tmp_path / "b.zarr")
    np.testing.assert_array_equal(
        EpisodeStore(tmp_path / "b.zarr", decode=Decoder(model))[0]["frames"], store[0]["frames"]
    )
    with pytest.raises(StorageError, match=r"has no \['frames'\]"):
        Windows(plain, WindowSpec())
    with pytest.raises(StorageError, match="read whole episodes, whose latents `decode` turns to frames"):
        plain.rows_at("frames", [0])


def test_worlds_of_a_batch_that_start_at_different_times(tiny_model: WorldModel, tmp_path: Path) -> None:
    batch = SanaWMVectorEnv(2, tiny_model, frames="all", latents=True, task="drive")
    codec = {"picture_codec": "webp", "picture_quality": 0}
    env = StoreVectorEpisodes(batch, tmp_path / "a.zarr", keep="both", codec=codec)
    env.reset(seed=10)
    for number in range(3):
        if number == 1:
            env.reset(seed=20, options={"reset_mask": np.array([False, True])})
        env.step(np.tile(FORWARD, (2, 1)))
    env.close()
    store, decode = EpisodeStore(tmp_path / "a.zarr"), Decoder(tiny_model)
    assert len(store) == 3
    for index in range(3):
        episode = store.read(index, valid_only=False)
        frames = decode(episode["start_latents"], episode["latents"], store.describe(index))
        np.testing.assert_array_equal(frames, episode["frames"])


def test_refined_latents_are_those_that_are_shown() -> None:
    model = refined()
    state, opened = initial(model, pictures(1), seeds=[0], text=text(1))
    outputs = []
    for chunk in range(2):
        state, output = step(model, state, path(1, chunk))
        outputs.append(output)
    assert output.refined is not None and not torch.equal(output.decoded, output.latents)
    latents = np.stack([output.decoded[0].numpy() for output in outputs])
    told = {"bundle": "tiny", "bundle_sha256": model.fingerprint}
    frames = np.concatenate([output.frames[0].numpy() for output in outputs])
    np.testing.assert_array_equal(Decoder(model)(opened.decoded[0, 0].numpy(), latents, told), frames)


def test_says_what_latents_need(tiny_model: WorldModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="build the environment with latents=True"):
        StoreEpisodes(made(tiny_model), tmp_path / "a.zarr", keep="latents")
    with pytest.raises(ConfigError, match="did you mean 'latents'"):
        StoreEpisodes(made(tiny_model), tmp_path / "a.zarr", keep="latent")
    env = StoreEpisodes(made(tiny_model, latents=True), tmp_path / "a.zarr")
    env.reset(seed=0)
    env.step(FORWARD)
    env.close()
    assert "latents" not in EpisodeStore(tmp_path / "a.zarr")[0], "kept only where it is asked for"
    told = {"bundle": "rooms", "bundle_sha256": "ab" * 32}
    with pytest.raises(BundleError, match="load the bundle that made them"):
        Decoder(tiny_model)(np.zeros(1), np.zeros(1), told)
    forked = made(tiny_model, latents=True)
    forked.reset(seed=0)
    assert "latents" not in forked.unwrapped.fork(2, decode=False).observe()[1]
    with pytest.raises(ConfigError, match="drop latents"):
        PlannedEnv(tiny_model, latents=True)
