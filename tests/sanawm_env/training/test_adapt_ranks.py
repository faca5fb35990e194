"""Fine-tuning a released model by two processes: whole weights in parts learn as those that each process has whole."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.public_layouts import SIZE, write_many_step_release
from tests.sanawm_env.training.test_adapt_released import write_store

from sanawm_env import bundle

ROOT = Path(__file__).parents[3]
# The command, once for each job that is asked for: what it imports takes longer than a job.
RANK = """
import json, os, runpy, sys
for asked in sys.argv[1:]:
    os.environ["MASTER_PORT"], *words = json.loads(asked)
    sys.argv[1:] = words
    try:
        runpy.run_module("sanawm_env.training", run_name="__main__")
    except SystemExit as end:
        assert not end.code
"""


def job(out: Path, store: Path, release: Path, **changes: Any) -> list[str]:
    """Words of the command that adapts a release."""
    asked = {"variant": "teacher", "source": str(release), "text_encoder": str(release / "gemma2"), "precision": "fp32"}
    told: dict[str, Any] = {"data": str(store), "out": str(out), "sana_wm": asked | {"size": SIZE}, "device": "cpu"}
    told |= {"steps": 2, "latents": 7, "warmup": 1, "validation": 0.0, "ema": 0.1, "lr": 1e-2} | changes
    return ["adapt", *(f"{key}={x if isinstance(x, str) else json.dumps(x)}" for key, x in told.items())]


def run_by_two(jobs: list[list[str]]) -> None:
    """Runs commands one after another on two ranks."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    ours = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    asked = [json.dumps([str(port), *words]) for port, words in zip(free_ports(len(jobs)), jobs, strict=True)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, *asked], env={**os.environ, **ours, "RANK": str(rank)}, cwd=ROOT)
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120 * len(jobs)) for rank in ranks] == [0, 0]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def test_weights_in_parts_are_adapted_as_whole_ones(tmp_path: Path) -> None:
    release, store = write_many_step_release(tmp_path / "teacher", "ChunkCausalGDN"), write_store(tmp_path / "s.zarr")
    parts, whole, adapter = (tmp_path / name for name in ("parts", "whole", "lora"))
    cache = {"cache": str(tmp_path / "cache")}
    full = cache | {"method": "full"}
    run_by_two(
        [
            job(parts, store, release, **full, scaling={"sharded": True, "checkpointed": True}),
            job(whole, store, release, **full, scaling={"checkpointed": False}),
            job(adapter, store, release, **cache, rank=2),
        ]
    )
    one, other = (
        bundle.load(folder / "bundle", device="cpu", precision="fp32").denoiser.state_dict()
        for folder in (parts, whole)
    )
    for name, x in one.items():
        torch.testing.assert_close(x, other[name], rtol=1e-3, atol=1e-5)
    ups = [x for name, x in load_file(adapter / "adapter.safetensors").items() if "lora_B" in name]
    assert any(bool(x.abs().max() > 0) for x in ups)
