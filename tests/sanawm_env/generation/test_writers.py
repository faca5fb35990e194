"""Episodes written by processes of their own: the same as by the thread, whatever becomes of one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.sanawm_env.generation.jobs import assert_same_episodes, finished, job, record, stored
from tests.sanawm_env.generation.test_workers import wait_for

from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.errors import ConfigError, StorageError, WorkerError
from sanawm_env.generation import Filters, generate, replay, writer, writers
from sanawm_env.generation.filters import measure
from sanawm_env.generation.ring import Filler, Layout, Ring
from sanawm_env.playback import Decoder
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.rows import digests

FULL = """
import resource, signal
from sanawm_env.generation import writer
serve = writer._serve
def full(pipe, config, folder):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
    serve(pipe, config, folder)
writer._serve = full
"""


def test_a_ring_holds_what_a_step_showed() -> None:
    layout = Layout(blocks=2, worlds=3, frames=4, height=5, width=7, channels=6)
    ring = Ring(layout)
    other = Ring(layout, ring.handle)
    filler = Filler(ring, torch.device("cpu"))
    steps = [
        (torch.randint(0, 256, (worlds, 4, 5, 7, 3), dtype=torch.uint8), torch.randn(worlds, 2, 6, 3, 3))
        for worlds in (3, 2)
    ]
    for block, step in enumerate(steps):
        assert filler.fill(block, *step) is None
    for block, (frames, latents) in enumerate(steps):
        worlds = len(frames)
        np.testing.assert_array_equal(other.pictures(block, worlds, 4), frames.numpy())
        seen, expected = other.measured(block, worlds, 4).of(slice(1, worlds)), measure(frames, latents)
        for name in ("contrast", "sharpness", "latents"):
            np.testing.assert_array_equal(getattr(seen, name), getattr(expected, name)[1:])
    filler.close()
    ring.close()


def test_writers_leave_what_the_thread_leaves(tiny_bundle: Path, tiny_model: WorldModel, tmp_path: Path) -> None:
    """Batches that shrink, episodes that are rejected, and two runs of one worker's folder among them."""
    limits = {"filters": Filters(contrast=None, sharpness=None, drift=1.0), "bundle": str(tiny_bundle)}
    alone = generate(job(tmp_path / "thread", episodes=8, **limits), model=tiny_model)
    told = generate(job(tmp_path / "writers", episodes=8, writers=2, **limits), model=tiny_model)
    assert told["rejected"] == alone["rejected"] and told["stored"] == alone["stored"]
    assert_same_episodes(stored(tmp_path / "thread"), stored(tmp_path / "writers"))
    mine, theirs = record(tmp_path / "thread"), record(tmp_path / "writers")
    assert {k: v | {"seconds": 0} for k, v in mine.items()} == {k: v | {"seconds": 0} for k, v in theirs.items()}
    assert not (tmp_path / "writers/parts").exists()
    assert generate(job(tmp_path / "writers", episodes=8, writers=1, **limits), model=tiny_model)["made_now"] == 0


@pytest.mark.parametrize("writers", [0, 2])
def test_latents_take_the_place_of_frames(
    writers: int, tiny_bundle: Path, tiny_model: WorldModel, tmp_path: Path
) -> None:
    options = {"bundle": str(tiny_bundle), "episodes": 2, "writers": writers}
    for keep in ("latents", "both"):
        generate(job(tmp_path / keep, keep=keep, **options), model=tiny_model)
    assert "frames" not in EpisodeStore(tmp_path / "latents/episodes.zarr").keys
    decoded = EpisodeStore(tmp_path / "latents/episodes.zarr", decode=Decoder(tiny_model))
    both = EpisodeStore(tmp_path / "both/episodes.zarr", decode=Decoder(tiny_model))
    order = {both.identity(index)[8:]: index for index in range(2)}
    for index in range(2):
        mine, theirs = decoded.read(index), both.read(order[decoded.identity(index)[8:]])
        np.testing.assert_array_equal(mine["latents"], theirs["latents"])
        assert mine["frames"].shape == theirs["frames"].shape
        assert np.array_equal(mine["frame_digests"], digests(mine["frames"])), "decoded as they were shown"


