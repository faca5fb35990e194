from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import sanawm_env
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.schema import StoreInfo
from sanawm_env.datasets.writer import open_writer
from sanawm_env.errors import ConfigError, LifecycleError
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.tape import EpisodeTape


def taped(model: WorldModel, **options: object) -> EpisodeTape:
    return EpisodeTape(gym.make("sanawm_env/Rooms-v0", bundle=model, task="drive", **options))


def test_rows_are_frames_and_actions_lead_to_the_next(tiny_model: WorldModel) -> None:
    tape = taped(tiny_model)
    _, first = tape.reset(seed=0)
    infos = [first] + [tape.step(np.array(action, np.float32))[4] for action in ([0.1, 0.2], [2.0, -0.1])]
    arrays = tape.arrays()
    chunk = tiny_model.config.frames_per_chunk
    assert {len(rows) for rows in arrays.values()} == {1 + 2 * chunk}
    np.testing.assert_array_equal(arrays["frames"], np.concatenate([info["frames"] for info in infos]))
    np.testing.assert_array_equal(arrays["poses"], np.concatenate([info["poses"] for info in infos]))
    np.testing.assert_allclose(arrays["actions"][:chunk], np.tile([0.1, 0.2], (chunk, 1)), rtol=1e-6)
    np.testing.assert_allclose(arrays["actions"][chunk:-1], np.tile([1.0, -0.1], (chunk, 1)), rtol=1e-6)
    assert not arrays["actions"][-1].any()
    tape.close()


def test_actions_of_every_frame_are_kept(tiny_model: WorldModel) -> None:
    tape = taped(tiny_model, action_mode="per_frame")
    tape.reset(seed=0)
    actions = np.linspace(-0.2, 0.2, 2 * tiny_model.config.frames_per_chunk, dtype=np.float32).reshape(-1, 2)
    tape.step(actions)
    np.testing.assert_allclose(tape.arrays()["actions"][:-1], actions, rtol=1e-6)


def test_a_reset_starts_anew(tiny_model: WorldModel) -> None:
    tape = taped(tiny_model)
    for _ in range(2):
        tape.reset(seed=0)
        assert len(tape.arrays()["frames"]) == 1
        tape.step(np.zeros(2, np.float32))


def test_what_was_taped_can_be_stored(tiny_model: WorldModel, tmp_path: Path) -> None:
    tape = taped(tiny_model)
    tape.reset(seed=0)
    tape.step(np.zeros(2, np.float32))
    info = StoreInfo(
        fps=tape.get_wrapper_attr("fps"),
        action_map="diff_drive",
        action_columns=tape.get_wrapper_attr("action_map").columns,
        action_units=tape.get_wrapper_attr("action_map").units,
        bundle_sha256="",
        package_version=sanawm_env.__version__,
    )
    with open_writer(tmp_path / "a.zarr", info) as writer:
        writer.add(tape.arrays(), seed=0)
    np.testing.assert_array_equal(EpisodeStore(tmp_path / "a.zarr")[0]["poses"], tape.arrays()["poses"])


def test_says_what_it_needs(tiny_model: WorldModel) -> None:
    with pytest.raises(LifecycleError, match="reset"):
        taped(tiny_model).arrays()
    with pytest.raises(LifecycleError, match="reset"):
        taped(tiny_model).step(np.zeros(2, np.float32))
    with pytest.raises(ConfigError, match="frames='all'"):
        taped(tiny_model, frames="none").reset(seed=0)
