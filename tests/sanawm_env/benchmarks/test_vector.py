from __future__ import annotations

import json
from pathlib import Path

import pytest

from sanawm_env import cli
from sanawm_env.benchmarks import vector
from sanawm_env.benchmarks.vector import BenchVector
from sanawm_env.errors import ConfigError
from sanawm_env.world import WorldModel


def test_a_run_appends_one_line_with_batches_beside_the_scalar_environment(
    tiny_model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vector, "load", lambda *_, **__: tiny_model)
    told = ["--num-envs", "1", "2", "--steps", "2", "warmup=1", "resident=1", "task=drive"]
    out = tmp_path / "vector.jsonl"
    assert cli.main(["bench", "vector", "--device", "cpu", "--out", str(out), *told]) == 0
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    kinds = [(row["num_envs"], row["observation"], row["arrays"]) for row in report["vector"]]
    assert kinds == [(n, o, a) for n in (1, 2) for o in ("last", "dict") for a in ("torch", "numpy")]
    for row in report["vector"]:
        assert row["frames_per_second"] > 0 and 0 < row["beside_model_share"] < 1
        # Every kind of state is a batch of single ones, and a CPU keeps no count of what is allocated.
        assert row["bytes_a_world"]["nbytes"] == report["state_bytes"] and row["bytes_a_world"]["measured"] is None
    assert report["scalar"]["step_ms"]["p50"] <= report["scalar"]["step_ms"]["p90"]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"warmup": 0}, {"num_envs": (0,)}, {"observation": ()}])
def test_rejects_settings_that_measure_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected 1 or more"):
        BenchVector(**wrong)  # type: ignore[arg-type]


def test_main_prints_the_error_and_returns_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert vector.main(["num_env=[3]"]) == 2
    assert "did you mean 'num_envs'" in capsys.readouterr().err
