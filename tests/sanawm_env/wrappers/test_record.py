"""Environments that are not ours, in a store: a camera without a simulator, and a MuJoCo scene of known geometry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tests.mujoco_here import DRAW, needs_mujoco

from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.verify import verify
from sanawm_env.errors import ConfigError, PoseError, StorageError
from sanawm_env.wrappers.record import RecordCamera

LENS = np.array([30.0, 30.0, 19.5, 15.5])
SIZE = (96, 128)


class Corridor(gym.Env[Any, Any]):
    """A camera that walks along z; the picture's brightness is where it is."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.z, self.steps = 0.0, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.z, self.steps = self.z + float(action[0]), self.steps + 1
        there = self.z > 2.5
        return np.array([self.z], np.float32), self.z, there, self.steps >= 6, {"is_success": self.z > 2.9}

    def render(self) -> np.ndarray:
        return np.full((32, 40, 3), int(50 * self.z), np.uint8)


def camera(env: Corridor) -> tuple[np.ndarray, np.ndarray]:
    pose = np.eye(4)
    pose[2, 3] = env.z
    return pose, LENS


def test_every_episode_of_any_environment(tmp_path: Path) -> None:
    told = {"task": "walk", "action_columns": ["v"], "action_units": ["m/s"], "licences": ["MIT"]}
    env = RecordCamera(Corridor(), tmp_path / "a.zarr", camera, codec={"picture_codec": "jpegxl"}, **told)
    for seed, paces in ((7, [1.0, 1.0, 1.0]), (None, [0.2] * 6), (8, [1.0, 0.8, 0.9]), (9, [0.5, 0.5]), (10, [])):
        env.reset(seed=seed)
        for pace in paces:
            *_, info = env.step(np.array([pace], np.float32))
            assert "is_success" in info
        if seed == 7:
            env.step(np.array([1.0], np.float32))  # after the end
    env.close()
    env.close()
    store = EpisodeStore(tmp_path / "a.zarr")
    assert store.info.frames_per_step == 1 and store.info.fps == 5 and store.info.action_columns == ("v",)
    assert not verify(tmp_path / "a.zarr").problems
    told_of = [store.describe(index) for index in range(4)]
    assert [one["reason"] for one in told_of] == ["success", "timeout", "other", ""] and len(store) == 4
    assert [one["seed"] for one in told_of] == [7, -1, 8, 9]
    first = store[0]
    assert first["poses"][:, 2, 3].tolist() == [1, 2, 3] and first["start_poses"][2, 3] == 0
    assert first["frames"].mean((1, 2, 3)).tolist() == [50, 100, 150], "an action stands beside what it led to"
    assert first["rewards"].tolist() == [1, 2, 3] and first["actions"].ravel().tolist() == [1, 1, 1]
    assert first["terminated"].tolist() == [False, False, True] and not first["truncated"].any()
    assert store[1]["truncated"].tolist() == [False] * 5 + [True]
    assert told_of[0]["task"] == "walk" and told_of[0]["licences"] == ["MIT"] and told_of[0]["synthetic"]
    assert np.array_equal(first["intrinsics"], np.tile(LENS.astype(np.float32), (3, 1)))


def test_an_exception_in_the_policy_keeps_what_was_committed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with RecordCamera(Corridor(), tmp_path / "a.zarr", camera) as env:
            for episode in range(3):
                env.reset(seed=episode)
                for step in range(6):
                    env.step(np.array([0.2 / (episode < 2 or step < 3)], np.float32))
    store = EpisodeStore(tmp_path / "a.zarr")
    assert [store.describe(index)["reason"] for index in range(3)] == ["timeout", "timeout", ""]
    assert [len(store[index]["frames"]) for index in range(3)] == [6, 6, 3]
    with RecordCamera(Corridor(), tmp_path / "a.zarr", camera) as env:
        env.reset(seed=3)
        with pytest.raises(StorageError, match="has a writer already"):
            RecordCamera(Corridor(), tmp_path / "a.zarr", camera)


