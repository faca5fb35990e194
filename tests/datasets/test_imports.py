"""Datasets of other formats come into a store as they went out of one: equal actions, equal frames up to the codec."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from tests.datasets.made_up import INFO, add, as_stored, episode

from sanawm_env.datasets.exports.export import SIDECAR, check_extra, export
from sanawm_env.datasets.imports.load import FORMATS, load
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.verify import verify
from sanawm_env.datasets.video import Mp4Writer, read_frames
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import MissingExtraError, StorageError

SEEDS = range(4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    with EpisodeWriter(path, INFO, durable=False) as writer:
        for seed in SEEDS:
            add(writer, seed)
        writer.add(episode(1, 9, truth=False) | {"terminated": np.zeros(4, bool)}, seed=9)
    return path


@pytest.fixture(scope="module")
def datasets(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("datasets")
    for kind in FORMATS:
        try:
            export(store, kind, out / kind)
        except MissingExtraError:
            continue
    return {kind: out / kind for kind in FORMATS}


def dataset(datasets: dict[str, Path], kind: str) -> Path:
    try:
        check_extra(kind)
    except MissingExtraError as error:
        pytest.skip(str(error))
    return datasets[kind]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, float(np.mean((one.astype(float) - other) ** 2)))))


@pytest.mark.parametrize("kind", FORMATS)
def test_there_and_back(kind: str, store: Path, datasets: dict[str, Path], tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    told = load(dataset(datasets, kind), kind, tmp_path / "b.zarr", progress=lambda *counts: done.append(counts))
    assert (told.added, told.known) == (5, 0) and done == [(k + 1, 5) for k in range(5)]
    before, after = EpisodeStore(store), EpisodeStore(tmp_path / "b.zarr")
    assert after.info == before.info and not verify(tmp_path / "b.zarr").problems
    for index in range(5):
        one, other = before[index], after[index]
        for key in ("actions", "poses", "intrinsics", "terminated", "truncated", "valid", "start_poses"):
            assert one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]), key
        rewards = one["rewards"].astype(np.float32 if kind == "lerobot" else np.float64)
        assert np.array_equal(rewards, other["rewards"])
        assert psnr(one["frames"], other["frames"]) > 36 and psnr(one["start_frames"], other["start_frames"]) > 36
        first, second = before.describe(index), after.describe(index)
        for key in ("seed", "room", "reason", "seconds", "steps", "task", "synthetic", "licences"):
            assert first[key] == second[key], key
        assert second["extra"] == {**first["extra"], "imported_from": kind} and first["id"] != second["id"]
    again = load(dataset(datasets, kind), kind, tmp_path / "b.zarr")
    assert again.text() == "0 episodes added; 5 were there already" and len(EpisodeStore(tmp_path / "b.zarr")) == 5


@pytest.mark.parametrize("kind", FORMATS)
def test_goes_on_where_it_was_cut_off(kind: str, datasets: dict[str, Path], tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(dataset(datasets, kind), kind, tmp_path / "b.zarr", progress=stop)
    assert len(EpisodeStore(tmp_path / "b.zarr")) == 2
    assert load(datasets[kind], kind, tmp_path / "b.zarr").text() == "3 episodes added; 2 were there already"
    assert EpisodeStore(tmp_path / "b.zarr").meta["episode_seeds"].tolist() == [0, 1, 2, 3, 9]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_dataset_of_another_origin(kind: str, datasets: dict[str, Path], tmp_path: Path) -> None:
    """As other programs write them: without our file, without the frame that the last action led to."""
    shutil.copytree(dataset(datasets, kind), tmp_path / "theirs")
    (tmp_path / "theirs" / SIDECAR).unlink()
    shorter = kind != "mp4"
    if kind == "diffusion_policy":
        shutil.rmtree(tmp_path / "theirs/last")
        zarr.open_group(tmp_path / "theirs", mode="r+", zarr_format=2).attrs.put({})
        with pytest.raises(StorageError, match=r"how many frames a second it has; pass fps \(--fps\)"):
            load(tmp_path / "theirs", kind, tmp_path / "b.zarr")
        assert not (tmp_path / "b.zarr").exists()
    if kind == "mp4":
        for path in (tmp_path / "theirs").glob("*.json"):
            told = json.loads(path.read_text())
            kept = {"poses": told["poses"], "actions": told["actions"], "intrinsics": told["intrinsics"][0]}
            path.write_text(json.dumps(kept))
    load(tmp_path / "theirs", kind, tmp_path / "b.zarr", fps=10, licences=["CC0-1.0"])
    read = EpisodeStore(tmp_path / "b.zarr")
    assert read.info.frames_per_step == 1 and read.info.fps == 10
    names = ("v", "w") if kind == "lerobot" else ("action_0", "action_1")
    assert read.info.action_columns == names
    for index, seed in enumerate(SEEDS):
        arrays = as_stored(episode(1 + seed % 3, seed, truth=False))
        count = int(arrays["valid"].sum()) - shorter
        got = read[index]
        assert np.array_equal(got["actions"], arrays["actions"][:count])
        assert np.array_equal(got["poses"], arrays["poses"][:count])
        assert np.array_equal(got["start_poses"], arrays["start_poses"])
        assert psnr(got["frames"], arrays["frames"][:count]) > 36
        told = read.describe(index)
        assert told["licences"] == ["CC0-1.0"] and not told["synthetic"] and told["seed"] == -1


def test_the_frame_of_an_action_is_the_one_it_led_to(tmp_path: Path) -> None:
    """Frame k is a grey of 20 k and action k is k: in a store, row k holds action k and the picture of k + 1."""
    (tmp_path / "film").mkdir()
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, 0, 3] = np.arange(4)
    told = {"fps": 5, "poses": poses.tolist(), "intrinsics": [20, 20, 15.5, 11.5], "actions": [[0], [1], [2]]}
    (tmp_path / "film/one.json").write_text(json.dumps(told))
    with Mp4Writer(tmp_path / "film/one.mp4", 5, (24, 32)) as video:
        for k in range(4):
            video.add(np.full((24, 32, 3), 20 * k, np.uint8))
    load(tmp_path / "film", "mp4", tmp_path / "b.zarr")
    read = EpisodeStore(tmp_path / "b.zarr")[0]
    assert read["actions"].ravel().tolist() == [0, 1, 2] and read["poses"][:, 0, 3].tolist() == [1, 2, 3]
    assert np.abs(read["frames"].mean((1, 2, 3)) - [20, 40, 60]).max() < 2 and read["start_frames"].mean() < 2
    for kind in FORMATS:
        try:
            export(tmp_path / "b.zarr", kind, tmp_path / kind)
        except MissingExtraError:
            continue
        load(tmp_path / kind, kind, tmp_path / f"{kind}.zarr")
        again = EpisodeStore(tmp_path / f"{kind}.zarr")[0]
        assert np.abs(again["frames"].mean((1, 2, 3)) - [20, 40, 60]).max() < 3, kind
        assert np.array_equal(again["actions"], read["actions"]) and np.array_equal(again["poses"], read["poses"])


def test_the_same_path_through_another_place_is_another_episode(datasets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(dataset(datasets, "mp4"), tmp_path / "other")
    for path in (tmp_path / "other").glob("*.mp4"):
        shown = list(read_frames(path))
        with Mp4Writer(path, 10, shown[0].shape[:2]) as video:
            for picture in shown:
                video.add(255 - picture)
    for folder, added in ((datasets["mp4"], 5), (tmp_path / "other", 5), (tmp_path / "other", 0)):
        assert load(folder, "mp4", tmp_path / "b.zarr").added == added


def test_what_cannot_be_imported(datasets: dict[str, Path], tmp_path: Path) -> None:
    film = tmp_path / "film"
    shutil.copytree(dataset(datasets, "mp4"), film)
    with pytest.raises(StorageError, match="is no replay buffer of Zarr format 2"):
        load(film, "diffusion_policy", tmp_path / "b.zarr")
    with pytest.raises(StorageError, match="is not a folder"):
        load(tmp_path / "none", "mp4", tmp_path / "b.zarr")
    path = film / "episode-000002.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "poses": (2 * np.array(told["poses"])).tolist()}))
    with pytest.raises(StorageError, match="episode 2: poses is not rigid"):
        load(film, "mp4", tmp_path / "b.zarr")
    assert len(EpisodeStore(tmp_path / "b.zarr")) == 2, "what came before is kept"
    path.write_text(json.dumps({key: told[key] for key in ("actions", "fps")}))
    with pytest.raises(StorageError, match=r"lacks \['poses', 'intrinsics'\]; examples/formats.md"):
        load(film, "mp4", tmp_path / "b.zarr")
    path.write_text(json.dumps(told))
    shutil.copy(film / "episode-000000.mp4", path.with_suffix(".mp4"))
    with pytest.raises(StorageError, match="has 3 pictures, expected the 11 that its 10 actions lead to"):
        load(film, "mp4", tmp_path / "b.zarr")
    path.with_suffix(".mp4").write_bytes(b"no film")
    with pytest.raises(StorageError, match="cannot be read as a video"):
        load(film, "mp4", tmp_path / "b.zarr")
    (film / SIDECAR).write_text('{"schema": "sanawm-export"}')
    with pytest.raises(StorageError, match=r"sanawm.json is damaged"):
        load(film, "mp4", tmp_path / "b.zarr")


def test_lerobot_without_poses_is_refused(datasets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(dataset(datasets, "lerobot"), tmp_path / "theirs")
    path = tmp_path / "theirs/meta/info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(StorageError, match=r"is of version v2\.1, expected v3"):
        load(tmp_path / "theirs", "lerobot", tmp_path / "b.zarr")
    del info["features"]["camera.pose"]
    path.write_text(json.dumps(info))
    with pytest.raises(StorageError, match=r"lacks \['camera.pose'\]; a store needs poses"):
        load(tmp_path / "theirs", "lerobot", tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()


def test_a_video_is_read_from_any_frame_on(tmp_path: Path) -> None:
    with Mp4Writer(tmp_path / "a.mp4", 10, (33, 47)) as video:
        for k in range(30):
            video.add(np.full((33, 47, 3), 8 * k, np.uint8), keyframe=k % 10 == 0)
    assert len(list(read_frames(tmp_path / "a.mp4"))) == 30
    for first in (1, 10, 17):
        shown = np.stack(list(read_frames(tmp_path / "a.mp4", (first - 0.5) / 10)))
        assert shown.shape == (30 - first, 33, 47, 3), "odd sides are kept"
        assert np.abs(shown.mean((1, 2, 3)) - 8 * np.arange(first, 30)).max() < 3
    with pytest.raises(StorageError, match="expected uint8"), Mp4Writer(tmp_path / "b.mp4", 10, (33, 47)) as video:
        video.add(np.zeros((33, 48, 3), np.uint8))
