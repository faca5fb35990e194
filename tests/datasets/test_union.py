from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.datasets.made_up import INFO, add, as_stored, episode, number, same

from sanawm_env.datasets import schema
from sanawm_env.datasets import union as joining
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.union import Union, merge
from sanawm_env.datasets.verify import verify
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import StorageError

SEEDS = ([0, 1, 2], [10, 11], [], [20, 21, 22, 23])


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "TOGETHER", 4)


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    for name, seeds in enumerate(SEEDS):
        with EpisodeWriter(tmp_path / f"{name}.zarr", INFO, durable=False) as writer:
            for seed in seeds:
                add(writer, seed, truth=True)
    return [tmp_path / f"{name}.zarr" for name in range(len(SEEDS))]


def encoded(store: EpisodeStore | Union, index: int) -> dict[str, list[bytes]]:
    """The files that were written once, byte for byte."""
    store, index = store.find(index) if isinstance(store, Union) else (store, index)
    keys = [key for key, table in store.tables.items() if table.written == "once"]
    return {key: [store.content(name) for name in store.files(key, index)] for key in keys}


def test_a_union_reads_several_stores_as_one(stores: list[Path]) -> None:
    union = Union(stores)
    order = [seed for seeds in SEEDS for seed in seeds]
    assert len(union) == len(order)
    for index, seed in enumerate(order):
        assert union.describe(index)["seed"] == seed
        assert same(union.read(index, valid_only=False), as_stored(episode(1 + seed % 3, seed)))
    assert same(union[-1], EpisodeStore(stores[3])[3])
    with pytest.raises(IndexError):
        union[9]


def test_a_merge_holds_the_same_episodes_in_the_same_bytes(stores: list[Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert merge(stores, tmp_path / "all.zarr", progress=lambda done, total: seen.append((done, total))) == 9
    merged, union = EpisodeStore(tmp_path / "all.zarr"), Union(stores)
    assert seen == [(4, 9), (8, 9), (9, 9)]
    assert verify(tmp_path / "all.zarr").problems == ()
    for index in range(9):
        assert merged.describe(index) == union.describe(index)
        assert same(merged.read(index, valid_only=False), union.read(index, valid_only=False))
        assert encoded(merged, index) == encoded(union, index)
    with EpisodeWriter(tmp_path / "all.zarr") as writer:
        assert add(writer, 30, truth=True) == 9 and number(21) in writer


def test_files_of_stores_that_are_given_up_are_not_copied(stores: list[Path], tmp_path: Path) -> None:
    merge(stores, tmp_path / "copied.zarr")
    merge(stores, tmp_path / "linked.zarr", spend=True)
    for path in stores:
        shutil.rmtree(path)
    copied, linked = EpisodeStore(tmp_path / "copied.zarr"), EpisodeStore(tmp_path / "linked.zarr")
    assert not verify(tmp_path / "linked.zarr").problems
    for index in range(9):
        assert linked.describe(index) == copied.describe(index) and encoded(linked, index) == encoded(copied, index)


def test_where_links_cannot_be_made_files_are_copied(
    stores: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(os, "link", refuse)
    assert merge(stores, tmp_path / "all.zarr", spend=True) == 9
    assert not verify(tmp_path / "all.zarr").problems
    assert (stores[0] / "data/frames/c.0.0.0.0").stat().st_nlink == 1


def test_a_merge_goes_on_where_it_was_cut_off(stores: list[Path], tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(stores, tmp_path / "all.zarr", progress=stop)
    assert len(EpisodeStore(tmp_path / "all.zarr")) == 4
    with pytest.raises(StorageError, match=f"episode {number(0).hex()} is in .*all.zarr and in .*0.zarr"):
        merge(stores, tmp_path / "all.zarr")
    assert merge(stores, tmp_path / "all.zarr", resume=True) == 5
    assert EpisodeStore(tmp_path / "all.zarr").meta["episode_seeds"].tolist() == [s for seeds in SEEDS for s in seeds]


@pytest.mark.parametrize("join", [lambda paths, target: Union(paths), merge])
def test_refuses_stores_that_differ(join: object, stores: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "all.zarr"
    other = tmp_path / "other.zarr"
    for info in (
        replace(INFO, fps=5.0),
        replace(INFO, action_units=("m/s", "deg/s")),
        replace(INFO, picture_quality=80),
    ):
        with EpisodeWriter(tmp_path / f"{hash(info)}.zarr", info) as writer:
            add(writer, 40, truth=True)
        with pytest.raises(StorageError, match="has attributes StoreInfo"):
            join([*stores, tmp_path / f"{hash(info)}.zarr"], target)  # type: ignore[operator]
    with EpisodeWriter(other, INFO) as writer:
        add(writer, 40, truth=False)
    with pytest.raises(StorageError, match="has arrays"):
        join([*stores, other], target)  # type: ignore[operator]
    small = {key: v[..., :20, :30, :] if key.endswith("frames") else v for key, v in episode(1).items()}
    small = {key: v[..., :20, :30] if key.endswith("depth") else v for key, v in small.items()}
    with EpisodeWriter(tmp_path / "small.zarr", INFO) as writer:
        writer.add(small, seed=0)
    with pytest.raises(StorageError, match=r"has sizes .*'height': 20"):
        join([*stores, tmp_path / "small.zarr"], target)  # type: ignore[operator]
    with (
        pytest.raises(StorageError, match=r"is in .*1.zarr and in"),
        EpisodeWriter(tmp_path / "twice.zarr", INFO) as writer,
    ):
        add(writer, 11, truth=True)
        join([*stores, tmp_path / "twice.zarr"], target)  # type: ignore[operator]
    with pytest.raises(StorageError, match="no store was given"):
        join([], target)  # type: ignore[operator]
    assert not target.exists()


def test_rows_of_a_merge_fill_more_than_a_file(tmp_path: Path) -> None:
    steps = schema.ROWS // INFO.frames_per_step - 1
    for name in range(3):
        with EpisodeWriter(tmp_path / f"{name}.zarr", INFO, durable=False) as writer:
            writer.add(episode(steps, name, truth=False), seed=name)
    merge([tmp_path / f"{name}.zarr" for name in range(3)], tmp_path / "all.zarr")
    merged = EpisodeStore(tmp_path / "all.zarr")
    for name in range(3):
        given = episode(steps, name, truth=False)
        assert np.array_equal(merged.read(name, valid_only=False)["poses"], given["poses"])
