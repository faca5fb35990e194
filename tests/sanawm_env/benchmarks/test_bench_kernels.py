from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sanawm_env import cli
from sanawm_env.benchmarks import kernels
from sanawm_env.benchmarks.kernels import OPS, BenchKernels
from sanawm_env.errors import BackendError, ConfigError


def test_a_run_appends_one_line_with_both_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernels.jsonl"
    report = kernels.run(
        BenchKernels(device="cpu", size=("tiny",), precision=("fp32",), batch=(2,), repeats=1, warmup=1, out=out)
    )
    assert [json.loads(line) for line in out.read_text().splitlines()] == [report]
    assert [row["op"] for row in report["rows"]] == list(OPS)
    assert {"commit", "cpu", "gpu", "torch"} <= set(report)
    for row in report["rows"]:
        assert row["reference_us"] > 0
        # Where there is no GPU the tests run the fused form in Triton's interpreter.
        assert row["fused_us"] > 0 and row["difference"] <= kernels.TOLERANCE["fp32"]
    assert capsys.readouterr().out.count("reference") == len(OPS)


def test_without_triton_the_reference_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "fused_obstacle", lambda device: "triton is not installed")
    row = kernels.measure(lambda backend: torch.ones(1), torch.device("cpu"), 1, 1, 0.0)
    assert row["fused_us"] is None and row["difference"] is None and row["reference_us"] is not None


def test_nothing_is_timed_when_the_forms_differ() -> None:
    with pytest.raises(BackendError, match="nothing was timed"):
        kernels.checked(lambda backend: torch.full((2,), 1.0 + (backend == "fused")), 0.1)
    with pytest.raises(BackendError, match="nothing was timed"):
        kernels.checked(lambda backend: torch.full((2,), float("nan") if backend == "fused" else 1.0), 0.1)


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": 0}, {"batch": ()}])
def test_rejects_settings_that_measure_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected 1 or more"):
        BenchKernels(**wrong)  # type: ignore[arg-type]


def test_main_prints_the_error_and_returns_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["repeat=3"]) == 2
    assert "did you mean 'repeats'" in capsys.readouterr().err


def test_the_command_prints_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ["size=[tiny]", "ops=[philox]", "repeats=1", "warmup=1"]
    assert cli.main(["bench", "kernels", "--device", "cpu", "--out", str(tmp_path / "a.jsonl"), *told]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["benchmark"] == "kernels"
