"""AV1: the frames of a step are one block, in everything that a store can do."""

from __future__ import annotations

import io
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import av
import fsspec
import imagecodecs
import numpy as np
import pytest
import zarr
from tests.datasets.made_up import FRAMES, INFO, add, episode, python, same

from sanawm_env.datasets import array_reader
from sanawm_env.datasets.array_reader import ArrayReader
from sanawm_env.datasets.codec import Av1
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.recent import Threads
from sanawm_env.datasets.trajectory import of_store
from sanawm_env.datasets.union import Union, merge
from sanawm_env.datasets.verify import repair, verify
from sanawm_env.datasets.windows import Windows, WindowSpec
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import StorageError

LOSSLESS = replace(INFO, picture_codec="av1", picture_quality=0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "a.zarr"
    with EpisodeWriter(path, LOSSLESS, durable=False) as writer:
        for seed in range(4):
            add(writer, seed, truth=True)
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each file held that was decoded since."""
    seen: list[int] = []
    decode = Av1.decode_pictures

    def noted(self: Av1, content: bytes, out: np.ndarray) -> None:
        seen.append(len(out))
        decode(self, content, out)

    monkeypatch.setattr(Av1, "decode_pictures", noted)
    return seen


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """A coloured ramp that moves, with edges."""
    y, x, t = np.meshgrid(np.arange(height), np.arange(width), np.arange(count), indexing="ij")
    planes = [(4 * (x + t)) % 256, 3 * y % 256, np.where((x + t) // 8 % 2, 200, 40)]
    return np.ascontiguousarray(np.stack(planes, axis=-1).transpose(2, 0, 1, 3).astype(np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (33, 47), (64, 96)])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_blocks_of_any_size(count: int, size: tuple[int, int]) -> None:
    frames = pictures(count, *size)
    np.testing.assert_array_equal(Av1(0).coded(frames), frames)
    error = Av1(95).coded(frames).astype(float) - frames
    assert np.sqrt((error**2).mean()) < 6


def test_colour_keeps_its_resolution() -> None:
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    frames[:, :, ::2] = (255, 0, 0)
    frames[:, :, 1::2] = (0, 0, 255)
    assert np.abs(Av1(95).coded(frames).astype(int) - frames).mean() < 8, "4:2:0 would make it purple"


def test_less_quality_takes_less_space_and_a_block_less_than_its_pictures() -> None:
    frames = pictures(8, 64, 80)
    sizes = [len(Av1(quality).encode_pictures(frames)) for quality in (50, 95, 0)]
    assert sizes == sorted(sizes)
    assert sizes[1] < 0.7 * sum(len(Av1(95).encode_pictures(frame[None])) for frame in frames)


@pytest.mark.parametrize("count", [1, 4])
def test_equal_pictures_give_equal_bytes_at_any_time(count: int) -> None:
    frames = pictures(count, 33, 47)
    first = Av1(90).encode_pictures(frames)
    time.sleep(1.1)  # a file says, in seconds, when it was made
    assert Av1(90).encode_pictures(frames) == first
    code = (
        "import numpy as np; from test_av1 import Av1, pictures;"
        f"sys.stdout.write(Av1(90).encode_pictures(pictures({count}, 33, 47)).hex())"
    )
    assert python(code).stdout == first.hex()


def test_other_decoders_read_a_block() -> None:
    frames = pictures(4, 64, 80)
    with av.open(io.BytesIO(Av1(95).encode_pictures(frames))) as container:
        stream = container.streams.video[-1]
        seen = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert stream.codec_context.pix_fmt in ("yuv444p", "yuvj444p")
    assert np.abs(seen.astype(int) - frames).mean() < 4


@pytest.mark.parametrize("quality", [-1, 100])
def test_quality_has_bounds(quality: int, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"AV1 quality is {quality}, expected 1 to 99, or 0 for lossless"):
        EpisodeWriter(tmp_path / "a.zarr", replace(LOSSLESS, picture_quality=quality))
    assert not list(tmp_path.iterdir())


def test_an_imagecodecs_without_av1_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        available = False

    monkeypatch.setattr(imagecodecs, "AVIF", Absent)
    with pytest.raises(StorageError, match="imagecodecs that is installed has no AV1; install its wheel"):
        EpisodeWriter(tmp_path / "a.zarr", LOSSLESS)
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_fails_is_one_error() -> None:
    with pytest.raises(StorageError, match=r"AV1 cannot encode pictures \(1, 1, 70000, 3\)"):
        Av1().encode_pictures(np.zeros((1, 1, 70000, 3), np.uint8))  # AV1 has no side above 65,536


def test_a_block_that_holds_something_else_is_refused() -> None:
    content = Av1(0).encode_pictures(pictures(3, 16, 16))
    for shape in ((4, 16, 16, 3), (2, 16, 16, 3), (1, 16, 16, 3), (3, 16, 17, 3)):
        with pytest.raises(ValueError, match=r"holds pictures \(3, 16, 16, 3\), not"):
            Av1(0).decode_pictures(content, np.empty(shape, np.uint8))
    with pytest.raises((ValueError, RuntimeError)):
        Av1(0).decode_pictures(content[: len(content) // 2], np.empty((3, 16, 16, 3), np.uint8))


def test_a_last_chunk_that_is_not_full_in_an_array_of_zarr(tmp_path: Path) -> None:
    frames = pictures(10, 16, 24)
    array = zarr.create_array(
        store=tmp_path / "a.zarr", shape=frames.shape, dtype="uint8", chunks=(4, 16, 24, 3), serializer=Av1(0),
        compressors=None,
    )  # fmt: skip
    array[:] = frames
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr", mode="r")[:], frames)


def test_a_step_is_one_file_of_one_chunk(written: Path) -> None:
    frames = zarr.open_group(written, mode="r")["data/frames"]
    assert frames.chunks == (FRAMES, 24, 32, 3) and frames.shards is None
    assert [codec["name"] for codec in frames.metadata.to_dict()["codecs"]] == ["sanawm.av1", "crc32c"]
    assert len(list((written / "data/frames").glob("c.*"))) == EpisodeStore(written).frames / FRAMES


def test_episodes_are_kept_bit_for_bit_and_a_step_is_decoded_once(written: Path, decoded: list[int]) -> None:
    store = EpisodeStore(written)
    for index in range(4):
        assert same(store.read(index, valid_only=False), episode(1 + index % 3, index))
    assert decoded.count(FRAMES) == 2 * store.frames // FRAMES, "frames and truth_frames"
    assert decoded.count(1) == 2 * len(store), "and their starts"


def test_windows_decode_a_block_once(written: Path, decoded: list[int]) -> None:
    windows = Windows(written, WindowSpec(history=3, actions=2, arrays=("frames", "actions")), episodes=[2])
    whole = EpisodeStore(written).read(2, valid_only=False)
    seen = np.concatenate([whole["start_frames"][None], whole["frames"]])
    decoded.clear()
    batch = windows.read(list(range(len(windows))))
    assert decoded.count(FRAMES) == 3 and len(windows) > 6
    for instant, frames in enumerate(batch["frames"]):
        np.testing.assert_array_equal(frames, seen[np.maximum(0, np.arange(instant - 2, instant + 1))])
    windows.read([3, 4])
    assert decoded.count(FRAMES) == 3, "blocks are kept"


def test_kept_blocks_are_bounded(written: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_reader, "KEPT", 1)  # byte: two blocks then
    store = EpisodeStore(written, threads=1)
    expected = [store.rows_at("frames", [row])[0] for row in range(store.frames)]
    assert len(store.arrays["frames"]._blocks._values) == 2
    decoded.clear()
    rows = np.random.default_rng(0).permutation(store.frames)
    np.testing.assert_array_equal(store.rows_at("frames", rows), np.stack([expected[row] for row in rows]))
    assert len(decoded) <= store.frames // FRAMES


def test_threads_share_blocks(written: Path) -> None:
    one, three = EpisodeStore(written, threads=1), EpisodeStore(written, threads=3)
    rows = np.random.default_rng(1).integers(one.frames, size=50)
    np.testing.assert_array_equal(one.rows_at("frames", rows), three.rows_at("frames", rows))


def test_a_url_is_asked_for_all_blocks_at_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    system.put(str(written), "/av1/a.zarr", recursive=True)
    asked: list[int] = []
    try:
        remote = EpisodeStore("memory://av1/a.zarr", threads=1)
        ranges = type(system).cat_ranges

        def noted(self: object, paths: list[str], *rest: object, **options: object) -> list[bytes]:
            asked.append(len(paths))
            return ranges(self, paths, *rest, **options)

        monkeypatch.setattr(type(system), "cat_ranges", noted)
        rows = range(EpisodeStore(written).frames)
        np.testing.assert_array_equal(
            remote.rows_at("frames", rows),
            EpisodeStore(written).rows_at("frames", rows),
        )
        assert asked == [len(rows) // FRAMES]
    finally:
        system.rm("/av1", recursive=True)


def test_stores_merge_without_encoding_and_read_as_one(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EpisodeWriter(tmp_path / "b.zarr", LOSSLESS, durable=False) as writer:
        add(writer, 10, truth=True)
    union = Union([written, tmp_path / "b.zarr"])
    encoded: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Av1, "encode_pictures", lambda self, pictures: encoded.append(len(pictures)))
        merge([written, tmp_path / "b.zarr"], tmp_path / "all.zarr")
    assert not encoded
    merged = EpisodeStore(tmp_path / "all.zarr")
    assert verify(tmp_path / "all.zarr").problems == ()
    assert len(merged) == len(union) == 5
    for index in range(5):
        assert same(merged.read(index, valid_only=False), union.read(index, valid_only=False))
    lossy = replace(LOSSLESS, picture_quality=95)
    with EpisodeWriter(tmp_path / "c.zarr", lossy, durable=False) as writer:
        add(writer, 20, truth=True)
    with pytest.raises(StorageError, match="picture_quality"):
        merge([written, tmp_path / "c.zarr"], tmp_path / "none.zarr")


def test_verify_finds_damage_and_repair_drops_leftovers(written: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(written, tmp_path / "a.zarr"))
    assert verify(path).problems == ()
    store = EpisodeStore(path)
    leftover = path / "data/frames" / f"c.{store.frames // FRAMES}.0.0.0"
    leftover.write_bytes(b"cut off")
    assert verify(path).unreferenced == 1 and repair(path).files == 1 and not leftover.exists()
    file = path / store.files("frames", 1)[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    [problem] = verify(path).problems
    assert problem.startswith("data/frames: file 1 is damaged") and problem.endswith("belongs to episode 1")
    with pytest.raises(StorageError, match=r"data/frames/c.1.0.0.0 is damaged"):
        EpisodeStore(path)[1]
    assert same(EpisodeStore(path).read(0, valid_only=False), episode(1, 0))


def test_exports_take_its_frames_one_step_in_memory(written: Path, decoded: list[int]) -> None:
    trajectory, whole = of_store(EpisodeStore(written), 2), EpisodeStore(written).read(2)
    assert trajectory is not None
    decoded.clear()
    frames = np.stack(list(trajectory.frames()))
    np.testing.assert_array_equal(frames, np.concatenate([whole["start_frames"][None], whole["frames"]]))
    assert decoded == [1, *[FRAMES] * 3]


def test_blocks_are_not_taken_for_single_pictures(written: Path) -> None:
    store = EpisodeStore(written)
    metadata = json.loads(store.content("data/frames/zarr.json"))
    with pytest.raises(StorageError, match=r"rows decoded together \(4, 24, 32, 3\), the table says \(1, 24, 32, 3\)"):
        ArrayReader(store.place, store.tables["frames"], INFO, metadata, Threads())
