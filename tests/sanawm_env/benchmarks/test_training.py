from __future__ import annotations

import json
from pathlib import Path

import pytest

from sanawm_env.benchmarks import training
from sanawm_env.benchmarks.training import BenchTraining, run
from sanawm_env.bundle import save as save_bundle
from sanawm_env.errors import ConfigError
from sanawm_env.world import WorldModel


def test_both_forms_train_the_same_clips(
    tiny_model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Compiling takes minutes on a CPU: the plain form twice, whose losses must then be the same.
    monkeypatch.setattr(training, "FORMS", {"plain": False, "compiled": False})
    save_bundle(tmp_path / "bundle", tiny_model, {})
    told: list[str] = []
    config = BenchTraining(
        bundle=str(tmp_path / "bundle"), steps=2, warmup=1, batch=2, latents=5, out=tmp_path / "a.jsonl"
    )
    report = run(config, told.append)
    assert report["loss_difference"] == 0 and len(report["rows"]["plain"]["losses"]) == 3
    assert report["speedup"] == pytest.approx(
        report["rows"]["plain"]["ms"] / report["rows"]["compiled"]["ms"], abs=1e-3
    )
    assert json.loads((tmp_path / "a.jsonl").read_text())["speedup"] == report["speedup"] and len(told) == 3
    with pytest.raises(ConfigError, match="steps is 0"):
        BenchTraining(steps=0)
