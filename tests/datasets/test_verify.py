from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from tests.datasets.made_up import INFO, add, as_stored, episode, same

from sanawm_env.datasets import files
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.verify import Repaired, repair, verify
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import StorageError

COUNT = 4


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "a.zarr"
    with EpisodeWriter(path, INFO) as writer:
        for seed in range(COUNT):
            add(writer, seed, truth=True)
    return path


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "a.zarr"))


def cut_off(path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    """Leaves a store as a writer does that is killed after so many files of a commit are in their place."""
    image, left = path.with_name("killed.zarr"), [moves]

    def stop(source: Path, target: Path) -> None:
        if not left[0]:
            shutil.copytree(path, image)
            raise KeyboardInterrupt
        left[0] -= 1
        source.replace(target)

    with EpisodeWriter(path) as writer, monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "move", stop)
        add(writer, COUNT + 1, truth=True)
    shutil.rmtree(path)
    image.rename(path)


def test_a_sound_store(store: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(store, lambda done, total: seen.append((done, total)))
    assert report.problems == () and report.foreign == ()
    assert (report.episodes, report.frames, report.unreferenced) == (COUNT, 28, 0)
    assert seen[-1][0] == seen[-1][1] and report.bytes > 10_000
    assert repair(store) == Repaired(files=0, bytes=0, rows={})
    with EpisodeWriter(store), pytest.raises(StorageError, match="has a writer already"):
        verify(store)  # reading is no matter
        repair(store)


def test_finds_a_flipped_bit_in_every_file(store: Path) -> None:
    every = [path for path in store.rglob("*") if path.is_file() and path.name != "writer.lock"]
    rng = np.random.default_rng(0)
    kinds: dict[Path, Path] = {}
    for path in every:
        kinds.setdefault(path.parent / path.suffix, path)  # a data file and the metadata of each array and group
    assert len(kinds) > 45
    for path in kinds.values():
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        report = verify(store)
        assert report.problems, f"{path} was flipped and nobody saw it"
        path.write_bytes(content)
    assert not verify(store).problems


def test_finds_a_missing_file(store: Path) -> None:
    (store / EpisodeStore(store).files("truth_depth", 2)[1]).unlink()
    (store / "start/frames/c.3.0.0.0").unlink()
    (store / "data/rewards/c.0").unlink()
    assert verify(store).problems == (
        "data/rewards: file 0 is missing; it belongs to episodes 0 to 3",
        "data/truth_depth: file 4 is missing; it belongs to episode 2",
        "start/frames: file 3 is missing; it belongs to episode 3",
    )
    shutil.rmtree(store / "data/poses")
    assert "array data/poses cannot be opened" in verify(store).problems[-1]
    with pytest.raises(StorageError, match="not an episode store"):
        verify(store / "data/poses")


@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        ("meta/episode_ends", 1, 13, "does not grow by whole steps of 4 rows"),
        ("meta/episode_ends", 1, 4, "does not grow"),
        ("meta/episode_ends", 3, 400, "has 28 rows, not 400"),
        ("meta/episode_ends", 1, 8, "valid turns true again"),
        ("meta/episode_ids", 1, 0, "holds an id twice"),
        ("meta/episode_sources", 1, 9, "reaches from 0 to 9, allowed is 0 to 2"),
        ("meta/episode_reasons", 1, 77, "allowed is 0 to 7"),
        ("data/poses", 5, 2.0, "data/poses: file 0 is out of range .*not rigid"),
        ("data/rewards", 5, np.nan, "data/rewards: file 0 holds NaN"),
        ("data/intrinsics", 5, 0, "focal length"),
    ],
)
def test_finds_wrong_values_with_right_checksums(store: Path, name: str, at: int, value: float, message: str) -> None:
    array = zarr.open_array(store / name, mode="r+")
    array[at] = value
    report = verify(store)
    assert any(re.search(message, problem) for problem in report.problems), report.problems


def test_metadata_that_another_tool_changed(store: Path) -> None:
    file = store / "data/poses/zarr.json"
    metadata = json.loads(file.read_bytes())
    metadata["attributes"]["unit"] = "mm"
    file.write_text(json.dumps(metadata))
    assert any("data/poses/zarr.json is not what was written" in problem for problem in verify(store).problems)


@pytest.mark.parametrize("moves", [0, 3, 12, 25, 40])
def test_repair_drops_what_a_killed_writer_left(store: Path, moves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(store, monkeypatch, moves)
    (store / "data/frames/notes.txt").write_text("mine")
    report = verify(store)
    assert report.problems == () and report.episodes == COUNT, "what was cut off is no fault"
    assert report.unreferenced > 0 and report.foreign == ("data/frames/notes.txt",)
    done = repair(store)
    assert (done.files, done.bytes) == (report.unreferenced, report.unreferenced_bytes)
    assert bool(done.rows) == (moves == 40)
    again = verify(store)
    assert again.problems == () and again.unreferenced == 0
    assert (store / "data/frames/notes.txt").exists()
    opened = EpisodeStore(store)
    rows = {key: array.shape[0] for key, array in opened.arrays.items()}
    assert {key: count for key, count in rows.items() if count not in (COUNT, 28)} == {"states": 0, "state_steps": 0}
    for seed in range(COUNT):
        assert same(opened.read(seed, valid_only=False), as_stored(episode(1 + seed % 3, seed)))


def test_repair_of_a_first_episode_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EpisodeWriter(tmp_path / "a.zarr", INFO).close()
    cut_off(tmp_path / "a.zarr", monkeypatch, 40)
    report = verify(tmp_path / "a.zarr")
    assert report.problems == () and report.episodes == 0 and report.unreferenced > 10
    assert repair(tmp_path / "a.zarr").files == report.unreferenced
    assert list((tmp_path / "a.zarr/data").iterdir()) == [tmp_path / "a.zarr/data/zarr.json"]
