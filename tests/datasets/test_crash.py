"""A writer that dies or fails at any instant: what it had reported is there, and nothing half written is read.

SANAWM_KILLS sets how many writers are killed, and how many disks fill up (20).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.datasets.made_up import HEIGHT, INFO, WIDTH, add, as_stored, episode, number, python, same

from sanawm_env.datasets import files
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import StorageError

KILLS = int(os.environ.get("SANAWM_KILLS", "20"))
JOB = """
import itertools
from made_up import INFO, add, number
from sanawm_env.datasets.writer import EpisodeWriter
print("ready", flush=True)
with EpisodeWriter(sys.argv[1], INFO) as writer:
    for seed in itertools.count():
        if number(seed) not in writer:
            add(writer, seed, truth=True)
            print(seed, flush=True)
"""
FOREIGN = """
import json, warnings, zarr
warnings.simplefilter("error")
for path in sys.argv[1:]:
    group = zarr.open_group(path, mode="r")
    ends = group["meta/episode_ends"][:]
    arrays = group["data"].arrays() if len(ends) else []
    rows = [array.shape[0] for name, array in arrays if not name.startswith("state")]
    print(json.dumps({"ends": ends.tolist(), "rows": min(rows, default=0)}))
"""


def foreign(paths: list[Path]) -> list[dict[str, Any]]:
    """What plain Zarr, in a process without this package, sees of stores: ends, and rows that every array has."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{FOREIGN}", *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(path: Path, reported: set[int], *, truth: bool = False) -> int:
    """Opens the store; every episode in it is whole and as it was given, and none that was reported is missing.
    Returns how many there are."""
    store = EpisodeStore(path)
    there = [int.from_bytes(store.identity(index), "big") for index in range(len(store))]
    assert reported <= set(there) and len(set(there)) == len(there)
    for index, seed in enumerate(there):
        expected = as_stored(episode(1 + seed % 3, seed, truth=truth))
        assert same(store.read(index, valid_only=False), expected), f"episode {seed} has changed"
        assert store.describe(index)["task"] == f"task {seed % 3}"
    return len(store)


