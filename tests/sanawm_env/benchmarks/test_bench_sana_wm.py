"""Every line of the benchmark of the released model, on a tiny one of the same build."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sanawm_env import cli
from sanawm_env.benchmarks import ours, sana_wm
from sanawm_env.benchmarks.rows import PARTS, Bench, BenchSanaWM, config_of
from sanawm_env.benchmarks.sana_wm import real_time_factors
from sanawm_env.bundle import empty_parts
from sanawm_env.errors import BackendError, ConfigError
from sanawm_env.model.config import DenoiserConfig
from sanawm_env.model.public_keys import Variant
from sanawm_env.world import WorldModel


def quick(folder: Path, **changes: Any) -> BenchSanaWM:
    settings: dict[str, Any] = {
        "size": "tiny",
        "device": "cpu",
        "repeats": 2,
        "warmup": 1,
        "public_repeats": 1,
        "chunks": 5,
        "marks": (3, 5),
        "teacher_latents": 7,
        "teacher_steps": 2,
        "lengths": (4, 7),
        "check_chunks": 4,
        "scratch": folder,
        "out": folder / "bench" / "sana_wm.jsonl",
    }
    return BenchSanaWM(**settings | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def report(folder: Path, lines: list[str]) -> dict[str, Any]:
    return sana_wm.run(quick(folder), lines.append)


def test_everything_is_measured_and_kept(report: dict[str, Any], folder: Path, lines: list[str]) -> None:
    assert report["failed"] == [] and report["skipped"] == []
    parts = [json.loads(line) for line in (folder / "bench" / "sana_wm.jsonl").read_text().splitlines()]
    assert len(parts) == len(PARTS)
    assert {name: row for part in parts for name, row in part["rows"].items()} == report["rows"]
    assert all(part["commit"] == report["commit"] and part["settings"] == report["settings"] for part in parts)
    assert {"time", "commit", "cpu", "torch", "dtype", "settings"} <= set(report)
    assert not any(isinstance(value, str) and "/" in value for value in report["settings"].values())
    assert set(report["rows"]) == {
        *(f"distilled.{row}" for row in ("memory", "latents", "decoded", "pipelined", "conditioning")),
        *(f"distilled.{row}" for row in ("denoiser_pass", "commit_pass", "decode")),
        *("refiner.memory", "refiner.block", "refiner.pipelined"),
        *("teacher.clip", "bidirectional.4", "bidirectional.7"),
        *("diffusers.4", "diffusers.7", "diffusers.decode", "check"),
        *(name for name in report["rows"] if name.startswith("sglang")),
    }
    assert [line.split(":")[0] for line in lines] == list(report["rows"])


def test_times_are_positive_and_peaks_known(report: dict[str, Any]) -> None:
    timed = {name: row for name, row in report["rows"].items() if any(key.endswith("ms") for key in row)}
    assert len(timed) >= 14
    for row in timed.values():
        assert row["peak_memory_bytes"] > 0
        for key, value in row.items():
            if isinstance(value, dict) and key.endswith("ms"):
                assert 0 < value["p50"] <= value["p90"]
    clip = report["rows"]["teacher.clip"]
    # Two chunks, the second half a schedule later than the first.
    assert clip["passes"] == 3 and 0 < clip["pass_ms"]["p50"] <= clip["longest_pass_ms"]
    factors = report["real_time_factor"]
    assert factors["without_refiner"] > factors["with_refiner"] > 0


def test_memory_is_flat_and_told_by_part(report: dict[str, Any]) -> None:
    row = report["rows"]["distilled.decoded"]
    assert row["holds"] == {"memory_flat": True}
    assert [reading["chunks"] for reading in row["memory"]] == [3, 5]
    state = report["rows"]["distilled.memory"]["state_bytes"]
    assert state["total"] == row["memory"][0]["state_bytes"] == sum(state.values()) - state["total"]
    assert report["rows"]["refiner.memory"]["state_bytes"]["history"] > 0


def test_a_world_goes_on_the_same(report: dict[str, Any]) -> None:
    holds = report["rows"]["check"]["holds"]
    assert set(holds) == {
        "snapshot_identical",
        "load_identical",
        "fork_identical",
        "fork_in_a_batch_within_tolerance",
    }
    assert all(holds.values())


def test_diffusers_computes_the_same(report: dict[str, Any]) -> None:
    assert all(report["rows"][f"diffusers.{row}"]["difference"] < 1e-3 for row in ("4", "7", "decode"))


def test_a_missing_sglang_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sglang", None)
    lines: list[str] = []
    report = sana_wm.run(quick(tmp_path, parts=("sglang",)), lines.append)
    assert report["rows"]["sglang"]["status"].startswith("not importable") and report["failed"] == []
    assert any(line.startswith("sglang: status not importable") for line in lines)
    assert report["skipped"] == [name for name in PARTS if name != "sglang"]


def test_a_low_precision_is_that_of_the_refiner_too(report: dict[str, Any], tmp_path: Path) -> None:
    low = sana_wm.run(quick(tmp_path, parts=("refiner",), precision="nvfp4"), lambda _: None)
    assert low["failed"] == [] and low["rows"]["refiner.block"]["ms"]["p50"] > 0
    told, plain = low["rows"]["refiner.memory"], report["rows"]["refiner.memory"]
    assert (plain["execution"], told["execution"]) == ("fp32", "nvfp4 weight-only (reference)")
    assert told["weight_bytes"]["refiner"] < plain["weight_bytes"]["refiner"]
    assert low["real_time_factor"] == {}, "no chunk was measured"


def test_what_fails_is_told_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> dict[str, Any]:
        raise RuntimeError("out of\nmemory")

    whole = Bench.world

    def world(bench: Bench, variant: Variant) -> WorldModel:
        return broken() if variant == "teacher" else whole(bench, variant)  # type: ignore[return-value]

    monkeypatch.setattr(ours, "stream", broken)
    monkeypatch.setattr(Bench, "world", world)
    settings = quick(tmp_path, parts=("distilled", "teacher", "check"))
    report = sana_wm.run(settings)
    assert report["failed"] == ["distilled.latents", "distilled.decoded", "teacher"]
    assert report["rows"]["teacher"] == {"error": "RuntimeError: out of memory"}
    assert report["rows"]["distilled.decode"]["ms"]["p50"] > 0 and all(report["rows"]["check"]["holds"].values())
    assert "teacher: error RuntimeError: out of memory" in capsys.readouterr().out
    monkeypatch.setattr(sana_wm, "run", lambda _: report)
    assert sana_wm.main([]) == 1
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "sana-wm"])
    assert stopped.value.code == 1


def test_memory_that_grows_is_a_failure(tmp_path: Path) -> None:
    bench = Bench(quick(tmp_path), torch.device("cpu"), lambda _: None)
    bench.row("grown", lambda: {"holds": {"memory_flat": False}})
    bench.row("flat", lambda: {"holds": {"memory_flat": True}})
    assert bench.failed == ["grown"]


def test_numbers_that_are_not_finite_are_a_failure(tmp_path: Path) -> None:
    bench = Bench(quick(tmp_path), torch.device("cpu"), lambda _: None)
    bench.row("nan", lambda: bench.repeated(lambda: torch.tensor([1.0, float("nan")])))
    assert "NaN" in bench.rows["nan"]["error"] and bench.failed == ["nan"]


def test_the_full_size_is_the_released_one() -> None:
    config = config_of("full", "distilled")
    assert config.denoiser == DenoiserConfig()
    assert (config.grid, config.frames_per_chunk, config.fps) == ((22, 40), 24, 16.0)
    assert config.timesteps == (1000, 960, 889, 727) and config.autoencoder.decoder_causal
    assert sum(x.numel() for x in empty_parts(config)["denoiser"].parameters()) == 2_661_800_448
    clip = config_of("full", "bidirectional").denoiser
    assert (clip.window_chunks, clip.behaviour) == (None, "diffusers")


def test_real_time_factors_are_of_what_was_measured() -> None:
    assert real_time_factors({}) == {}
    rows: dict[str, Any] = {"distilled.decoded": {"frames_per_chunk": 24, "chunk_ms": {"p50": 750.0}}}
    rows["refiner.block"] = {"error": "out of memory"}
    assert real_time_factors(rows) == {"without_refiner": 2.0}
    rows["refiner.block"] = {"ms": {"p50": 750.0}}
    assert real_time_factors(rows) == {"without_refiner": 2.0, "with_refiner": 1.0}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"repeats": 0}, "repeats is 0"),
        ({"chunks": 3}, "chunks is 3"),
        ({"marks": (41,)}, "marks"),
        ({"lengths": ()}, "lengths"),
        ({"check_chunks": 1}, "check_chunks"),
    ],
)
def test_rejects_settings_that_measure_nothing(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BenchSanaWM(**wrong)


def test_full_size_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="size=tiny"):
        sana_wm.run(BenchSanaWM(device="cpu"))
    assert sana_wm.main(["sise=tiny"]) == 2
    assert "did you mean 'size'" in capsys.readouterr().err
