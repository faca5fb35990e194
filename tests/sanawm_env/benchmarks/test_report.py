"""The page of figures says what was measured, against what it was to reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sanawm_env import cli
from sanawm_env.benchmarks.counts import counted
from sanawm_env.benchmarks.goals import GOALS
from sanawm_env.benchmarks.report import MEASURED, newest, page
from sanawm_env.errors import ConfigError, StorageError


def line(step_ms: float, **changes: Any) -> dict[str, Any]:
    rows = {"distilled.denoiser_pass": {"ms": {"p50": step_ms}}, "distilled.memory": {"captured": True}}
    told: dict[str, Any] = {
        "benchmark": "sana_wm",
        "dtype": "bfloat16",
        "settings": {"precision": "auto"},
        "rows": rows,
    }
    return told | {"gpu": "a card", "time": "then", "commit": "c" * 40, "torch": "2"} | changes


def test_work_is_that_of_the_arithmetic_floors() -> None:
    work = {one.what: one for one in counted()}
    for what in ("stage 1, one denoising step", "causal decoding, 24 frames"):
        goal = next(goal for goal in GOALS if goal.what == what)
        assert goal.floor is not None
        assert work[what].flops / 790e12 == pytest.approx(goal.floor / 1000, rel=0.05)
    # A scan is bound by memory: its floor is what must be moved.
    assert work["GDN scan, T = 3, state in and out"].bytes / 4.3e12 == pytest.approx(12e-6, rel=0.1)


def test_the_last_line_of_a_kind_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    kernels = {"op": "main_scan", "size": "full", "batch": 1, "precision": "bf16", "fused_us": 49.0}
    first.write_text(
        "".join(json.dumps(told) + "\n" for told in (line(50.0), {"benchmark": "kernels", "rows": [kernels]}))
    )
    second.write_text(json.dumps(line(31.5)) + "\n" + json.dumps(line(20.0, settings={"precision": "fp8"})))
    text = page(newest([first, second]), "picture.png")
    assert "| stage 1, one denoising step | 139 / 73 | 19 ms | <= 32 ms | 31.5 ms | met |" in text
    assert "| GDN scan, T = 3, state in and out | 224 | 12 us | <= 50 us | 49 us | met |" in text
    assert "| refiner, one block (3 steps and capture) | 830 / 670 | 431 ms | <= 520 ms | not measured |  |" in text
    refined = {"refiner.block": {"ms": {"p50": 500.0}}}
    with first.open("a") as file:
        file.write(json.dumps(line(0.0, rows=refined, commit="d" * 40)) + "\n")
    text = page(newest([second, first]), "picture.png")
    assert "| 31.5 ms | met |" not in text and "| 50 ms | missed |" in text and "| 500 ms | met |" in text
    assert "commit dddddddddddd" in text and "commit cccccccccccc" in text
    text = page(newest([first, second]), "picture.png")
    assert "`sana_wm bfloat16`: then, commit cccccccccccc, a card, torch 2, steps replayed from CUDA graphs" in text


def test_the_command_draws_what_the_package_brings(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture (extra: metrics)")
    assert cli.main(["bench", "report", f"out={tmp_path / 'page.md'}"]) == 0
    assert (tmp_path / "page.md").read_text().startswith("# Performance")
    with Image.open(tmp_path / "media" / "page.png") as picture:
        assert picture.size[0] > 600 and len(picture.convert("RGB").getcolors(2**24)) > 20


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "other").write_text("[1]")
    with pytest.raises(ConfigError, match="hold no line"):
        newest([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="no file of `sanawm bench`"):
        newest([tmp_path / "other"])
    with pytest.raises(StorageError, match="cannot be read"):
        newest([tmp_path / "absent"])
    assert newest([MEASURED])
