"""Each export is opened by its own library, or checked against the layout that the library documents."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import zarr
from tests.datasets.lerobot_layout import LEROBOT_INFO, check_lerobot
from tests.datasets.made_up import FRAMES, HEIGHT, INFO, WIDTH, add, as_stored, episode, python

from sanawm_env.datasets.exports import export as exports
from sanawm_env.datasets.exports.export import FORMATS, SIDECAR, check_extra, export
from sanawm_env.datasets.provenance import Provenance
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.video import read_frames
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import ConfigError, MissingExtraError, StorageError

SEEDS = range(5)
CUT_OFF = 3  # the episode that was stopped while it still went on


def kept(seed: int, key: str) -> np.ndarray:
    """An array of made-up episode `seed` as a store gives it up to its end, the start first where there is one."""
    arrays = as_stored(episode(1 + seed % 3, seed, truth=False))
    rows = arrays[key][arrays["valid"]]
    return np.concatenate([arrays[f"start_{key}"][None], rows]) if f"start_{key}" in arrays else rows


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether pictures are the same up to a video codec."""
    return one.shape == other.shape and float(np.abs(one.astype(int) - other).mean()) < 3


def needs(kind: str) -> None:
    """Skips a test where the packages of a format are missing."""
    try:
        check_extra(kind)
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    with EpisodeWriter(path, INFO, durable=False) as writer:
        for seed in SEEDS:
            source = Provenance(task=f"task {seed % 2}", licences=("Apache-2.0",))
            arrays = episode(1 + seed % 3, seed, truth=False)
            if seed == CUT_OFF:
                arrays["terminated"] = np.zeros_like(arrays["terminated"])
            reason = "" if seed == CUT_OFF else "success"
            writer.add(arrays, seed=seed, reason=reason, provenance=source)
    return path


