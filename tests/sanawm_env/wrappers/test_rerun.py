"""Recordings are read back by Rerun's own reader, and their videos decoded."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import imagecodecs
import numpy as np
import pytest
import rerun as rr
from rerun.chunk import RrdReader

from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ConfigError, SceneError, StorageError
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel
from sanawm_env.wrappers import rollouts
from sanawm_env.wrappers.rerun_layout import Contents
from sanawm_env.wrappers.rerun_log import LogToRerun, LogVectorToRerun
from sanawm_env.wrappers.rerun_recording import WARN, Event, Recording, Rollout
from sanawm_env.wrappers.rerun_sink import GrowingFile, Viewer, WholeFile, check_screen

FPS, CHUNK = 10.0, 8


class Read:
    """A recording as Rerun's reader gives it."""

    def __init__(self, path: Path) -> None:
        done = subprocess.run([sys.executable, "-m", "rerun", "rrd", "verify", str(path)], capture_output=True)
        assert done.returncode == 0, done.stderr
        reader = RrdReader(path)
        assert len(reader.recordings()) == len(reader.blueprints()) == 1
        self.chunks = reader.stream().to_chunks()
        self.entities = {chunk.entity_path for chunk in self.chunks}

    def column(self, entity: str, component: str) -> tuple[list[int], list[Any]]:
        """Frame numbers and values of a component, in order; frame -1 for what is there all the time."""
        found = []
        for chunk in self.chunks:
            batch = chunk.to_record_batch()
            names = [name for name in batch.schema.names if name.endswith(component)]
            if chunk.entity_path == entity and names:
                rows = len(batch) if chunk.is_static else batch.column("frame").to_pylist()
                frames = [-1] * len(batch) if chunk.is_static else rows
                found += list(zip(frames, batch.column(names[0]).to_pylist()))
        found = sorted(((frame, value) for frame, value in found if value is not None), key=lambda pair: pair[0])
        return [frame for frame, _ in found], [value for _, value in found]

    def plot(self, name: str, track: str = "world") -> dict[str, dict[int, float]]:
        """Series of a plot by name, values by frame."""
        entity = f"/plots/{rr.escape_entity_path_part(name)}/{track}"
        _, names = self.column(entity, "SeriesLines:names")
        frames, values = self.column(entity, "Scalars:scalars")
        return {series: {f: v[i] for f, v in zip(frames, values)} for i, series in enumerate(names[0])}

    def seconds(self, entity: str) -> list[float]:
        """Values of the time line of an entity, in order."""
        batches = [chunk.to_record_batch() for chunk in self.chunks if chunk.entity_path == entity]
        times = [b.column("world_time").cast("int64").to_pylist() for b in batches if "world_time" in b.schema.names]
        return sorted(time / 1e9 for part in times for time in part)

    def video(self, entity: str) -> tuple[list[int], list[bool], np.ndarray]:
        """Frame numbers, keyframe marks and the decoded pictures of an AV1 stream."""
        frames, samples = self.column(entity, "VideoStream:sample")
        _, marks = self.column(entity, "VideoStream:is_keyframe")
        decoder = av.CodecContext.create("libdav1d", "r")
        packets = [av.Packet(bytes(sample[0])) for sample in samples]
        pictures = [shown for packet in packets for shown in decoder.decode(packet)] + list(decoder.decode(None))
        return frames, [mark[0] for mark in marks], np.stack([p.to_ndarray(format="rgb24") for p in pictures])


def rollout(frames: int = 17, brighter: int = 0) -> Rollout:
    y, x = np.mgrid[:64, :80]
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 2, 3] = np.linspace(0, 1, frames)
    return Rollout(
        poses=poses,
        intrinsics=np.array([50.0, 50.0, 39.5, 31.5]),
        frames=np.stack([np.stack([x + t, y + t, x + y + brighter], -1) for t in range(frames)]).astype(np.uint8),
        plots={"reward": {"reward": np.arange(frames - 1.0)}},
        events=[Event(row=3, text="hit", level=WARN)],
    )


