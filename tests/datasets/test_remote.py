"""Stores behind URLs: fsspec's memory, and S3 where s3fs and moto's server are installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from tests.datasets.made_up import INFO, add, same
from torch.utils.data import DataLoader

from sanawm_env.datasets.place import Part, Remote
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.torch_data import WindowStream
from sanawm_env.datasets.union import Union, merge, open_store
from sanawm_env.datasets.verify import repair, verify
from sanawm_env.datasets.windows import Windows, WindowSpec
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import MissingExtraError, StorageError

SPEC = WindowSpec(history=6, actions=3, arrays=("frames", "poses", "actions"))
S3 = all(importlib.util.find_spec(name) for name in ("s3fs", "moto", "flask"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        for seed in range(4):
            add(writer, seed, truth=True)
    return tmp_path / "a.zarr"


@pytest.fixture
def memory(path: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.put(str(path), "/data/a.zarr", recursive=True)
    yield "memory://data/a.zarr"
    system.rm("/data", recursive=True)


def assert_reads_as(remote: EpisodeStore, local: EpisodeStore) -> None:
    assert len(remote) == len(local) and remote.info == local.info
    for index in range(len(local)):
        assert same(remote.read(index, valid_only=False), local.read(index, valid_only=False))
        assert remote.describe(index) == local.describe(index) and remote.states(index) == local.states(index)
    far, near = Windows(remote, SPEC), Windows(local, SPEC)
    numbers = np.random.default_rng(0).permutation(len(near))
    expected = near.read(numbers)
    for key, rows in far.read(numbers).items():
        np.testing.assert_array_equal(rows, expected[key])


def test_memory_reads_as_the_folder_does(path: Path, memory: str) -> None:
    local, remote = EpisodeStore(path), open_store(memory)
    assert isinstance(remote, EpisodeStore)
    assert_reads_as(remote, local)
    with pytest.raises(StorageError, match=r"is in .*a.zarr and in memory://data/a.zarr"):
        Union([local, remote])
    with pytest.raises(StorageError, match=r"memory://data/a.zarr can be read, and no more: copy it to a folder"):
        repair(memory)


def test_merges_what_is_far_away(memory: str, path: Path, tmp_path: Path) -> None:
    assert merge([memory], tmp_path / "near.zarr") == 4
    assert_reads_as(EpisodeStore(tmp_path / "near.zarr"), EpisodeStore(path))
    assert not verify(tmp_path / "near.zarr").problems


def test_verifies_what_is_far_away(path: Path, memory: str) -> None:
    near, far = verify(path), verify(memory)
    assert not far.problems and far.store == memory
    assert dataclasses.replace(near, store=memory) == far
    fsspec.filesystem("memory").rm("/data/a.zarr/data/frames/c.1.0.0.0")
    fsspec.filesystem("memory").pipe("/data/a.zarr/data/frames/c.99.0.0.0", b"left")
    far = verify(memory)
    assert far.problems == ("data/frames: file 1 is missing; it belongs to episode 1",)
    assert (far.unreferenced, far.unreferenced_bytes) == (1, 4)


def test_a_window_is_few_requests(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 rows of four shards: their indices in one round, then one range a shard in another."""
    system, calls = fsspec.filesystem("memory"), []
    read = type(system).cat_ranges

    def noted(self: Any, names: list[str], *arguments: Any, **options: Any) -> list[Any]:
        calls.append(names)
        return read(self, names, *arguments, **options)

    store = EpisodeStore(memory, threads=1)
    monkeypatch.setattr(type(system), "cat_ranges", noted)
    first = store.rows_at("frames", range(4, 20))
    assert [len(names) for names in calls] == [4, 4]
    np.testing.assert_array_equal(store.rows_at("frames", range(4, 20)), first)
    assert [len(names) for names in calls] == [4, 4, 4]


def test_parts_of_a_file_are_joined_and_cut_again(memory: str) -> None:
    fsspec.filesystem("memory").pipe("/data/x", bytes(range(256)) * 1000)
    place, content = Remote("memory://data"), bytes(range(256)) * 1000
    parts = [Part("x", 5, 10), Part("y"), Part("x", 12, 9), Part("x", -7), Part("x", 200_000, 4), Part("x", 5, 10)]
    expected = [content[5:15], None, content[12:21], content[-7:], content[200_000:200_004], content[5:15]]
    assert place.read_parts(parts) == expected
    assert place.read("x") == content and place.read("a.zarr/none") is None


def test_says_what_is_missing_and_what_is_damaged(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"memory://data/b.zarr is not an episode store"):
        EpisodeStore("memory://data/b.zarr")
    with pytest.raises(StorageError, match=r"cannot be opened .*give a folder or a URL"):
        EpisodeStore("cloud://data/b.zarr")
    with pytest.raises(StorageError, match=r"takes no options; \['key'\] were given"):
        EpisodeStore("b.zarr", options={"key": "a"})
    system = fsspec.filesystem("memory")
    system.rm("/data/a.zarr/data/frames/c.1.0.0.0")
    system.pipe("/data/a.zarr/data/poses/c.0.0.0", b"12345")
    store = EpisodeStore(memory)
    with pytest.raises(StorageError, match=r"data/frames/c.1.0.0.0 is missing"):
        store.rows_at("frames", [0, 4])
    with pytest.raises(StorageError, match=r"data/poses/c.0.0.0 is damaged"):
        store[0]

    def broken(*arguments: Any, **options: Any) -> list[Any]:
        return [TimeoutError("no answer")]

    monkeypatch.setattr(type(system), "cat_ranges", broken)
    with pytest.raises(StorageError, match=r"cannot read memory://data/a.zarr/data/frames/c.0.0.0.0: no answer"):
        store.place.read_parts([Part("data/frames/c.0.0.0.0")])


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="the extra is installed here")
def test_a_missing_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'sanawm-env\[s3\]'"):
        EpisodeStore("s3://data/a.zarr")


@pytest.fixture
def bucket() -> Iterator[dict[str, Any]]:
    """Options of an S3 server of this machine, which has a bucket "data"."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "test", "secret": "test"}
    fsspec.filesystem("s3", **options).mkdir("data")
    yield options
    server.stop()


def read_there(store: EpisodeStore, found: multiprocessing.Queue) -> None:
    found.put(store.rows_at("frames", [7, 1]))


@pytest.mark.skipif(not S3, reason="needs s3fs and moto[server]: pip install 'sanawm-env[s3]' 'moto[server]'")
def test_s3_reads_as_the_folder_does(path: Path, bucket: dict[str, Any]) -> None:
    fsspec.filesystem("s3", **bucket).put(str(path), "data/a.zarr", recursive=True)
    local, remote = EpisodeStore(path), EpisodeStore("s3://data/a.zarr", options=bucket)
    assert_reads_as(remote, local)
    with pytest.raises(StorageError, match=r"s3://data/b.zarr is not an episode store"):
        EpisodeStore("s3://data/b.zarr", options=bucket)
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        found = context.Queue()
        process = context.Process(target=read_there, args=(remote, found))
        process.start()
        np.testing.assert_array_equal(found.get(timeout=60), local.rows_at("frames", [7, 1]))
        process.join()
    batches = [
        list(DataLoader(WindowStream(Windows(store, SPEC), 4, epochs=1), batch_size=None, num_workers=workers))
        for store, workers in ((local, 0), (remote, 2))
    ]
    assert all(one["frames"].equal(other["frames"]) for one, other in zip(*batches, strict=True))