@pytest.fixture(scope="module")
def exported(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("exports")
    for kind in FORMATS:
        try:
            done = export(store, kind, out / kind)
        except MissingExtraError:
            continue
        assert (done.episodes, done.skipped) == (len(SEEDS), 0)
        assert done.frames == sum(len(kept(seed, "frames")) for seed in SEEDS)
    return {kind: out / kind for kind in FORMATS if (out / kind).exists()}


def dataset(exported: dict[str, Path], kind: str) -> Path:
    needs(kind)
    return exported[kind]


@pytest.mark.parametrize("kind", FORMATS)
def test_provenance_and_licences_go_with_it(kind: str, exported: dict[str, Path]) -> None:
    told = json.loads((dataset(exported, kind) / SIDECAR).read_text())
    assert told["licences"] == ["Apache-2.0"] and told["synthetic"] is True and told["format"] == kind
    assert [entry["seed"] for entry in told["episodes"]] == list(SEEDS)
    assert [told["sources"][entry["source"]]["task"] for entry in told["episodes"]] == [f"task {s % 2}" for s in SEEDS]
    for seed, entry in zip(SEEDS, told["episodes"]):
        assert np.array_equal(entry["last_pose"], kept(seed, "poses")[-1])


def test_mp4_and_json(exported: dict[str, Path]) -> None:
    folder = dataset(exported, "mp4")
    assert len(list(folder.iterdir())) == 2 * len(SEEDS) + 1
    for seed in SEEDS:
        told = json.loads((folder / f"episode-{seed:06d}.json").read_text())
        shown = np.stack(list(read_frames(folder / f"episode-{seed:06d}.mp4")))
        assert close(shown, kept(seed, "frames")) and len(shown) == len(told["actions"]) + 1
        for key in ("poses", "intrinsics", "actions", "rewards"):
            assert np.array_equal(np.array(told[key], kept(seed, key).dtype), kept(seed, key)), key
        assert (told["fps"], told["action_columns"], told["seed"]) == (10.0, ["v", "w"], seed)
        assert told["truncated"][-1] == (seed == CUT_OFF) and told["terminated"][-1] == (seed != CUT_OFF)
        assert told["provenance"]["licences"] == ["Apache-2.0"]


class ReplayBuffer:
    """What diffusion_policy's class of that name does on opening and on `get_episode`, with its checks."""

    def __init__(self, path: Path) -> None:
        root = zarr.open_group(path, mode="r", zarr_format=2)
        assert "data" in root and "meta" in root and "episode_ends" in root["meta"]
        self.data = dict(root["data"].arrays())
        self.ends = root["meta/episode_ends"][:]
        assert all(values.shape[0] == self.ends[-1] for values in self.data.values())
        for values in self.data.values():  # it chunks time alone
            assert values.chunks[1:] == values.shape[1:]

    def get_episode(self, index: int) -> dict[str, np.ndarray]:
        rows = slice(self.ends[index - 1] if index else 0, self.ends[index])
        return {key: values[rows] for key, values in self.data.items()}


def test_diffusion_policy_replay_buffer(exported: dict[str, Path]) -> None:
    folder = dataset(exported, "diffusion_policy")
    buffer = ReplayBuffer(folder)
    assert buffer.ends.dtype == np.int64 and np.diff(buffer.ends, prepend=0).tolist() == [2, 6, 10, 2, 6]
    for seed in SEEDS:
        rows, steps = buffer.get_episode(seed), len(kept(seed, "actions"))
        for key, ours in {"action": "actions", "reward": "rewards"}.items():
            assert np.array_equal(rows[key], kept(seed, ours))
        for key, ours in {"img": "frames", "camera_pose": "poses", "intrinsics": "intrinsics"}.items():
            assert rows[key].dtype == kept(seed, ours).dtype
            assert np.array_equal(rows[key], kept(seed, ours)[:steps]), "an action stands beside what it was taken at"
        assert np.array_equal(rows["state"].reshape(-1, 3, 4), kept(seed, "poses")[:steps, :3].astype(np.float32))
    # Format 2, read without any library: compressor of numcodecs, C order, keys with dots.
    told = json.loads((folder / "data/img/.zarray").read_text())
    assert told["zarr_format"] == 2 and told["order"] == "C" and told["compressor"]["id"] == "blosc"
    assert told["filters"] is None and told.get("dimension_separator", ".") == "." and told["dtype"] == "|u1"
    assert (folder / "data/img/0.0.0.0").exists() and not list(folder.rglob("zarr.json"))
    last = zarr.open_group(folder, mode="r", zarr_format=2)["last/img"][:]
    assert np.array_equal(last, [kept(seed, "frames")[-1] for seed in SEEDS])


def test_minari_reads_it(exported: dict[str, Path]) -> None:
    folder = dataset(exported, "minari")
    import minari

    read = minari.MinariDataset(folder / "data")
    assert (read.id, read.total_episodes, read.total_steps) == ("minari-v0", 5, 26)
    assert read.action_space.shape == (2,) and read.observation_space["image"].shape == (HEIGHT, WIDTH, 3)
    for seed, got in zip(SEEDS, read.iterate_episodes()):
        assert got.id == seed and len(got) == len(kept(seed, "actions"))
        assert np.array_equal(got.actions, kept(seed, "actions")) and np.array_equal(got.rewards, kept(seed, "rewards"))
        assert np.array_equal(got.observations["image"], kept(seed, "frames")), "too small for JPEG in Minari"
        assert np.array_equal(got.infos["pose"], kept(seed, "poses"))
        assert np.array_equal(got.observations["pose"][0], kept(seed, "poses")[0, :3].astype(np.float32).ravel())
        assert got.terminations[-1] == (seed != CUT_OFF) and got.truncations[-1] == (seed == CUT_OFF)
        assert not got.terminations[:-1].any() and not got.truncations[:-1].any()
    assert [told["seed"] for told in read.storage.get_episode_metadata(range(5))] == list(SEEDS)
    assert read.filter_episodes(lambda one: len(one) > 5).total_episodes == 3


def test_minari_decodes_larger_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("minari")
    import minari

    arrays = episode(2, truth=False)
    large = {
        key: values.repeat(2, -3).repeat(2, -2) if key.endswith("frames") else values for key, values in arrays.items()
    }
    with EpisodeWriter(tmp_path / "a.zarr", INFO, durable=False) as writer:
        writer.add(large, seed=0)
    export(tmp_path / "a.zarr", "minari", tmp_path / "rooms-v3")
    read = minari.MinariDataset(tmp_path / "rooms-v3/data")
    assert read.id == "rooms-v3" and read.storage.jpeg_encoding
    expected = np.concatenate([large["start_frames"][None], large["frames"][large["valid"]]])
    assert close(read[0].observations["image"], expected)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert minari.load_dataset("rooms-v3").total_steps == len(expected) - 1


def test_lerobot_layout(exported: dict[str, Path]) -> None:
    folder = dataset(exported, "lerobot")
    info, episodes = check_lerobot(folder)
    assert {key: info[key] for key in LEROBOT_INFO} == LEROBOT_INFO
    film = "observation.images.camera"
    assert info["features"][film]["info"]["video.codec"] == "h264"
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": ["v", "w"]}
    with av.open(str(folder / f"videos/{film}/chunk-000/file-000.mp4")) as container:
        decoded = {float(frame.time or 0): frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    times = np.array(list(decoded))
    assert len(times) == 26 + 5 and np.allclose(np.diff(times), 0.1) and times[0] == 0, "a last frame each"
    for seed, row in zip(SEEDS, episodes):
        actions = np.array([one["action"] for one in row["rows"]], np.float32)
        assert np.array_equal(actions, kept(seed, "actions"))
        poses = np.array([one["camera.pose"] for one in row["rows"]]).reshape(-1, 4, 4)
        assert np.array_equal(poses, kept(seed, "poses")[:-1]), "an action stands beside what it was taken at"
        asked = [row[f"videos/{film}/from_timestamp"] + one["timestamp"] for one in row["rows"]]
        near = [int(np.abs(times - time).argmin()) for time in asked]
        assert np.abs(times[near] - asked).max() < 1e-4, "the tolerance of LeRobot's reader"
        assert close(np.stack([decoded[times[k]] for k in near]), kept(seed, "frames")[:-1])
        assert [one["next.done"] for one in row["rows"]] == [False] * (row["length"] - 1) + [True]
        assert row["rows"][-1]["next.terminated"] == (seed != CUT_OFF)
    whole = np.concatenate([kept(seed, "actions") for seed in SEEDS]).astype(np.float64)
    told = json.loads((folder / "meta/stats.json").read_text())["action"]
    for name, values in {"mean": whole.mean(0), "std": whole.std(0), "min": whole.min(0), "max": whole.max(0)}.items():
        assert np.allclose(told[name], values), name
    assert told["count"] == [26]
    assert "license: apache-2.0" in (folder / "README.md").read_text()


def test_lerobot_begins_another_file_when_one_is_full(store: Path, tmp_path: Path) -> None:
    needs("lerobot")
    from sanawm_env.datasets.exports import lerobot

    source = exports.Source(EpisodeStore(store), "lerobot", None)
    lerobot.write(source, tmp_path, "small", data_megabytes=1e-3, video_megabytes=1e-3)  # type: ignore[arg-type]
    _, episodes = check_lerobot(tmp_path)
    assert len({row["data/file_index"] for row in episodes}) > 1
    film = "videos/observation.images.camera"
    assert len({row[f"{film}/file_index"] for row in episodes}) > 1
    firsts = [row[f"{film}/from_timestamp"] for row in episodes]
    assert firsts.count(0.0) == len({row[f"{film}/file_index"] for row in episodes})


def test_lerobot_wants_a_whole_frame_rate(tmp_path: Path) -> None:
    needs("lerobot")
    with EpisodeWriter(tmp_path / "a.zarr", dataclasses.replace(INFO, fps=7.5), durable=False) as writer:
        add(writer, 0)
    with pytest.raises(StorageError, match=r"7.5 frames/s, LeRobot takes whole numbers"):
        export(tmp_path / "a.zarr", "lerobot", tmp_path / "out")
    assert export(tmp_path / "a.zarr", "mp4", tmp_path / "out").episodes == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_that_fails_leaves_nothing(kind: str, store: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == len(SEEDS)
        if done == 3:
            raise KeyboardInterrupt

    needs(kind)
    with pytest.raises(KeyboardInterrupt):
        export(store, kind, tmp_path / "out", progress=stop)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(StorageError, match="exists already; remove it"):
        export(store, "mp4", tmp_path / "there")
    with pytest.raises(ConfigError, match="format is 'lerobt'; did you mean 'lerobot'"):
        export(store, "lerobt", tmp_path / "out")
    with EpisodeWriter(tmp_path / "empty.zarr", INFO):
        pass
    with pytest.raises(StorageError, match="has no episode to export"):
        export(tmp_path / "empty.zarr", "mp4", tmp_path / "out")
    monkeypatch.setitem(exports.NEEDS, "mp4", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r"pip install 'sanawm-env\[export\]'"):
        export(store, "mp4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_store_is_not_exported(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "a.zarr")
    (tmp_path / "a.zarr/data/frames/c.2.0.0.0").unlink()
    with pytest.raises(StorageError, match=r"c\.2\.0\.0\.0 is missing"):
        export(tmp_path / "a.zarr", "diffusion_policy", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_episodes_without_a_valid_frame_are_left_out(tmp_path: Path) -> None:
    arrays = episode(1, truth=False)
    broken = {**arrays, "valid": np.zeros(FRAMES, bool), "terminated": np.zeros(FRAMES, bool)}
    with EpisodeWriter(tmp_path / "a.zarr", INFO, durable=False) as writer:
        writer.add(broken, seed=0, reason="model_fault")
        with pytest.raises(StorageError, match="no valid frame to export"):
            export(tmp_path / "a.zarr", "mp4", tmp_path / "out")
        writer.add(arrays, seed=1)
    done = export(tmp_path / "a.zarr", "mp4", tmp_path / "out")
    assert (done.episodes, done.skipped) == (1, 1) and "1 without a valid frame left out" in done.text()


@pytest.mark.parametrize("kind", FORMATS)
def test_one_step_of_pictures_is_in_memory(
    kind: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(kind)
    whole, pieces, seen = EpisodeStore.stored, EpisodeStore.pieces, []

    def stored(self: EpisodeStore, key: str, index: int) -> np.ndarray:
        assert key != "frames", "a whole episode of pictures was read at once"
        return whole(self, key, index)

    def watched(self: EpisodeStore, key: str, index: int) -> Iterator[np.ndarray]:
        for piece in pieces(self, key, index):
            seen.append(len(piece))
            yield piece

    monkeypatch.setattr(EpisodeStore, "stored", stored)
    monkeypatch.setattr(EpisodeStore, "pieces", watched)
    export(store, kind, tmp_path / "out")
    assert max(seen) == FRAMES and sum(seen) == sum(FRAMES * (1 + seed % 3) for seed in SEEDS)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_is_one_error(kind: str, store: Path, tmp_path: Path) -> None:
    needs(kind)
    code = """
import importlib, resource, signal
from sanawm_env.datasets.exports.export import export
from sanawm_env.errors import StorageError
importlib.import_module(f"sanawm_env.datasets.exports.{sys.argv[3]}")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    export(sys.argv[1], sys.argv[3], sys.argv[2])
except StorageError as error:
    print(error)
"""
    done = python(code, store, tmp_path / "out", kind)
    assert "cannot write" in done.stdout and done.stdout.count("\n") == 1 and "nothing is left of it" in done.stdout
    assert not list(tmp_path.iterdir())
