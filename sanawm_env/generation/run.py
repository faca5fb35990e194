"""`generate`: from a job to a folder with its episodes, their record and a summary, however often it is cut off."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from sanawm_env import bundle
from sanawm_env.datasets.atomic import appearing
from sanawm_env.datasets.layout import METADATA
from sanawm_env.datasets.union import merge
from sanawm_env.errors import ConfigError, StorageError
from sanawm_env.generation import local
from sanawm_env.generation.config import Generate
from sanawm_env.generation.record import STORE, Line, adopt, finished, settled, tidy
from sanawm_env.generation.summary import report, write_summary
from sanawm_env.generation.worker import Timing, Worker, place_of
from sanawm_env.generation.writing import count_writers
from sanawm_env.world import WorldModel

JOB, PARTS = "job.json", "parts"


def generate(config: Generate, *, model: WorldModel | None = None) -> dict[str, Any]:
    """Makes the episodes of a job that its folder does not have yet; returns the report that is written beside them.

    config.out gets episodes.zarr (the store), episodes.jsonl (the record, a line an episode), job.json, summary.json
    and summary.png. Called again, it goes on: no episode is made twice, none is left out. Workers of their own
    processes, and the processes that write for one, have stores of their own below `parts`, which are merged at the
    end. model: takes the place of the one that the config names, for one worker in this process.

    ConfigError: the folder holds another job, or a value does not fit the world. StorageError: it cannot be written.
    WorkerError: a worker was lost; what it had finished is kept.
    """
    began = time.perf_counter()
    config.out.mkdir(parents=True, exist_ok=True)
    _claim(config, model)
    _gather(config)
    done = finished(config.out, config.job_id)
    missing = [number for number in range(config.episodes) if number not in done]
    timings: list[Timing] = []
    with tqdm(total=config.episodes, initial=len(done), unit="episode", desc="generate", disable=None) as bar:
        try:
            timings = _launch(config, missing, model, lambda count: bar.update(count)) if missing else []
        finally:
            _gather(config)
    lines = finished(config.out, config.job_id)
    told = report(config, lines, timings, time.perf_counter() - began)
    write_summary(config, lines, told)
    return told


def _launch(
    config: Generate, missing: Sequence[int], model: WorldModel | None, progress: Callable[[int], object]
) -> list[Timing]:
    if model is None and config.launcher == "ray":
        from sanawm_env.generation.on_ray import launch

        return launch(config, missing, config.out / PARTS, progress)
    devices = [None] if model is not None else local.devices(config)
    if len(devices) > 1:
        return local.launch(config, missing, config.out / PARTS, devices, progress)

    def done(line: Line) -> None:
        progress(1)

    where = place_of(config, devices[0], model)
    folder = local.part(config.out / PARTS, 0) if count_writers(config, where) else config.out
    with Worker(config, folder, device=devices[0], model=model, done=done) as worker:
        return [worker.run(missing)]


def _claim(config: Generate, model: WorldModel | None) -> None:
    """Writes what decides the episodes, or compares it with what is written."""
    path = config.out / JOB
    ours = config.job | {"bundle_sha256": _fingerprint(config, model)}
    if not path.exists():
        with appearing(path) as draft:
            draft.write_text(json.dumps(ours, indent=1) + "\n", encoding="utf-8")
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read ({error}); restore it, or choose another folder") from error
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"{name} is {ours.get(name)!r}, but {config.out} holds a job with {theirs.get(name)!r}; go on with "
                "that one, or choose another folder with out=."
            )


def _fingerprint(config: Generate, model: WorldModel | None) -> str | None:
    if model is not None:
        return model.fingerprint
    return None if config.sana_wm is not None else bundle.fingerprint(config.bundle)


def _gather(config: Generate) -> None:
    """Moves what workers have left into the store and the record of the job."""
    parts = sorted((config.out / PARTS).glob("*")) if (config.out / PARTS).is_dir() else []
    stores = [part / STORE for part in parts if (part / STORE / METADATA).exists()]
    for store in (*stores, config.out / STORE):
        settled(store)
    for part in parts:
        adopt(config.out, part, finished(config.out, config.job_id))
    if stores:
        with tqdm(desc="merging", unit="episode", disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            merge(stores, config.out / STORE, resume=True, spend=True, durable=config.durable, progress=progress)
    if parts:
        shutil.rmtree(config.out / PARTS)
    tidy(config.out, config.job_id)