def near(pictures: np.ndarray, expected: np.ndarray) -> bool:
    """Whether their brightness is the same picture by picture; a codec takes most of the colour out of noise."""
    grey = [frames.mean(axis=-1).reshape(len(frames), -1) for frames in (pictures, expected)]
    return len(pictures) == len(expected) and all(np.corrcoef(a, b)[0, 1] > 0.6 for a, b in zip(*grey))


def test_two_rollouts_and_their_difference_come_back(tmp_path: Path) -> None:
    first, second = rollout(17), rollout(9, brighter=10)
    tracks = rollouts.compare(first, second, ("dream", "truth"))
    points = {"walls": (np.ones((5, 3)), np.zeros((5, 3), np.uint8))}
    finished = rollouts.Finished(tracks=tracks, fps=FPS, frames_per_chunk=CHUNK, text="how it was made")
    rollouts.record(WholeFile(tmp_path / "a.rrd"), finished, points)
    assert [path.name for path in tmp_path.iterdir()] == ["a.rrd"]
    read = Read(tmp_path / "a.rrd")
    frames, keyframes, pictures = read.video("/world/dream/camera/image")
    assert frames == list(range(17)) and near(pictures, first.frames)
    assert np.flatnonzero(keyframes).tolist() == [0, 1, 9], "the start and every chunk"
    assert read.seconds("/world/dream/camera")[-1] == pytest.approx(1.6)
    apart, _, difference = read.video(f"/video/{rr.escape_entity_path_part(rollouts.DIFFERENCE)}")
    assert apart == list(range(9)) and 3 < difference.mean() < 30
    _, moved = read.column("/world/truth/camera", "Transform3D:translation")
    np.testing.assert_allclose([row[0] for row in moved], second.poses[:, :3, 3], atol=1e-6)
    psnr = read.plot("agreement", "dream")["PSNR (dB), dream"]
    assert psnr[0] == pytest.approx(10 * np.log10(255**2 / (100 / 3)), abs=0.01) and np.isnan(psnr[16])
    assert read.plot("reward", "dream")["reward, dream"] == {row + 1: float(row) for row in range(16)}
    assert read.column("/events/dream", "TextLog:text") == ([3], [["hit"]])
    assert len(read.column("/world/walls", "Points3D:positions")[1][0]) == 5


def test_what_cannot_be_compared_or_written_is_one_error(tmp_path: Path) -> None:
    import dataclasses

    first = rollout(3)
    small = dataclasses.replace(first, frames=first.frames[:, :32])
    with pytest.raises(ConfigError, match="pictures of one size"):
        rollouts.compare(first, small, ("a", "b"))
    with pytest.raises(ConfigError, match="different names"):
        rollouts.compare(first, first, ("a", "a"))
    (tmp_path / "file").write_text("in the way")
    finished = rollouts.Finished(tracks={"a": first}, fps=FPS, frames_per_chunk=CHUNK)
    with pytest.raises(StorageError, match="cannot write"):
        rollouts.record(WholeFile(tmp_path / "file" / "a.rrd"), finished)
    with pytest.raises(StorageError, match="cannot write"):
        GrowingFile(tmp_path / "file" / "a.rrd")
    with pytest.raises(SceneError, match="'h264', allowed is one of av1, jpeg"):
        Recording(WholeFile(tmp_path / "b.rrd"), Contents(), fps=FPS, frames_per_chunk=CHUNK, codec="h264")


def test_without_a_screen_the_viewer_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"no screen here.*--save FILE\.rrd.*--web-viewer"):
        Viewer()
    check_screen({"DISPLAY": ":1"})


def test_a_full_disk_is_one_error_and_nothing_hangs(tmp_path: Path) -> None:
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_rerun import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = GrowingFile({str(tmp_path / "a.rrd")!r})
recording = Recording(sink, Contents(), fps=FPS, frames_per_chunk=CHUNK)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    for _ in range(100):
        recording.append(rollout())
        recording.flush()
