"""Our own reader of shards gives what Zarr gives, frame by frame, and never what is not there."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from tests.datasets.made_up import FRAMES, INFO, add, episode

from sanawm_env.datasets import place
from sanawm_env.datasets.layout import METADATA, sealed
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.recent import Recent, Threads
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import ConfigError, StorageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        for seed in range(4):
            add(writer, seed)
    return tmp_path / "a.zarr"


@pytest.mark.parametrize(
    ("codec", "quality"), [("jpeg", 95), ("webp", 95), ("webp", 0), ("jpegxl", 0), ("av1", 95), ("av1", 0)]
)
def test_every_row_of_every_array_is_what_zarr_reads(codec: str, quality: int, tmp_path: Path) -> None:
    info = StoreInfo(
        fps=10, frames_per_step=FRAMES, action_columns=("v", "w"), action_units=("", ""), picture_codec=codec,
        picture_quality=quality,
    )  # fmt: skip
    latents = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 4)).astype(np.float32)
    with EpisodeWriter(tmp_path / "a.zarr", info) as writer:
        for seed in range(2):
            given = episode(3, seed) | {"latents": latents + seed, "start_latents": latents[0, 0] - seed}
            with writer.begin({key: rows for key, rows in given.items() if key.startswith("start_")}, seed=seed) as one:
                one.append({key: rows for key, rows in given.items() if not key.startswith("start_")})
                one.keep_state(b"state")
                one.commit()
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    for threads in (1, 3):
        store = EpisodeStore(tmp_path / "a.zarr", threads=threads)
        assert len(store.arrays) == 19
        for key, array in store.tables.items():
            rows = np.random.default_rng(1).permutation(store.rows_of(array))
            read = store.rows_at(key, rows)
            assert read.dtype == np.dtype(array.dtype)
            for row, seen in zip(rows, read):
                np.testing.assert_array_equal(seen, group[array.name][int(row)], err_msg=f"{key} {row}")
            np.testing.assert_array_equal(store.arrays[key][len(rows) - 1], store.arrays[key][-1:][0])


def test_instants_start_with_the_picture_of_reset(path: Path) -> None:
    store = EpisodeStore(path)
    for index in range(len(store)):
        arrays = store.read(index, valid_only=False)
        for key in ("frames", "poses"):
            expected = np.concatenate([arrays[f"start_{key}"][None], arrays[key]])
            order = np.random.default_rng(index).permutation(len(expected))
            np.testing.assert_array_equal(store.at(key, [index] * len(order), order), expected[order])
    with pytest.raises(IndexError, match="instants reach from 0 to 5"):
        store.at("frames", [0, 0], [0, 5])
    with pytest.raises(StorageError, match="has no array truth_depth; it has"):
        store.at("truth_depth", [0], [1])


def test_a_shard_index_is_read_once_and_then_a_range_a_frame(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[place.Part] = []
    read = place.Folder.read_parts

    def noted(self: place.Folder, parts: list[place.Part]) -> list[bytes | None]:
        asked.extend(parts)
        return read(self, parts)

    store = EpisodeStore(path, threads=1)
    monkeypatch.setattr(place.Folder, "read_parts", noted)
    first = store.rows_at("frames", [5, 2, 5])
    assert [part.start < 0 for part in asked] == [True, True, False, False]
    asked.clear()
    np.testing.assert_array_equal(store.rows_at("frames", [2]), first[1:2])
    np.testing.assert_array_equal(first[0], first[2])
    size = (path / store.files("frames", 0)[0]).stat().st_size
    assert len(asked) == 1 and 0 < (asked[0].length or 0) < size / 3


def test_damage_is_found_in_index_and_picture(path: Path) -> None:
    for place_, what in ((-3, "damaged"), (30, "damaged"), (None, "missing")):
        file = path / EpisodeStore(path).files("frames", 1)[1]
        whole = file.read_bytes()
        if place_ is None:
            file.unlink()
        else:
            file.write_bytes(whole[:place_] + bytes([whole[place_] ^ 1]) + whole[place_ + 1 :])
        store = EpisodeStore(path)
        rows = store.rows("frames", 1)
        with pytest.raises(StorageError, match=f"data/frames/c.2.0.0.0 is {what}.*sanawm verify"):
            store.rows_at("frames", range(rows.start, rows.stop))
        assert len(store.rows_at("frames", range(rows.start))) == FRAMES
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data/frames", {"data_type": "int8"}, "data/frames has dtype int8, the table says uint8"),
        ("data/actions", {"codecs": [{"name": "bytes"}]}, r"has codecs \['bytes'\], the table says"),
        ("data/poses", {"chunk_grid": {"configuration": {"chunk_shape": [9, 4, 4]}}}, r"has chunk \(9, 4, 4\)"),
        ("data/valid", {"codecs": 3}, "cannot be read"),
    ],
)
def test_an_array_that_is_not_as_the_table_says_is_refused(
    path: Path, name: str, change: dict[str, object], message: str
) -> None:
    file = path / name / METADATA
    file.write_bytes(sealed({**json.loads(file.read_text()), **change}))
    with pytest.raises(StorageError, match=message):
        EpisodeStore(path)


def read_some(store: EpisodeStore, found: multiprocessing.Queue) -> None:
    found.put((store.rows_at("frames", [7, 1]), store.describe(2), store._threads.count))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_goes_to_other_processes(path: Path, method: str) -> None:
    store = EpisodeStore(path, threads=3 if method == "spawn" else None)
    expected = store.rows_at("frames", [7, 1])
    context = multiprocessing.get_context(method)
    found = context.Queue()
    process = context.Process(target=read_some, args=(store, found))
    process.start()
    frames, told, threads = found.get(timeout=60)
    process.join()
    np.testing.assert_array_equal(frames, expected)
    assert told == store.describe(2) and threads == (3 if method == "spawn" else 1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).rows_at("frames", [7, 1]), expected)


def test_what_is_kept_is_bounded() -> None:
    kept: Recent[int, str] = Recent(2)
    for key in range(3):
        kept.put(key, str(key))
        kept.get(1)
    assert [kept.get(key) for key in range(3)] == [None, "1", "2"]
    with pytest.raises(ConfigError, match="threads is 0"):
        Threads(0)


def test_threads_share_the_work_and_raise_what_failed() -> None:
    done = np.zeros(10, int)

    def work(start: int, stop: int) -> None:
        done[start:stop] += 1
        if start <= 4 < stop:
            raise StorageError("the fifth")

    with pytest.raises(StorageError, match="the fifth"):
        Threads(3).share(work, 10)
    assert (done == 1).all()
