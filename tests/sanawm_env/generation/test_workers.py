"""Jobs of several processes, jobs that are killed, and jobs on Ray."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.sanawm_env.generation.jobs import assert_same_episodes, finished, job, record, stored

from sanawm_env.errors import MissingExtraError, StorageError, WorkerError
from sanawm_env.generation import generate, local
from sanawm_env.world import WorldModel

RAY = importlib.util.find_spec("ray") is not None
COMMAND = """
import sys
from pathlib import Path
from tests.sanawm_env.generation.jobs import job
from sanawm_env.generation import generate
if __name__ == "__main__":
    generate(job(Path(sys.argv[1]), bundle=sys.argv[2], workers=int(sys.argv[3]), episodes=24, durable=False))
"""


def wait_for(folder: Path, lines: int, seconds: float = 120.0) -> None:
    """Returns when the records below a folder have so many lines."""
    end = time.monotonic() + seconds
    while finished(folder) < lines:
        assert time.monotonic() < end, "no episode was finished"
        time.sleep(0.02)


@pytest.mark.slow
def test_kill_and_go_on(tiny_bundle: Path, tiny_model: WorldModel, tmp_path: Path) -> None:
    """kill -9 of a job with one process and of one with two: run again, each makes exactly what is missing."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    root = str(Path(__file__).parents[3])
    for workers in (1, 2):
        out, lost = tmp_path / f"by-{workers}", 3 * workers  # of a batch that was just being stored
        told = [sys.executable, str(script), str(out), str(tiny_bundle), str(workers)]
        with subprocess.Popen(told, env=os.environ | {"PYTHONPATH": root}, stderr=subprocess.DEVNULL) as running:
            wait_for(out, lost + 1)
            running.send_signal(signal.SIGKILL)
        before = finished(out)
        again = job(out, bundle=str(tiny_bundle), episodes=24, durable=False)
        for _ in range(50):
            try:
                rest = generate(again)
                break
            except StorageError:  # an orphan has not noticed yet that its parent is gone
                time.sleep(0.2)
        assert 0 < rest["made_now"] <= 24 - (before - lost)
        assert record(out).keys() == stored(out).keys() == set(range(24))
        assert not (out / "parts").exists()
    assert_same_episodes(stored(tmp_path / "by-1"), stored(tmp_path / "by-2"))


@pytest.mark.slow
def test_a_lost_worker_leaves_what_it_had_finished(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(tmp_path, bundle=str(tiny_bundle), workers=2, episodes=16, durable=False)
    children = []
    start = local.multiprocessing.get_context("spawn").Process.start

    def started(process: object) -> None:
        start(process)
        children.append(process)
        if len(children) == 2:
            threading.Thread(target=lambda: (wait_for(tmp_path, 3), children[0].kill())).start()

    monkeypatch.setattr(local.multiprocessing.get_context("spawn").Process, "start", started)
    with pytest.raises(WorkerError, match=r"worker 0 ended early with exit status -9, .* Run the same command again"):
        generate(config)
    before = stored(tmp_path).keys()
    assert set(range(1, 16, 2)) <= before, "the other worker finishes its share"
    assert len(before) < 16
    monkeypatch.undo()
    assert generate(job(tmp_path, bundle=str(tiny_bundle), episodes=16))["stored"] == 16
    assert stored(tmp_path).keys() == set(range(16))


@pytest.mark.skipif(RAY, reason="Ray is installed here")
def test_ray_is_an_extra(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'sanawm-env\[ray\]'"):
        generate(job(tmp_path, bundle=str(tiny_bundle), launcher="ray"))


@pytest.mark.slow
@pytest.mark.skipif(not RAY, reason="Ray is not installed here (extra: ray)")
def test_ray_replaces_a_lost_worker(tiny_bundle: Path, tiny_model: WorldModel, tmp_path: Path) -> None:
    import psutil

    out = tmp_path / "ray"
    config = job(out, bundle=str(tiny_bundle), launcher="ray", workers=2, threads=1, episodes=40, durable=False)
    killed = []

    def kill() -> None:
        wait_for(out, 4)
        mine = psutil.Process().children(recursive=True)
        actors = [one for one in mine if "ray::Actor" in " ".join(one.cmdline())]
        actors[0].kill()
        killed.append(actors[0].pid)

    thread = threading.Thread(target=kill)
    thread.start()
    told = generate(config)
    thread.join()
    assert killed and told["stored"] == 40 and stored(out).keys() == set(range(40))
    generate(job(tmp_path / "alone", episodes=40, durable=False, bundle=str(tiny_bundle)))
    assert_same_episodes(stored(out), stored(tmp_path / "alone"))
