from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from tests.datasets.made_up import FRAMES, INFO, add, as_stored, episode, number, python, same

from sanawm_env.datasets import schema
from sanawm_env.datasets.atomic import appearing
from sanawm_env.datasets.provenance import Provenance, StoreInfo
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.union import merge
from sanawm_env.datasets.verify import verify
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import StorageError
from sanawm_env.running import REASONS


def split(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What reset returned, and the rows of the steps."""
    start = {key: values for key, values in arrays.items() if key.startswith("start_")}
    return start, {key: values for key, values in arrays.items() if key not in start}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def test_round_trip_of_several_episodes(tmp_path: Path) -> None:
    written = [episode(18), episode(2, seed=1), episode(1, seed=2)]
    told = Provenance(bundle_sha256="ab" * 32, task="free", licences=("Apache-2.0",), extra={"scene_seed": 7})
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        for i, arrays in enumerate(written):
            given = {"seed": 10 + i, "reason": "success", "seconds": 1.5, "provenance": told, "identity": number(i)}
            assert writer.add(arrays, **given) == i
            assert len(writer) == i + 1 and number(i) in writer
    store = EpisodeStore(tmp_path / "a.zarr")
    assert len(store) == 3 and store.ends.tolist() == [72, 80, 84]
    assert store.info == INFO
    assert store.describe(-1) == told.mapping() | {
        "id": number(2).hex(),
        "seed": 12,
        "room": -1,
        "reason": "success",
        "seconds": 1.5,
        "steps": 1,
    }
    assert len(store.sources) == 1, "provenance that episodes share is kept once"
    for i, arrays in enumerate(written):
        read = store.read(i, valid_only=False)
        assert same(read, as_stored(arrays))
        assert psnr(read["frames"], arrays["frames"]) > 38
        assert len(store[i]["frames"]) == len(store[i]["actions"]) == len(arrays["frames"]) - 2, "up to the end only"
        assert store[i]["valid"].all() and store[i]["start_frames"].ndim == 3
    with pytest.raises(IndexError):
        store[3]


def test_small_rows_fill_more_than_a_file(tmp_path: Path) -> None:
    steps = schema.ROWS // FRAMES
    lengths = [steps - 1, 1, 2 * steps + 3, 1]
    for number_, length in enumerate(lengths):
        with EpisodeWriter(tmp_path / "a.zarr", INFO, durable=False) as writer:  # reopened each time
            writer.add(episode(length, number_, truth=False), seed=number_)
    store = EpisodeStore(tmp_path / "a.zarr")
    for number_, length in enumerate(lengths):
        read, given = store.read(number_, valid_only=False), episode(length, number_, truth=False)
        assert all(np.array_equal(read[key], given[key]) for key in ("poses", "actions", "rewards", "start_poses"))


def test_episodes_of_a_batch_are_open_together(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        starts, rows = zip(*(split(episode(3, seed)) for seed in range(3)))
        opened = [writer.begin(start, seed=seed) for seed, start in enumerate(starts)]
        order = []
        for step in range(3):
            for seed, one in enumerate(opened):
                if step < 3 - seed:
                    one.append({key: values[step * FRAMES : (step + 1) * FRAMES] for key, values in rows[seed].items()})
                    if step == 2 - seed:
                        order.append(seed)
                        one.commit(reason="")
        opened.append(writer.begin(starts[0], seed=9))
    store = EpisodeStore(tmp_path / "a.zarr")
    assert store.meta["episode_seeds"].tolist() == order == [2, 1, 0], "in the order in which they ended"
    for index, seed in enumerate(order):
        stored = as_stored(
            {**starts[seed], **{key: values[: (3 - seed) * FRAMES] for key, values in rows[seed].items()}}
        )
        assert same(store.read(index, valid_only=False), stored)
    with pytest.raises(StorageError, match="dropped already"):
        opened[-1].append(rows[0])


@pytest.mark.parametrize(("codec", "quality"), [("webp", 95), ("webp", 0), ("jpegxl", 0), ("av1", 95), ("av1", 0)])
def test_other_picture_codecs(codec: str, quality: int, tmp_path: Path) -> None:
    info = StoreInfo(
        fps=10, frames_per_step=FRAMES, action_columns=("v", "w"), action_units=("", ""), picture_codec=codec,
        picture_quality=quality,
    )  # fmt: skip
    arrays = episode(2)
    with EpisodeWriter(tmp_path / "a.zarr", info) as writer:
        writer.add(arrays, seed=0)
    read = EpisodeStore(tmp_path / "a.zarr").read(0, valid_only=False)
    assert same(read, arrays) if not quality else psnr(read["frames"], arrays["frames"]) > 35


def test_latents_have_a_row_a_step(tmp_path: Path) -> None:
    arrays = episode(3) | {
        "latents": np.random.default_rng(0).normal(size=(3, 2, 5, 3, 4)).astype(np.float32),
        "start_latents": np.ones((5, 3, 4), np.float32),
        "step_seconds": np.full(3 * FRAMES, 0.1, np.float32),
    }
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        for seed in range(2):
            writer.add(arrays, seed=seed)
    store = EpisodeStore(tmp_path / "a.zarr")
    assert same(store.read(1, valid_only=False), as_stored(arrays))
    assert store.arrays["latents"].shape == (6, 2, 5, 3, 4)


def test_any_zarr_reader_finds_the_picture_codec(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        add(writer, 0)
    code = (
        "import sys, zarr; frames = zarr.open_group(sys.argv[1], mode='r')['data/frames'][1];"
        "assert frames.shape == (24, 32, 3), frames.shape; print(int(frames.mean()))"
    )
    done = python(code, tmp_path / "a.zarr", check=False)
    if "sanawm.jpeg" in done.stderr:
        pytest.fail("codec not found: the package is not installed in this environment; run `make setup`")
    assert done.returncode == 0, done.stderr


def test_a_store_has_one_writer(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        with pytest.raises(StorageError, match=r"has a writer already \(process \d+ on .* since"):
            EpisodeWriter(tmp_path / "a.zarr", INFO)
        code = "from made_up import EpisodeWriter\nEpisodeWriter(sys.argv[1])"
        done = python(code, tmp_path / "a.zarr", check=False)
        assert "sanawm merge" in done.stderr.splitlines()[-1]
        add(writer, 0)
    with pytest.raises(StorageError, match="closed"):
        add(writer, 1)
    writer.close()
    with EpisodeWriter(tmp_path / "a.zarr") as again:
        assert len(again) == 1


def test_a_forked_child_neither_holds_the_lock_nor_writes(tmp_path: Path) -> None:
    code = """
import os, time
from made_up import INFO, EpisodeWriter, add
writer = EpisodeWriter(sys.argv[1], INFO)
child = os.fork()
if not child:
    writer.close()
    time.sleep(20)
    os._exit(0)
print(child, flush=True)
add(writer, 0)
os._exit(9)
"""
    text = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{code}"
    with subprocess.Popen([sys.executable, "-c", text, tmp_path / "a.zarr"], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        child = int(job.stdout.readline())
        assert job.wait(60) == 9
        try:
            with EpisodeWriter(tmp_path / "a.zarr") as writer:
                assert len(writer) == 1
        finally:
            os.kill(child, signal.SIGKILL)


def test_reads_while_another_writes(tmp_path: Path) -> None:
    path, done, seen = tmp_path / "a.zarr", threading.Event(), []
    with EpisodeWriter(path, INFO, durable=False) as writer:

        def write() -> None:
            for seed in range(15):
                add(writer, seed)
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        while not done.is_set():
            store = EpisodeStore(path)
            seen.append(len(store))
            if len(store):
                assert same(
                    store.read(-1, valid_only=False),
                    as_stored(episode(1 + (len(store) - 1) % 3, len(store) - 1, truth=False)),
                )
        thread.join()
    assert seen == sorted(seen)


def test_an_id_is_written_once(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        add(writer, 3)
        with pytest.raises(StorageError, match=f"episode id {number(3).hex()} is in the store"):
            add(writer, 3)
        start, _ = split(episode(1, truth=False))
        writer.begin(start, seed=0, identity=number(4))
        with pytest.raises(StorageError, match="leave this episode out"):
            writer.begin(start, seed=0, identity=number(4))
    with EpisodeWriter(tmp_path / "a.zarr") as writer, pytest.raises(StorageError, match="leave this episode out"):
        add(writer, 3)


def test_an_error_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(StorageError, match="No space left"), appearing(target) as draft:
        draft.write_text("new")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poses": np.zeros((12, 4, 4), np.float32)}, "array poses is float32"),
        ({"poses": np.zeros((8, 4, 4))}, "numbers of steps: .*'poses': 2"),
        ({"actions": np.zeros((12, 3), np.float32)}, "array actions has length 3 on axis action, expected 2"),
        ({"wheels": np.zeros((12, 2))}, "unknown arrays \\['wheels'\\]"),
        ({"start_wheels": np.zeros(2)}, "unknown arrays \\['start_wheels'\\]"),
        ({"rewards": np.zeros(13)}, "expected a multiple of 4, the frames of a step"),
        ({"valid": np.arange(12) > 5}, "valid turns true again"),
        ({"start_frames": np.zeros((24, 33, 3), np.uint8)}, "length 32 on axis width, expected 33"),
        ({"latents": np.zeros((3, 1, 1, 1, 1), np.float32)}, "has latents but no start_latents"),
        ({"poses": None}, "lacks arrays \\['poses'\\]"),
    ],
)
def test_rejects_what_does_not_fit_the_table(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    arrays = {key: values for key, values in {**episode(3), **change}.items() if values is not None}
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        with pytest.raises(StorageError, match=message):
            writer.add(arrays, seed=0)
        assert not list((tmp_path / "a.zarr/meta/episode_ends/staging").glob("*"))
        add(writer, 1)
    assert len(EpisodeStore(tmp_path / "a.zarr")) == 1


def test_rejects_an_episode_unlike_the_first(tmp_path: Path) -> None:
    wide = {key: np.repeat(v, 2, axis=-2) if key.endswith("frames") else v for key, v in episode(3).items()}
    for _ in range(2):  # also when the store is opened again
        with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
            if not len(writer):
                writer.add(episode(3), seed=0)
            with pytest.raises(StorageError, match="episode has arrays"):
                writer.add(episode(3, truth=False), seed=0)
            with pytest.raises(StorageError, match="length 64 on axis width, expected 32"):
                writer.add({k: v for k, v in wide.items() if "depth" not in k}, seed=0)
            with pytest.raises(StorageError, match="reason is 'tired'"):
                writer.add(episode(3), seed=0, reason="tired")
            with pytest.raises(StorageError, match="provenance cannot be written"):
                writer.add(episode(3), seed=0, provenance=Provenance(extra={"a": object()}))
    assert len(EpisodeStore(tmp_path / "a.zarr")) == 1


def test_an_episode_has_steps(tmp_path: Path) -> None:
    start, _ = split(episode(1))
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        with pytest.raises(StorageError, match="has no step"), writer.begin(start, seed=0) as opened:
            opened.commit()
        with writer.begin(start, seed=0):
            pass
        assert len(writer) == 0
    assert len(EpisodeStore(tmp_path / "a.zarr")) == 0


def test_says_what_is_in_its_way(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="pass a StoreInfo"):
        EpisodeWriter(tmp_path / "none.zarr")
    assert not list(tmp_path.iterdir())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(StorageError, match=r"holds \['cat.jpg'\]; choose another folder"):
        EpisodeWriter(tmp_path / "photos", INFO)
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    EpisodeWriter(tmp_path / "a.zarr", INFO).close()
    with pytest.raises(StorageError, match="was made with StoreInfo"):
        EpisodeWriter(tmp_path / "a.zarr", StoreInfo(fps=5, frames_per_step=4, action_columns=(), action_units=()))
    with pytest.raises(StorageError, match="did you mean 'jpegxl'"):
        StoreInfo(fps=5, frames_per_step=4, action_columns=(), action_units=(), picture_codec="jpeg-xl")


def test_a_missing_or_damaged_file_is_never_read_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with EpisodeWriter(path, INFO) as writer:
        for seed in range(3):
            add(writer, seed)
    store = EpisodeStore(path)
    file = path / store.files("frames", 1)[0]
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content)
    with pytest.raises(StorageError, match=r"frames rows 4 to 12: .*sanawm verify"):
        store[1]
    file.unlink()
    store = EpisodeStore(path)
    with pytest.raises(StorageError, match=r"frames rows 4 to 12: data/frames/c.1.0.0.0 is missing; .*sanawm verify"):
        store[1]
    assert len(store[0]["frames"]) == 2 and len(store[2]["frames"]) == 10


def test_reader_rejects_other_folders_and_other_versions(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not an episode store"):
        EpisodeStore(tmp_path / "none.zarr")
    group = zarr.create_group(store=tmp_path / "b.zarr", zarr_format=3)
    for opened in (EpisodeStore, EpisodeWriter):
        with pytest.raises(StorageError, match="has schema None"):
            opened(tmp_path / "b.zarr")
    group.attrs.update({"schema": schema.NAME, "version": schema.VERSION + 1})
    with pytest.raises(StorageError, match="upgrade"):
        EpisodeStore(tmp_path / "b.zarr")
    group.attrs.update({"version": 1})
    with pytest.raises(StorageError, match="version 1, this package reads 2 only; record it again"):
        EpisodeStore(tmp_path / "b.zarr")
    group.attrs.update({"version": schema.VERSION})
    with pytest.raises(StorageError, match="not written to its end"):
        EpisodeStore(tmp_path / "b.zarr")


def test_the_table_knows_every_reason_of_an_end() -> None:
    assert sorted((*REASONS, "other")) == sorted(schema.END_REASONS)
    # Stores keep the index: a new reason comes last.
    assert schema.END_REASONS[:7] == ("", "success", "collision", "horizon", "timeout", "model_fault", "other")
    assert len(schema.BY_NAME) == len(schema.TABLE)
    assert len(schema.BY_KEY) + len(schema.META) == len(schema.TABLE)


def test_states_are_kept_at_chosen_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large, small = rng.bytes(2 * schema.BLOCK + 5), b"small\0"
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        add(writer, 0)
        for seed in (1, 2):
            start, rows = split(episode(2, seed, truth=False))
            with writer.begin(start, seed=seed, identity=number(seed)) as opened:
                opened.keep_state(small)
                opened.append(rows)
                opened.keep_state(large)
                opened.commit()
        add(writer, 3)
        with writer.begin(start, seed=seed) as opened:
            opened.keep_state(small)
            with pytest.raises(StorageError, match="the state after 0 steps is kept already"):
                opened.keep_state(small)
    for path in (tmp_path / "a.zarr", tmp_path / "b.zarr"):
        store = EpisodeStore(path)
        assert [store.states(index) for index in range(4)] == [{}, {0: small, 2: large}, {0: small, 2: large}, {}]
        assert same(store.read(2, valid_only=False), as_stored(episode(2, 2, truth=False)))
        assert not verify(path).problems
        if path.name == "a.zarr":
            merge([path], tmp_path / "b.zarr")
