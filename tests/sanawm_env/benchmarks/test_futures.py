"""The benchmark of many futures: what it says of each measurement, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sanawm_env.benchmarks import futures
from sanawm_env.benchmarks.futures import BenchFutures
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import BackendError, ConfigError
from sanawm_env.world import WorldModel


def test_a_run_appends_one_line_with_everything(
    tiny_model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(futures, "SanaWMEnv", lambda *_, task, **__: SanaWMEnv(tiny_model, task=task))
    out = tmp_path / "bench" / "futures.jsonl"
    report = futures.run(BenchFutures(futures=(1, 3), age=1, repeats=1, warmup=0, out=out))
    assert [json.loads(line) for line in out.read_text().splitlines()] == [report]
    assert [(row["futures"], row["decode"]) for row in report["rows"]] == [
        (1, False),
        (1, True),
        (3, False),
        (3, True),
    ]
    for row in report["rows"]:
        assert (row["steps"], row["world_seconds"]) == (2, 1.6)  # chunks of 8 frames at 10 frames/s
        assert row["fork_ms"] > 0 and row["rollout_ms"] > 0 and row["frames_per_second"] > 0
        tier = tiny_model.empty_state(1, decoder=row["decode"])
        assert row["bytes_each"] == tier.nbytes()["total"]
    assert capsys.readouterr().out.count("MiB a future") == 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"futures": ()}, "futures \\[\\]"), ({"repeats": 0}, "repeats 0"), ({"seconds": 0.0}, "seconds is 0.0")],
)
def test_wrong_settings_are_named(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        BenchFutures(**wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what this machine lacks")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="pass device=cpu"):
        futures.run(BenchFutures(device="cuda", out=tmp_path / "none.jsonl"))
    assert not (tmp_path / "none.jsonl").exists()