def test_exceptions_in_a_policy_at_random_instants(tmp_path: Path) -> None:
    """SANAWM_KILLS sets how many (20). Whatever was shown before the exception is in the store, and nothing else."""
    path, rng, shown = tmp_path / "a.zarr", np.random.default_rng(0), list[float]()
    for _ in range(int(os.environ.get("SANAWM_KILLS", "20"))):
        left = int(rng.integers(0, 20))
        with pytest.raises(ZeroDivisionError), RecordCamera(Corridor(), path, camera, durable=False) as env:
            while True:
                env.reset()
                over = False
                while not over:
                    pace = rng.uniform(0, 1) if left else 1 // left  # the policy, which fails at some step
                    _, reward, terminated, truncated, _ = env.step(np.array([pace], np.float32))
                    over, left = terminated or truncated, left - 1
                    shown.append(float(reward))
    store = EpisodeStore(tmp_path / "a.zarr")
    assert store.frames == len(shown) and not verify(tmp_path / "a.zarr").problems
    assert np.concatenate([store[index]["rewards"] for index in range(len(store))]).tolist() == shown
    reasons = [store.describe(index)["reason"] for index in range(len(store))]
    assert {"", "timeout"} <= set(reasons)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"camera": lambda env: (2 * np.eye(4), LENS)}, PoseError, "the camera's pose is not rigid"),
        ({"camera": lambda env: (np.eye(4), -LENS)}, PoseError, "fx, fy > 0"),
        ({"camera": lambda env: (np.eye(3), LENS)}, ConfigError, r"shapes \(3, 3\) and \(4,\)"),
        ({"fps": 0.0}, StorageError, "fps is 0.0"),
        ({"action_columns": ["v", "w"]}, ConfigError, "the actions have 1 numbers"),
    ],
)
def test_what_a_camera_must_give(change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        RecordCamera(Corridor(), tmp_path / "a.zarr", **{"camera": camera, **change}).reset()


def test_what_an_environment_must_give(tmp_path: Path) -> None:
    env = RecordCamera(gym.make("CartPole-v1"), tmp_path / "a.zarr", camera)
    with pytest.raises(ConfigError, match="render_mode='rgb_array'"):
        env.reset()
    env.close()
    strange = Corridor()
    strange.action_space = gym.spaces.Dict({"v": gym.spaces.Box(-1, 1)})
    with pytest.raises(ConfigError, match="a store keeps rows of numbers"):
        RecordCamera(strange, tmp_path / "b.zarr", camera)
    strange = Corridor()
    strange.metadata = {}
    with pytest.raises(ConfigError, match="pass fps"):
        RecordCamera(strange, tmp_path / "b.zarr", camera)
    assert not (tmp_path / "b.zarr").exists()


# Three spheres that shine by themselves, so that their centres in a picture are where their colour is.
SCENE = """
<mujoco>
  <visual><headlight ambient="0 0 0" diffuse="0 0 0" specular="0 0 0"/></visual>
  <asset>
    <material name="red" rgba="1 0 0 1" emission="1"/>
    <material name="green" rgba="0 1 0 1" emission="1"/>
    <material name="blue" rgba="0 0 1 1" emission="1"/>
  </asset>
  <worldbody>
    <geom name="red" type="sphere" pos="0.5 0.3 0.4" size="0.06" material="red"/>
    <geom name="green" type="sphere" pos="0.6 -0.3 0.9" size="0.06" material="green"/>
    <geom name="blue" type="sphere" pos="1.0 -0.1 0.1" size="0.06" material="blue"/>
    <body pos="-1.5 0 0.8">
      <joint name="along" type="slide" axis="1 0 0"/>
      <joint name="turn" type="hinge" axis="0 0 1"/>
      <geom type="sphere" size="0.01" pos="-0.1 0 0" mass="1"/>
      <camera name="eye" xyaxes="0 -1 0 0.3 0 1" fovy="60"/>
      <camera name="sensor" xyaxes="0 -1 0 0.3 0 1" focal="0.003 0.0028" principal="0.0003 -0.0002"
              sensorsize="0.004 0.003" resolution="128 96"/>
    </body>
  </worldbody>
</mujoco>
"""


class Scene(gym.Env[Any, Any]):
    """The spheres, seen from a camera that slides forward and turns; an action is where it goes (m, rad)."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def __init__(self, name: str) -> None:
        import mujoco

        self.mujoco, self.name = mujoco, name
        self.model = mujoco.MjModel.from_xml_string(SCENE)
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, *SIZE)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._put(np.zeros(2)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._put(np.asarray(action, np.float64)), 0.0, False, False, {}

    def render(self) -> np.ndarray:
        self.renderer.update_scene(self.data, self.name)
        return self.renderer.render()

    def close(self) -> None:
        self.renderer.close()

    def _put(self, place: np.ndarray) -> np.ndarray:
        self.data.qpos[:] = place
        self.mujoco.mj_forward(self.model, self.data)
        return self.data.qpos.copy()


@pytest.mark.parametrize("name", ["eye", "sensor"])
def test_points_of_a_mujoco_scene_are_where_the_pictures_show_them(name: str, tmp_path: Path) -> None:
    needs_mujoco()
    from sanawm_env.wrappers.mujoco_camera import mujoco_camera

    scene = Scene(name)
    centres = {colour: scene.data.geom(colour).xpos for colour in ("red", "green", "blue")}
    with RecordCamera(scene, tmp_path / "a.zarr", mujoco_camera(name, SIZE), codec={"picture_codec": "jpegxl"}) as env:
        env.reset(seed=0)
        for place in ([0.2, 0.0], [0.4, 0.1], [0.5, -0.1]):
            env.step(np.array(place, np.float32))
        with pytest.raises(ConfigError, match="no camera 'ey'; did you mean 'eye'"):
            mujoco_camera("ey", SIZE)(scene)
    read = EpisodeStore(tmp_path / "a.zarr")[0]
    seen = 0
    for picture, pose, lens in zip(read["frames"].astype(int), read["poses"], read["intrinsics"]):
        for channel, centre in enumerate(centres.values()):
            right, down, ahead = pose[:3, :3].T @ (np.array(centre) - pose[:3, 3])
            assert ahead > 0, "what is in front of the camera lies along +z"
            others = np.delete(picture, channel, axis=2).max(axis=2)
            rows, columns = np.nonzero(picture[..., channel] - others > 128)
            assert len(rows) > 5
            expected = lens[:2] * [right / ahead, down / ahead] + lens[2:]
            assert np.abs(expected - [columns.mean(), rows.mean()]).max() < 0.35, "pixels"
            seen += 1
    assert seen == 9
    assert read["poses"][0, :3, 3].tolist() == pytest.approx([-1.3, 0, 0.8]), "metres ahead, along the world's x"


def test_models_load_after_mujoco_has_drawn() -> None:
    """Mesa and triton bring an LLVM each; in the wrong order the process dies."""
    needs_mujoco()
    pytest.importorskip("triton", reason="triton is for Linux only")
    code = f"import sanawm_env.wrappers.mujoco_camera; {DRAW}; from triton import knobs; print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "alive\n", (done.returncode, done.stderr[-500:])
