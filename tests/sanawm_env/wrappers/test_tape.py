from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import ConfigError, LifecycleError
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.recorded import recorded
from sanawm_env.wrappers.rows import store_info
from sanawm_env.wrappers.tape import EpisodeTape


def taped(model: WorldModel, **options: object) -> EpisodeTape:
    return EpisodeTape(gym.make("sanawm_env/Rooms-v0", bundle=model, task="drive", **options))


def test_rows_are_frames_and_actions_led_to_them(tiny_model: WorldModel) -> None:
    tape = taped(tiny_model)
    _, first = tape.reset(seed=0)
    infos = [tape.step(np.array(action, np.float32))[4] for action in ([0.1, 0.2], [2.0, -0.1])]
    arrays = tape.arrays()
    chunk = tiny_model.config.frames_per_chunk
    assert {len(rows) for name, rows in arrays.items() if not name.startswith("start_")} == {2 * chunk}
    np.testing.assert_array_equal(arrays["start_frames"], first["frames"][0])
    np.testing.assert_array_equal(arrays["start_poses"], first["poses"][0])
    for name in ("frames", "poses", "rewards"):
        np.testing.assert_array_equal(arrays[name], np.concatenate([info[name] for info in infos]))
    np.testing.assert_allclose(arrays["actions"][:chunk], np.tile([0.1, 0.2], (chunk, 1)), rtol=1e-6)
    np.testing.assert_allclose(arrays["actions"][chunk:], np.tile([1.0, -0.1], (chunk, 1)), rtol=1e-6)
    assert (arrays["step_seconds"] > 0).all()
    tape.close()


def test_actions_of_every_frame_are_kept(tiny_model: WorldModel) -> None:
    tape = taped(tiny_model, action_mode="per_frame")
    tape.reset(seed=0)
    actions = np.linspace(-0.2, 0.2, 2 * tiny_model.config.frames_per_chunk, dtype=np.float32).reshape(-1, 2)
    tape.step(actions)
    np.testing.assert_allclose(tape.arrays()["actions"], actions, rtol=1e-6)


def test_a_pose_that_is_held_is_kept_as_the_path_to_it(tiny_model: WorldModel) -> None:
    tape = taped(tiny_model, action_map="pose", action_options={"mode": "absolute"})
    _, info = tape.reset(seed=0)
    goal = np.zeros(6, np.float32)
    goal[:3] = info["poses"][0, :3, 3] + [0, 0, 0.1]
    tape.step(goal)
    tape.step(goal)
    arrays = tape.arrays()
    np.testing.assert_allclose(arrays["actions"][:, :3], arrays["poses"][:, :3, 3], atol=1e-5)


def test_a_reset_starts_anew(tiny_model: WorldModel) -> None:
    tape = taped(tiny_model)
    for _ in range(2):
        tape.reset(seed=0)
        tape.step(np.zeros(2, np.float32))
        assert len(tape.arrays()["frames"]) == tiny_model.config.frames_per_chunk


def test_what_was_taped_can_be_stored(tiny_model: WorldModel, tmp_path: Path) -> None:
    tape = taped(tiny_model)
    tape.reset(seed=0)
    tape.step(np.zeros(2, np.float32))
    with EpisodeWriter(tmp_path / "a.zarr", store_info(recorded(tape.unwrapped))) as writer:
        writer.add(tape.arrays(), seed=0)
    np.testing.assert_array_equal(EpisodeStore(tmp_path / "a.zarr")[0]["poses"], tape.arrays()["poses"])


def test_says_what_it_needs(tiny_model: WorldModel) -> None:
    with pytest.raises(LifecycleError, match="reset"):
        taped(tiny_model).arrays()
    with pytest.raises(LifecycleError, match="reset"):
        taped(tiny_model).step(np.zeros(2, np.float32))
    with pytest.raises(ConfigError, match="frames='all'"):
        taped(tiny_model, frames="none").reset(seed=0)