@pytest.mark.slow  # twenty processes
@pytest.mark.timeout(60 + 6 * KILLS)
def test_kill_9_at_random_instants(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    seen, left = 0, dict[Path, int]()
    for round_ in range(KILLS):
        path = tmp_path / f"{round_ // 5}.zarr"  # four writers more go on with what the first one left
        before = check(path, set(), truth=True) if (path / "zarr.json").exists() else 0
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{JOB}"
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout is not None and job.stdout.readline() == "ready\n"
            began, ahead = time.monotonic(), int(rng.integers(0, 4))
            lines = [job.stdout.readline() for _ in range(ahead)]
            pace = (time.monotonic() - began) / ahead if ahead else 0.2  # however fast this machine is just now
            time.sleep(rng.uniform(0, pace))
            job.send_signal(signal.SIGKILL)
            reported = {int(line) for line in (*lines, *job.stdout.read().splitlines())}
        if not (path / "zarr.json").exists():
            assert not reported
            continue
        after = check(path, reported, truth=True)
        assert len(reported) <= after - before <= len(reported) + 1, "one may be committed and not yet reported"
        left[shutil.copytree(path, tmp_path / f"left-{round_}.zarr")] = after
        seen += len(reported)
    assert [len(plain["ends"]) for plain in foreign(list(left))] == list(left.values())
    assert seen >= KILLS / 2, "the writers were killed before they could write anything"


class Operations:
    """Stands in for the file operations of a writer, and calls `before(number)` ahead of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
        self.count, self.before = 0, before
        for name in ("write", "move", "flush"):
            monkeypatch.setattr(files, name, self._counted(getattr(files, name)))

    def _counted(self, operation: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: Any) -> None:
            if operation.__name__ == "write":  # the instant at which half of it is there
                arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])
            self.count += 1
            self.before(self.count - 1)
            operation(*arguments)

        return counted


def test_a_crash_between_any_two_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reported, images = tmp_path / "a.zarr", set[int](), list[tuple[Path, set[int]]]()

    def photograph(at: int) -> None:
        image = tmp_path / f"image-{at}.zarr"
        shutil.copytree(path, image)
        images.append((image, set(reported)))

    with monkeypatch.context() as patch:
        Operations(patch, photograph)
        with EpisodeWriter(path, INFO) as writer:
            for seed in range(3):
                add(writer, seed)
                reported.add(seed)
    assert len(images) > 100
    born = [image for image in images if (image[0] / "zarr.json").exists()]
    assert all(not reported for image, reported in images if image not in [path for path, _ in born])
    for (image, known), plain in zip(born, foreign([image for image, _ in born])):
        count = check(image, known)
        assert len(known) <= count <= len(known) + 1
        assert len(plain["ends"]) == count and plain["rows"] >= max(plain["ends"], default=0)
    for image, known in images[::7]:  # the next writer goes on from whatever is there
        with EpisodeWriter(image, INFO) as writer:
            assert add(writer, 9) == len(writer) - 1
        check(image, known | {9})


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_of_any_operation(failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = StorageError if isinstance(failure, OSError) else KeyboardInterrupt
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        add(writer, 0)
        reported, at, failed = {0}, 0, True
        while failed:

            def fail(number: int, at: int = at) -> None:
                if number == at:
                    raise failure

            seed = 1 + len(reported) + 10 * at
            with monkeypatch.context() as patch:
                operations = Operations(patch, fail)
                with contextlib.suppress(expected):
                    add(writer, seed)
                    reported.add(seed)
            failed = operations.count > at
            if at % 5 == 0:  # the same writer goes on as if nothing had been
                add(writer, seed + 1)
                reported.add(seed + 1)
            at += 1
        assert at > 40
        assert check(tmp_path / "a.zarr", reported) >= len(reported)
        assert not list((tmp_path / "a.zarr" / "meta/episode_ends/staging").iterdir())


def test_a_disk_that_is_full_from_a_random_byte_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC after n bytes, half of a file written, again and again on the stores that this leaves."""
    rng, write, failed = np.random.default_rng(0), files.write, 0
    for round_ in range(KILLS):
        path, left, reported = tmp_path / f"{round_ // 5}.zarr", [int(rng.integers(0, 120_000))], set[int]()

        def limited(target: Path, content: bytes, left: list[int] = left) -> None:
            write(target, content[: left[0]])
            left[0] -= len(content)
            if left[0] < 0:
                left[0] = 0
                raise OSError(errno.ENOSPC, "No space left on device")

        before = check(path, set(), truth=True) if (path / "zarr.json").exists() else 0
        with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left on device"):
            patch.setattr(files, "write", limited)
            with EpisodeWriter(path, INFO, durable=False) as writer:
                for seed in itertools.count():
                    if number(seed) not in writer:
                        add(writer, seed, truth=True)
                        reported.add(seed)
        failed += 1
        if (path / "zarr.json").exists():
            assert check(path, reported, truth=True) == before + len(reported), "nothing that was not reported"
        else:
            assert not reported
    assert failed == KILLS


def test_a_small_file_system_that_is_full(tmp_path: Path) -> None:
    code = """
import itertools, json, shutil
from made_up import INFO, add, number
from sanawm_env.datasets.verify import repair, verify
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import StorageError
small, kept = sys.argv[1:]
reported = []
for job in range(2):  # the second one goes on with what the first one left
    try:
        with EpisodeWriter(small + "/a.zarr", INFO) as writer:
            for seed in itertools.count():
                if number(seed) not in writer:
                    add(writer, seed, truth=True)
                    reported.append(seed)
    except StorageError as error:
        assert "No space left on device" in str(error) and "Free space" in str(error), error
repair(small + "/a.zarr")
assert not verify(small + "/a.zarr").problems
shutil.copytree(small + "/a.zarr", kept)
print(json.dumps(reported))
"""
    text = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{code}"
    (tmp_path / "small").mkdir()
    mount = 'mount -t tmpfs -o size=600k tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1" "$4"'  # gone with the process
    words = ["sh", "-c", mount, "sh", str(tmp_path / "small"), sys.executable, text, str(tmp_path / "kept.zarr")]
    try:
        done = subprocess.run(["unshare", "--mount", "--map-root-user", *words], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare here, which mounts a file system for one process")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    reported = set(json.loads(done.stdout))
    assert check(tmp_path / "kept.zarr", reported, truth=True) == len(reported) > 3


def test_a_disk_that_is_full_for_good(tmp_path: Path) -> None:
    code = """
import resource, signal
from made_up import INFO, add, EpisodeWriter
from sanawm_env.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with EpisodeWriter(sys.argv[1], INFO) as writer:
    add(writer, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))
    for seed in range(1, 4):
        try:
            add(writer, seed)
        except StorageError as error:
            print(error)
"""
    done = python(code, tmp_path / "a.zarr")
    assert done.stdout.count("cannot write") == 3 and "Free space" in done.stdout
    assert check(tmp_path / "a.zarr", {0}) == 1


def test_an_exception_in_the_job_drops_open_episodes_only(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        add(writer, 0)
        arrays = episode(2)
        opened = writer.begin({k: v for k, v in arrays.items() if k.startswith("start_") and "truth" not in k}, seed=1)
        opened.append({k: v for k, v in arrays.items() if not k.startswith("start_") and "truth" not in k})
        raise ZeroDivisionError
    assert check(tmp_path / "a.zarr", {0}) == 1
    assert not (tmp_path / "a.zarr/meta/episode_ends/staging").exists()
    with EpisodeWriter(tmp_path / "a.zarr") as writer:
        assert number(0) in writer and number(1) not in writer


def test_a_first_episode_that_was_cut_off_leaves_no_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    with EpisodeWriter(path, INFO) as writer:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

            def stop(source: Path, target: Path) -> None:
                if target.parent.name == "episode_ends" and target.name == "zarr.json":
                    raise KeyboardInterrupt
                os.replace(source, target)

            patch.setattr(files, "move", stop)
            add(writer, 0, truth=True)
        assert (path / "data/truth_depth/zarr.json").exists()
        add(writer, 1, truth=False)
    assert "truth_depth" not in EpisodeStore(path).arrays
    assert check(path, {1}) == 1
    assert EpisodeStore(path)[0]["frames"].shape[1:] == (HEIGHT, WIDTH, 3)
