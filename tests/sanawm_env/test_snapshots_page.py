"""examples/snapshots.md says what happens: its code runs, and every row of its table is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics, TimeLimit

from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import LifecycleError
from sanawm_env.truth import RoomsTruthEnv, RoomsTruthVectorEnv
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.episodes import StoreEpisodes, StoreVectorEpisodes
from sanawm_env.wrappers.per_frame import PerFrame
from sanawm_env.wrappers.recording import RecordEpisodes
from sanawm_env.wrappers.rerun_log import LogToRerun
from sanawm_env.wrappers.tape import EpisodeTape

PAGE = (Path(__file__).parents[2] / "examples" / "snapshots.md").read_text()
AHEAD, TURN = np.array([0.3, 0.1], np.float32), np.array([0.1, -0.6], np.float32)


@pytest.fixture
def truth(tiny_model: WorldModel) -> RoomsTruthEnv:
    return RoomsTruthEnv(tiny_model, task="drive", render_mode="rgb_array")


def call(env: Any, name: str, *given: Any) -> Any:
    return env.get_wrapper_attr(name)(*given)


def test_the_pages_code_runs(tiny_model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gymnasium, "make", lambda name: SanaWMEnv(tiny_model))
    told: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, told)
    assert told["frames"].shape == (1, 16, 32, 40, 3)
    assert told["observation"].shape == (32, 40, 3) and told["info"]["frame"] == 0


def test_per_frame_drops_what_waits_and_takes_no_snapshot_amid_it(truth: RoomsTruthEnv) -> None:
    env = PerFrame(truth)
    env.reset(seed=1)
    taken = call(env, "get_state")
    first = [env.step(AHEAD) for _ in range(3)]
    with pytest.raises(LifecycleError, match="5 frames of the chunk are still to be shown"):
        call(env, "get_state")
    call(env, "set_state", taken)
    np.testing.assert_array_equal(env.render(), truth.observe()[0])
    again = [env.step(AHEAD) for _ in range(3)]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[4]["action_used"] == other[4]["action_used"]


def test_videos_tapes_and_stores_go_on_with_a_cut(truth: RoomsTruthEnv, tmp_path: Path) -> None:
    video = RecordEpisodes(truth, tmp_path / "video")
    tape = EpisodeTape(video)
    env = StoreEpisodes(tape, tmp_path / "store.zarr")
    env.reset(seed=1)
    taken = call(env, "get_state")
    env.step(AHEAD)
    call(env, "set_state", taken)
    env.step(TURN)
    assert sum(len(frames) for frames in video._frames) == 1 + 2 * 8
    assert len(tape._steps) == 2
    env.close()
    store = EpisodeStore(tmp_path / "store.zarr")
    poses = store.read(0)["poses"]
    moved = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    assert len(store) == 1 and len(poses) == 16 and moved[7] > 3 * moved[:7].max()


def test_recordings_go_on(truth: RoomsTruthEnv, tmp_path: Path) -> None:
    env = LogToRerun(truth, tmp_path / "drive.rrd", codec="jpeg")
    env.reset(seed=1)
    taken = call(env, "get_state")
    env.step(AHEAD)
    env.log.flush()
    size = (tmp_path / "drive.rrd").stat().st_size
    call(env, "set_state", taken)
    env.step(TURN)
    env.close()
    assert (tmp_path / "drive.rrd").stat().st_size > size


def test_vector_stores_go_on_too(tiny_model: WorldModel, tmp_path: Path) -> None:
    env = StoreVectorEpisodes(RoomsTruthVectorEnv(2, tiny_model, task="drive", frames="all"), tmp_path / "store.zarr")
    env.reset(seed=1)
    taken = env.unwrapped.get_state()  # type: ignore[attr-defined]
    env.step(np.stack([AHEAD, TURN]))
    env.unwrapped.set_state(taken)  # type: ignore[attr-defined]
    env.step(np.stack([AHEAD, TURN]))
    env.close()
    assert [EpisodeStore(tmp_path / "store.zarr").read(row)["poses"].shape[0] for row in range(2)] == [16, 16]


def test_gymnasiums_wrappers_count_on(truth: RoomsTruthEnv) -> None:
    env = RecordEpisodeStatistics(TimeLimit(FrameStackObservation(truth, 2), 2))
    env.reset(seed=1)
    taken = call(env, "get_state")
    before = truth.observe()[0]
    seen = env.step(AHEAD)[0][-1]
    call(env, "set_state", taken)
    np.testing.assert_array_equal(truth.observe()[0], before)
    stack, _, _, truncated, info = env.step(TURN)
    np.testing.assert_array_equal(stack[0], seen)  # of the past that was left
    assert truncated and info["episode"]["l"] == 2 and info["truncation_reason"] == ""


def test_what_has_no_memory_is_as_without_it(truth: RoomsTruthEnv) -> None:
    env = gymnasium.wrappers.ClipAction(truth)
    env.reset(seed=1)
    taken = call(env, "get_state")
    first = env.step(AHEAD * 10)[0]
    call(env, "set_state", taken)
    np.testing.assert_array_equal(env.step(AHEAD * 10)[0], first)
    assert truth.fork(2).observe()[0].shape == (2, 32, 40, 3)
