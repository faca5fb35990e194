from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sanawm_env.benchmarks import store
from sanawm_env.benchmarks.store import BenchStore
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.errors import ConfigError, StorageError

SMALL = {"height": 64, "width": 80, "frames_per_step": 4, "episodes": 2, "steps": 8, "seconds": 0.05, "batch": 4}


def test_a_run_measures_writing_reading_and_training(tmp_path: Path) -> None:
    config = BenchStore(**SMALL, codecs=("jpeg", "av1"), workers=(0, 1), scratch=tmp_path, out=tmp_path / "a.jsonl")
    told: list[str] = []
    report = store.run(config, told.append)
    assert json.loads((tmp_path / "a.jsonl").read_text()) == report
    assert {"time", "commit", "cpu", "cores"} <= set(report)
    assert [(row["codec"], row["durable"]) for row in report["writing"]] == [
        ("jpeg", True),
        ("jpeg", False),
        ("av1", False),
    ]
    assert all(35 < row["psnr"] < 60 for row in report["writing"])
    assert [row["reader"] for row in report["frames"]] == 2 * ["zarr", "sanawm_env", "sanawm_env"]
    assert [row["workers"] for row in report["training"]] == [0, 1]
    assert all(0 < row["waiting"] < 1 and row["steps_per_second"] > 0 for row in report["training"])
    rows = [row for kind in ("writing", "in_order", "frames", "windows") for row in report[kind]]
    rates = [value for row in rows for name, value in row.items() if "_per_s" in name]
    assert len(rates) == 3 * 2 + 2 + 6 + 2 and min(rates) > 0
    assert len(told) == 15
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"], "the stores are gone"


def test_without_loss_there_is_no_psnr(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=(store.ROOMS, store.PICTURES, 16, 20, 3), dtype=np.uint8)
    row = store.write(BenchStore(**SMALL), tmp_path / "a.zarr", "jpegxl", noise, durable=False)
    assert row["psnr"] is None


def test_nothing_is_timed_when_a_frame_is_not_what_zarr_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BenchStore(**SMALL)
    store.write(config, tmp_path / "a.zarr", "jpeg", store.draw(config), durable=False)
    store.check(tmp_path / "a.zarr")
    read = EpisodeStore.rows_at
    monkeypatch.setattr(EpisodeStore, "rows_at", lambda self, key, rows: np.roll(read(self, key, rows), 1, axis=0))
    with pytest.raises(StorageError, match="nothing was timed"):
        store.check(tmp_path / "a.zarr")


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"threads": ()}, {"threads": (0,)}, {"seconds": 0.0}, {"codecs": ()}])
def test_rejects_settings_that_measure_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected 1 or more of each"):
        BenchStore(**wrong)  # type: ignore[arg-type]
