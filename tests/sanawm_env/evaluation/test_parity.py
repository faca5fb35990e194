"""The parity gate: the same worlds in two precisions, and figures that agree with one another."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sanawm_env import bundle, bundle_choice, cli
from sanawm_env.errors import BackendError, ConfigError, StateError
from sanawm_env.evaluation import parity as module
from sanawm_env.evaluation.parity import EvalPrecisionParity, parity, run
from sanawm_env.evaluation.summary import parity_summary
from sanawm_env.model.config import tiny_config
from sanawm_env.model.quantised import Quantisation
from sanawm_env.quantise import quantised
from sanawm_env.world import WorldModel

SIDES = {"high", "low"}


def check(report: dict[str, Any], chunks: int) -> None:
    assert len(report["chunks"]) == chunks
    for row in report["chunks"]:
        assert row.keys() == {"latent_error", "psnr_db", "pose_error_degrees", "pose_error_metres"}
        assert all(row[name].keys() == SIDES for name in row if name != "latent_error")
    assert report["passed"] == all(gap <= report["limit_db"] for gap in report["gap_db"].values())
    json.dumps(report, allow_nan=False)


@pytest.fixture(scope="module")
def tiny() -> WorldModel:
    return WorldModel.random(tiny_config(), seed=2)


def test_a_model_is_at_par_with_itself(tiny: WorldModel) -> None:
    report = parity(tiny, tiny, scenes=2, chunks=2)
    check(report, 2)
    assert report["passed"] and report["high"] == report["low"] == "fp32"
    assert all(row["latent_error"] == 0 for row in report["chunks"])
    assert set(report["gap_db"].values()) == {0.0}


def test_the_gate_closes(tiny: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    low = quantised(tiny, Quantisation(precision="nvfp4"))
    monkeypatch.setattr(module, "LIMIT_DB", -100.0)
    report = parity(tiny, low, scenes=2, chunks=1)
    check(report, 1)
    assert not report["passed"] and "not passed" in parity_summary(report)
    assert report["low"].startswith("nvfp4 weight-only") and report["layers"] == "default"


def test_what_cannot_be_compared(tiny: WorldModel) -> None:
    low = quantised(tiny, Quantisation(precision="nvfp4"))
    with pytest.raises(ConfigError, match="the high precision is nvfp4 weight-only"):
        parity(low, low)
    other = WorldModel(tiny.config, tiny.denoiser, tiny.autoencoder, "another")
    with pytest.raises(StateError, match="compare one bundle in two precisions"):
        parity(tiny, other)
    with pytest.raises(ConfigError, match="chunks is 0"):
        EvalPrecisionParity(chunks=0)
    told = EvalPrecisionParity(device="cpu", precision="fp8")
    with pytest.raises(BackendError, match="'fp8' cannot run on cpu"):
        run(told)
    with pytest.raises(ConfigError, match="layers is 'most'"):
        run(replace(told, precision="nvfp4", layers="most"))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_shipped_world() -> None:
    report = run(EvalPrecisionParity(device="cpu", scenes=2, chunks=1))
    check(report, 1)
    row = report["chunks"][0]
    assert report["bundle_sha256"] == bundle.load(device="cpu").fingerprint
    assert 0.01 < row["latent_error"] < 0.3
    assert min(row["psnr_db"].values()) > 25, "a trained world looks like its rooms"
    # The gate is for more scenes than a test has time for: two vary by more than it allows.
    assert report["gap_db"]["psnr"] < 1.0
    assert report["gap_db"]["psnr"] == pytest.approx(row["psnr_db"]["high"] - row["psnr_db"]["low"], abs=2e-4)
    assert 0.5 < report["share_of_bf16"] < 0.6, "Rooms reads no text, so that less of it is quantised"


def test_the_command(tiny: WorldModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bundle_choice, "load", lambda bundle, device, **options: tiny)
    arguments = ["eval", "precision-parity", "--scenes", "2", "--chunks", "1", "--device", "cpu"]
    assert cli.main(arguments) == 0
    assert "allowed 0.3 dB: passed" in capsys.readouterr().out
    monkeypatch.setattr(module, "LIMIT_DB", -1.0)
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--json"])
    assert stopped.value.code == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False
