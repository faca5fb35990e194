from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from sanawm_env.datasets import schema
from sanawm_env.datasets.atomic import appearing
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.schema import StoreInfo
from sanawm_env.datasets.writer import open_writer
from sanawm_env.errors import StorageError

INFO = StoreInfo(
    fps=10.0,
    action_map="diff_drive",
    action_columns=("v", "w"),
    action_units=("m/s", "rad/s"),
    bundle_sha256="ab" * 32,
    package_version="0.0.0",
    extra={"task": "free"},
)


def episode(length: int, seed: int = 0, *, truth: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, 24 * 32).reshape(24, 32, 1)
    frames = np.stack([(ramp * (0.5 + 0.5 * t / length) * [1.0, 0.8, 0.6]).astype(np.uint8) for t in range(length)])
    arrays = {
        "frames": frames,
        "poses": np.tile(np.eye(4), (length, 1, 1)) + rng.normal(size=(length, 4, 4)),
        "actions": rng.normal(size=(length, 2)).astype(np.float32),
        "intrinsics": np.tile(np.float32([20, 20, 15.5, 11.5]), (length, 1)),
        "valid": np.ones(length, dtype=bool),
    }
    if truth:
        arrays["truth_frames"] = frames
        arrays["truth_depth"] = rng.uniform(0.2, 5, size=(length, 24, 32)).astype(np.float32)
    return arrays


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def test_round_trip_of_several_episodes(tmp_path: Path) -> None:
    written = [episode(70), episode(5, seed=1), episode(1, seed=2)]
    with open_writer(tmp_path / "a.zarr", INFO) as writer:
        for i, arrays in enumerate(written):
            assert writer.add(arrays, seed=10 + i) == i
    store = EpisodeStore(tmp_path / "a.zarr")
    assert len(store) == 3
    assert store.ends.tolist() == [70, 75, 76]
    assert store.seeds.tolist() == [10, 11, 12]
    assert store.attributes["fps"] == 10.0 and store.attributes["action_columns"] == ["v", "w"]
    assert store.attributes["task"] == "free"
    for i, arrays in enumerate(written):
        for name, values in store[i].items():
            assert values.dtype == arrays[name].dtype
            if schema.BY_NAME[name].codec == "jpeg":
                assert psnr(arrays[name], values) > 38
            else:
                np.testing.assert_array_equal(values, arrays[name])
    with pytest.raises(IndexError):
        store[3]
    assert not list(tmp_path.glob(".*"))


def test_any_zarr_reader_finds_the_picture_codec(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.zarr", INFO) as writer:
        writer.add(episode(3), seed=0)
    code = (
        "import sys, zarr; frames = zarr.open_group(sys.argv[1], mode='r')['data/frames'][1];"
        "assert frames.shape == (24, 32, 3), frames.shape; print(int(frames.mean()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.zarr")], capture_output=True, text=True)
    if "sanawm.jpeg" in done.stderr:
        pytest.fail("codec not found: the package is not installed in this environment; run `make setup`")
    assert done.returncode == 0, done.stderr


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "a.zarr", INFO) as writer:
        writer.add(episode(3), seed=0)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(StorageError, match="No space left"), appearing(target) as draft:
        draft.write_text("new")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_one_error(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from test_store import INFO, episode, open_writer
from sanawm_env.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    with open_writer(sys.argv[1], INFO) as writer:
        writer.add(episode(20), seed=0)
except StorageError as error:
    print(error)
"""
    target = tmp_path / "a.zarr"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert "cannot write" in done.stdout and "a.zarr" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_overwrite_unless_told(tmp_path: Path) -> None:
    for seed in (1, 2):
        with open_writer(tmp_path / "a.zarr", INFO, overwrite=seed == 2) as writer:
            writer.add(episode(2), seed=seed)
    assert EpisodeStore(tmp_path / "a.zarr").seeds.tolist() == [2]
    with pytest.raises(StorageError, match="exists"), open_writer(tmp_path / "a.zarr", INFO):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poses": np.zeros((3, 4, 4), np.float32)}, "array poses is float32"),
        ({"poses": np.zeros((2, 4, 4))}, "array poses has length 2 on axis time, expected 3"),
        ({"actions": np.zeros((3, 3), np.float32)}, "array actions has length 3 on axis action, expected 2"),
        ({"wheels": np.zeros((3, 2))}, "unknown arrays \\['wheels'\\]"),
    ],
)
def test_rejects_what_does_not_fit_the_table(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(StorageError, match=message), open_writer(tmp_path / "a.zarr", INFO) as writer:
        writer.add({**episode(3), **change}, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_rejects_an_episode_unlike_the_first(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="episode has arrays"), open_writer(tmp_path / "a.zarr", INFO) as writer:
        writer.add(episode(3), seed=0)
        writer.add(episode(3, truth=False), seed=0)


def test_reader_rejects_other_folders_and_newer_versions(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not an episode store"):
        EpisodeStore(tmp_path / "none.zarr")
    group = zarr.create_group(store=tmp_path / "b.zarr", zarr_format=3)
    with pytest.raises(StorageError, match="has schema None"):
        EpisodeStore(tmp_path / "b.zarr")
    group.attrs.update({"schema": schema.NAME, "version": schema.VERSION + 1})
    with pytest.raises(StorageError, match="upgrade"):
        EpisodeStore(tmp_path / "b.zarr")
    group.attrs.update({"version": schema.VERSION})
    with pytest.raises(StorageError, match="did not finish"):
        EpisodeStore(tmp_path / "b.zarr")
