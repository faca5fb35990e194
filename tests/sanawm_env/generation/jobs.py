"""Small jobs, and what is in their folders, for the tests of bulk generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.verify import verify
from sanawm_env.generation import Filters, Generate
from sanawm_env.generation.record import RECORD, STORE, Line, lines

NO_LIMITS = Filters(contrast=None, sharpness=None, drift=None)


def job(out: Path, **options: Any) -> Generate:
    """Episodes of two steps, the second cut off by the horizon."""
    return Generate(**{"out": out, "episodes": 5, "frames": 12, "batch": 3, "filters": NO_LIMITS, **options})


def record(out: Path) -> dict[int, Line]:
    """The record by episode, of which each has one line."""
    told = list(lines(out))
    assert len({line["episode"] for line in told}) == len(told)
    return {line["episode"]: line for line in told}


def finished(out: Path) -> int:
    """Lines of all records of a job, which may be running."""
    # Not below the stores, where folders come and go.
    return sum(path.read_bytes().count(b"\n") for where in ("", "parts/*/") for path in out.glob(where + RECORD))


def stored(out: Path) -> dict[int, dict[str, np.ndarray]]:
    """The episodes of a sound store by number."""
    assert not verify(out / STORE).problems
    store = EpisodeStore(out / STORE)
    numbers = [int.from_bytes(store.identity(index)[8:], "big") for index in range(len(store))]
    assert len(set(numbers)) == len(numbers), "an episode is there twice"
    return {number: store.read(index, valid_only=False) for index, number in enumerate(numbers)}


def assert_same_episodes(one: dict[int, dict[str, np.ndarray]], other: dict[int, dict[str, np.ndarray]]) -> None:
    """Bit for bit, but for the time that they took."""
    assert one.keys() == other.keys()
    for number, arrays in one.items():
        for key in arrays.keys() - {"step_seconds"}:
            np.testing.assert_array_equal(arrays[key], other[number][key], err_msg=f"{number} {key}")
