from __future__ import annotations

import json
from pathlib import Path

import pytest

from sanawm_env.benchmarks.logging import BenchLogging, run
from sanawm_env.bundle import save as save_bundle
from sanawm_env.errors import ConfigError
from sanawm_env.world import WorldModel


def test_plain_and_logged_are_measured_in_turns(tiny_model: WorldModel, tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", tiny_model, {})
    told: list[str] = []
    config = BenchLogging(bundle=str(tmp_path / "bundle"), steps=1, turns=2, out=tmp_path / "a.jsonl")
    report = run(config, told.append)
    assert {name: len(values) for name, values in report["turns"].items()} == {"plain": 2, "logged": 2, "logging": 2}
    assert (
        min(*report["milliseconds"].values(), *report["processor_milliseconds"].values()) > 0
        and "a step takes" in told[0]
    )
    assert json.loads((tmp_path / "a.jsonl").read_text())["overhead"] == pytest.approx(report["overhead"])
    with pytest.raises(ConfigError, match="turns 0"):
        BenchLogging(turns=0)
