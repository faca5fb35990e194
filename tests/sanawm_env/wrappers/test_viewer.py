from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sanawm_env.errors import LifecycleError, StorageError
from sanawm_env.wrappers.viewer import RerunViewer, Rollout, write_recording


def rollout(frames: int = 9) -> Rollout:
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 2, 3] = np.linspace(0, 1, frames)
    pictures = rng.integers(0, 255, (frames, 64, 80, 3), dtype=np.uint8)
    return Rollout(
        fps=10.0,
        poses=poses,
        intrinsics=np.array([50.0, 50.0, 39.5, 31.5]),
        videos={"dream": pictures, "truth": pictures},
        scalars={"PSNR (dB)": np.linspace(40, 30, frames)},
        points={"room": (rng.normal(size=(50, 3)), rng.integers(0, 255, (50, 3), dtype=np.uint8))},
        text="how it was made",
    )


def printed(path: Path) -> str:
    """What Rerun itself says is in a recording, after it has verified the file."""
    for verb in ("verify", "print"):
        done = subprocess.run([sys.executable, "-m", "rerun", "rrd", verb, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_recording_holds_camera_videos_scalars_and_layout(tmp_path: Path) -> None:
    write_recording(tmp_path / "a.rrd", rollout())
    assert [path.name for path in tmp_path.iterdir()] == ["a.rrd"]
    content = printed(tmp_path / "a.rrd")
    for entity in ("/world/camera", "/world/path", "/video/dream", "/video/truth", "PSNR", "/world/room"):
        assert entity in content
    assert "blueprint" in content.lower()


def test_a_recording_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        write_recording(tmp_path / "file" / "a.rrd", rollout())


class Corridor(gym.Env[np.ndarray, np.ndarray]):
    """Two frames a step, straight ahead."""

    observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (1,))
    fps = 10.0

    def __init__(self, with_frames: bool = True):
        self.with_frames = with_frames

    def _info(self, count: int) -> dict[str, Any]:
        frames = np.zeros((count, 16, 16, 3), np.uint8)
        info: dict[str, Any] = {"poses": np.tile(np.eye(4), (count, 1, 1))}
        return {**info, "frames": frames} if self.with_frames else info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros((16, 16, 3), np.uint8), {**self._info(1), "intrinsics": np.array([20.0, 20, 7.5, 7.5])}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros((16, 16, 3), np.uint8), 0.5, False, False, self._info(2)


def test_the_wrapper_logs_and_passes_everything_through(tmp_path: Path) -> None:
    env = RerunViewer(Corridor(), tmp_path / "a.rrd")
    _, info = env.reset(seed=0)
    assert info["frames"].shape[0] == 1
    observation, reward, terminated, truncated, _ = env.step(np.zeros(1))
    assert observation.shape == (16, 16, 3)
    assert (reward, terminated, truncated) == (0.5, False, False)
    env.close()
    content = printed(tmp_path / "a.rrd")
    assert "/video/frames" in content and "/scalars/reward" in content


def test_the_wrapper_says_what_it_needs(tmp_path: Path) -> None:
    env = RerunViewer(Corridor(with_frames=False), tmp_path / "a.rrd")
    with pytest.raises(LifecycleError, match='frames="all"'):
        env.reset()