def test_frames_are_those_of_a_replay(tiny_bundle: Path, tmp_path: Path) -> None:
    generate(job(tmp_path, bundle=str(tiny_bundle), episodes=4, writers=2))
    results = replay(tmp_path / "episodes.zarr", bundle=tiny_bundle)
    assert [one.text() for one in results] == [f"episode {index}: same" for index in range(4)]


@pytest.mark.slow
def test_a_killed_writer_leaves_what_it_had_finished(
    tiny_model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[writers.Writers] = []
    open_ = writers.Writers.open

    def opened(self: writers.Writers, world: object) -> None:
        open_(self, world)  # type: ignore[arg-type]
        made.append(self)
        threading.Thread(target=lambda: (wait_for(tmp_path, 3), self._processes[0].kill())).start()

    monkeypatch.setattr(writers.Writers, "open", opened)
    config = job(tmp_path, writers=2, episodes=400, durable=False)
    with pytest.raises(WorkerError, match=r"writer-0 ended early with exit status -9, .* Run the same command again"):
        generate(config, model=tiny_model)
    before = stored(tmp_path).keys()
    assert 0 < len(before) < 400 and not made[0]._processes
    monkeypatch.undo()
    rest = generate(job(tmp_path, episodes=len(before) + 10, durable=False), model=tiny_model)
    assert (
        rest["stored"] == rest["episodes"] >= len(before) + 10
        and set(range(len(before) + 10)) <= stored(tmp_path).keys()
    )


@pytest.mark.slow
def test_a_full_disk_is_told_as_by_the_thread(
    tiny_model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for the disk."""
    (tmp_path / "sitecustomize.py").write_text(FULL)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    with pytest.raises(StorageError, match=r"cannot write .*worker-0\.0"):
        generate(job(tmp_path / "job", writers=1), model=tiny_model)
    monkeypatch.undo()
    assert generate(job(tmp_path / "job", writers=1), model=tiny_model)["stored"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_writers_end_with_their_parent(how: signal.Signals, tiny_bundle: Path, tmp_path: Path) -> None:
    script = (
        "import signal, sys\nfrom pathlib import Path\nfrom tests.sanawm_env.generation.jobs import job\n"
        "from sanawm_env.generation import generate\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it\n"
        "    generate(job(Path(sys.argv[1]), bundle=sys.argv[2], writers=2, episodes=400, durable=False))\n"
    )
    (tmp_path / "command.py").write_text(script)
    out = tmp_path / "job"
    told = [sys.executable, str(tmp_path / "command.py"), str(out), str(tiny_bundle)]
    path = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(told, env=path, stderr=subprocess.DEVNULL, start_new_session=True) as running:
        wait_for(out, 4)
        running.send_signal(how)
    before = finished(out)
    assert before < 400
    rest = generate(job(out, bundle=str(tiny_bundle), episodes=before + 5, durable=False))
    assert rest["stored"] == rest["episodes"] >= before + 5 - 6
    assert set(range(before + 5)) <= stored(out).keys() and not (out / "parts").exists()


def test_what_cannot_be_sent_is_told_in_words() -> None:
    class Odd(Exception):
        def __init__(self, one: int, other: int) -> None:
            super().__init__(f"{one} and {other}")

    told = writer._sendable(Odd(1, 2))
    assert isinstance(told, WorkerError) and "Odd: 1 and 2" in str(told)
    kept = writer._sendable(StorageError("cannot write"))
    assert isinstance(kept, StorageError) and str(kept) == "cannot write"


def test_a_number_of_writers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="writers is -1, allowed is a whole number >= 0"):
        job(tmp_path, writers=-1)
