"""Recording: all frames of a chunk, at the world's rate, in files that are whole."""

from __future__ import annotations

from pathlib import Path

import av
import gymnasium
import numpy as np
import pytest

from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ConfigError
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.per_frame import PerFrame
from sanawm_env.wrappers.recording import RecordEpisodes


def frames_and_rate(path: Path) -> tuple[int, float]:
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0)), float(video.streams.video[0].average_rate)


def test_every_frame_of_every_episode_is_in_its_file(tiny_model: WorldModel, tmp_path: Path) -> None:
    env = RecordEpisodes(SanaWMEnv(tiny_model, task="drive"), tmp_path, name="drive")
    for steps in (2, 1):
        env.reset(seed=0)
        for _ in range(steps):
            env.step([0.1, 0.2])
    env.close()
    env.close()
    assert [path.name for path in env.written] == ["drive-0000.mp4", "drive-0001.mp4"]
    assert [frames_and_rate(path) for path in env.written] == [(17, 10.0), (9, 10.0)]


def test_frames_after_the_end_are_left_out(tiny_model: WorldModel, tmp_path: Path) -> None:
    env = RecordEpisodes(SanaWMEnv(tiny_model, task="drive", horizon=11), tmp_path)
    env.reset(seed=0)
    for _ in range(4):
        env.step([0.0, 0.2])
    path = env.flush()
    assert path is not None
    assert frames_and_rate(path)[0] == 12


def test_every_second_episode(tiny_model: WorldModel, tmp_path: Path) -> None:
    env = RecordEpisodes(SanaWMEnv(tiny_model), tmp_path, every=2)
    for _ in range(3):
        env.reset(seed=0)
    env.close()
    assert [path.name for path in env.written] == ["episode-0000.mp4", "episode-0002.mp4"]


def test_recording_needs_all_frames(tiny_model: WorldModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="frames='all'"):
        RecordEpisodes(SanaWMEnv(tiny_model, frames="none"), tmp_path).reset(seed=0)
    with pytest.raises(ConfigError, match="every of RecordEpisodes is 0"):
        RecordEpisodes(SanaWMEnv(tiny_model), tmp_path, every=0)


def test_per_frame_plays_what_the_chunks_hold(tiny_model: WorldModel) -> None:
    chunks, single = SanaWMEnv(tiny_model), PerFrame(SanaWMEnv(tiny_model))
    chunks.reset(seed=4), single.reset(seed=4)
    for action in ([0.1, 0.2], [0.2, -0.3]):
        _, reward, _, _, info = chunks.step(action)
        total = 0.0
        for index in range(8):
            frame, part, _, _, told = single.step(action)
            np.testing.assert_array_equal(frame, info["frames"][index])
            np.testing.assert_array_equal(told["pose"], info["poses"][index])
            assert told["action_used"] == (index == 0)
            assert told["frame"] == info["frame"] - 7 + index
            total += part
        assert total == pytest.approx(reward)


def test_per_frame_ends_at_the_very_frame(tiny_model: WorldModel) -> None:
    env = PerFrame(SanaWMEnv(tiny_model, task="drive", horizon=11))
    env.reset(seed=0)
    ends = [env.step([0.0, 0.1])[3] for _ in range(11)]
    assert ends == [False] * 10 + [True]


def test_gymnasium_records_every_frame_around_per_frame(tiny_model: WorldModel) -> None:
    env = PerFrame(SanaWMEnv(tiny_model, render_mode="rgb_array"))
    assert env.metadata["render_fps"] == 10
    recorded = gymnasium.wrappers.RenderCollection(env)
    recorded.reset(seed=0)
    for _ in range(8):
        observation = recorded.step([0.0, 0.1])[0]
    shown = recorded.render()
    assert len(shown) == 9
    np.testing.assert_array_equal(shown[-1], observation)


def test_per_frame_needs_single_frames(tiny_model: WorldModel) -> None:
    with pytest.raises(ConfigError, match="observation='last'"):
        PerFrame(SanaWMEnv(tiny_model, observation="all"))