except StorageError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("refused: cannot write"), done.stderr
    assert (tmp_path / "a.rrd").stat().st_size == 20_000


def test_a_killed_process_leaves_a_file_that_opens(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_rerun import *
recording = Recording(GrowingFile({str(tmp_path / "a.rrd")!r}), Contents(), fps=FPS, frames_per_chunk=CHUNK)
for _ in range(3):
    recording.append(rollout())
    recording.flush()
import time; time.sleep(0.2)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    chunks = RrdReader(tmp_path / "a.rrd").stream().to_chunks()
    rows = [chunk.num_rows for chunk in chunks if chunk.entity_path == "/world/world/camera/image"]
    assert sum(rows) >= 51, "the codec and 3 x 17 frames"


@pytest.mark.parametrize("codec", ["av1", "jpeg"])
def test_the_wrapper_logs_everything_and_passes_it_through(tiny_model: WorldModel, tmp_path: Path, codec: str) -> None:
    env = LogToRerun(SanaWMEnv(tiny_model, task="drive", horizon=12), tmp_path / "a.rrd", codec=codec, truth=True)
    bare = SanaWMEnv(tiny_model, task="drive", horizon=12)
    shown = [env.reset(seed=5)[1]["frames"]]
    bare.reset(seed=5)
    for action in ([0.5, 0.2], [0.0, 3.0], [0.1, 0.0]):  # the second is clipped, the third comes after the end
        *_, info = env.step(action)
        *_, expected = bare.step(action)
        np.testing.assert_array_equal(info["frames"], expected["frames"])
        shown.append(info["frames"])
    env.reset(seed=6)
    env.close()
    env.close()
    read, frames, per_step = Read(tmp_path / "a.rrd"), np.concatenate(shown), env.unwrapped.frames_per_step
    count = 1 + 3 * per_step
    if codec == "av1":
        numbers, keyframes, pictures = read.video("/world/world/camera/image")
        assert np.flatnonzero(keyframes).tolist() == [0, *range(1, count, per_step), count]
    else:
        numbers, blobs = read.column("/world/world/camera/image", "EncodedImage:blob")
        pictures = np.stack([imagecodecs.jpeg_decode(bytes(blob[0])) for blob in blobs])
    assert numbers == list(range(count + 1)) and near(pictures[:count], frames)
    numbers, planes = read.column("/world/world/camera/depth", "EncodedDepthImage:blob")
    assert numbers == list(range(count + 1))
    plane = imagecodecs.png_decode(bytes(planes[0][0]))
    assert plane.shape == frames.shape[1:3] and 500 < plane.mean() < 9000, "millimetres"
    check_plots(read, count, per_step)
    _, texts = read.column("/events/world", "TextLog:text")
    told = [text[0] for text in texts]
    assert told[0].startswith("episode 0: seed 5") and "truncated: horizon" in told
    assert sum("clipped" in text for text in told) == 1 and told[-1].startswith("episode 1: seed 6")


def check_plots(read: Read, count: int, per_step: int) -> None:
    actions = read.plot("actions")
    assert list(actions) == ["v (m/s)", "w (rad/s)"]
    assert actions["v (m/s)"][1] == pytest.approx(0.5) and actions["w (rad/s)"][count - per_step - 1] == 1.0
    turned = read.plot("command")["rotation (deg)"]
    assert turned[per_step] == pytest.approx(0, abs=1e-6)
    assert turned[count - 1] == pytest.approx(np.degrees(2 * per_step / 10 * 1.0), rel=0.01), "2 rad/s were cut off"
    last = [1 + step * per_step + per_step - 1 for step in range(3)]
    for plot in ("state norm", "camera state norm", "decay"):
        series = read.plot(plot)
        assert series and all(list(values) == last for values in series.values()), plot
    assert all(0 < value < 1 for values in read.plot("decay").values() for value in values.values())
    drift = read.plot("drift")
    assert drift["shift of means (std)"][last[0]] == 0 and drift["ratio of std"][last[0]] == pytest.approx(1)
    assert drift["shift of means (std)"][last[2]] > 0
    assert list(read.plot("fidelity")["PSNR (dB)"]) == list(range(count + 1))
    assert read.plot("sharpness")["of the first frame's"][0] == pytest.approx(1)
    assert all(value > 0 for value in read.plot("timing")["step or reset (s)"].values())


def test_state_norms_are_those_of_the_state(tiny_model: WorldModel, tmp_path: Path) -> None:
    env = LogToRerun(SanaWMEnv(tiny_model, task="drive"), tmp_path / "a.rrd", memory_every=2)
    env.reset(seed=1)
    env.step([0.1, 0.1])
    norms = {
        f"block {index:02d}": float(block["state"].norm())
        for index, block in enumerate(env.unwrapped.world.memory)
        if "state" in block
    }
    env.step([0.1, 0.1])
    env.close()
    read = Read(tmp_path / "a.rrd").plot("state norm")
    assert {name: list(values.values()) for name, values in read.items()} == {
        name: [pytest.approx(value, rel=1e-5)] for name, value in norms.items()
    }, "of the first of two steps"


def test_each_world_of_a_batch_has_its_recording(tiny_model: WorldModel, tmp_path: Path) -> None:
    def run(env: Any) -> np.ndarray:
        env.reset(seed=3)
        env.step([[0.2, 0.0], [0.0, 0.3]])
        env.reset(seed=9, options={"reset_mask": np.array([False, True])})
        *_, info = env.step([[0.2, 0.0], [0.0, 0.3]])
        env.close()
        return np.asarray(info["frames"])

    made = lambda: SanaWMVectorEnv(2, tiny_model, task="drive", frames="all")  # noqa: E731
    frames = run(LogVectorToRerun(made(), tmp_path / "both"))
    run(LogVectorToRerun(made(), tmp_path / "one", worlds=[1]))
    assert [path.name for path in sorted((tmp_path / "both").iterdir())] == ["world-000.rrd", "world-001.rrd"]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["world-001.rrd"]
    per_step, reads = frames.shape[1], [Read(path) for path in sorted((tmp_path / "both").iterdir())]
    for world, (read, count) in enumerate(zip(reads, (1 + 2 * per_step, 2 + 2 * per_step))):
        numbers, _, pictures = read.video("/world/world/camera/image")
        assert numbers == list(range(count)) and near(pictures[-per_step:], frames[world])
    alone = Read(tmp_path / "one" / "world-001.rrd")
    assert alone.plot("decay") == reads[1].plot("decay") != reads[0].plot("decay")


def test_the_wrapper_says_what_it_needs(tiny_model: WorldModel, tmp_path: Path) -> None:
    env = LogToRerun(SanaWMEnv(tiny_model, task="drive", frames="last"), tmp_path / "a.rrd")
    env.reset(seed=0)
    env.step([0.0, 0.0])
    with pytest.raises(ConfigError, match="frames='all'"):
        env.step([0.0, 0.0])
    picture = np.zeros((32, 40, 3), np.uint8)
    env = LogToRerun(SanaWMEnv(tiny_model, task="drive"), tmp_path / "b.rrd", truth=True)
    env.reset(seed=0, options={"image": picture})
    with pytest.raises(ConfigError, match="start in a room"):
        env.step([0.0, 0.0])
    with pytest.raises(ConfigError, match=r"worlds holds 2, allowed are 0 \.\. 1"):
        LogVectorToRerun(SanaWMVectorEnv(2, tiny_model), tmp_path / "c", worlds=[2])
    with pytest.raises(ConfigError, match="memory_every is -1"):
        LogToRerun(SanaWMEnv(tiny_model), tmp_path / "d.rrd", memory_every=-1)
