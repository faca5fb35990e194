from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanawm_env.benchmarks.adapting import BenchAdapting, run
from sanawm_env.errors import BackendError, ConfigError


def test_adapters_train_beside_every_variant(tmp_path: Path) -> None:
    told: list[str] = []
    config = BenchAdapting(
        variants=("teacher", "distilled", "bidirectional"),
        size="tiny",
        latents=7,
        steps=1,
        device="cpu",
        out=tmp_path / "a.jsonl",
    )
    reports = run(config, told.append)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [one["variant"] for one in lines] == list(config.variants) and len(told) == 3
    for report in reports:
        assert report["ms"] > 0 and report["tokens_per_second"] > 0 and len(report["losses"]) == 2
        assert report["estimate"]["adapter_parameters"] > 0


def test_all_weights_train_over_two_ranks(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    asked = ['variants=["teacher"]', "size=tiny", "method=full", "latents=7", "steps=1", "device=cpu", f"out={out}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, "-m", "sanawm_env.benchmarks.adapting", *asked], check=True, timeout=240)
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["gpus"] == 2 and line["settings"]["method"] == "full" and line["dtype"] == "float32"
    assert line["estimate"]["parameters"] > 0 and {"weights", "gathered", "activations"} <= set(line["estimate"])
    first, second = line["losses"]
    assert second != first and math.isfinite(second)  # the weights have moved


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="steps is 0"):
        BenchAdapting(steps=0)
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="size is 'full' on a CPU"):
            run(BenchAdapting())
