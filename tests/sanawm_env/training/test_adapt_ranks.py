"""Fine-tuning a released model by two processes: whole weights in parts learn as those that each process has whole."""

from __future__ import annotations

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


def trained(out: Path, store: Path, release: Path, **changes: Any) -> Path:
    """What two ranks of the command leave."""
    asked = {"variant": "teacher", "source": str(release), "text_encoder": str(release / "gemma2"), "precision": "fp32"}
    told: dict[str, Any] = {"data": str(store), "out": str(out), "sana_wm": asked | {"size": SIZE}, "device": "cpu"}
    told |= {"steps": 2, "latents": 7, "warmup": 1, "validation": 0.0, "ema": 0.1, "lr": 1e-2} | changes
    words = [f"{key}={x if isinstance(x, str) else json.dumps(x)}" for key, x in told.items()]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    ours = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "sanawm_env.training", "adapt", *words],
            env={**os.environ, **ours, "PYTHONPATH": path, "RANK": str(rank)},
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    return out


def test_weights_in_parts_are_adapted_as_whole_ones(tmp_path: Path) -> None:
    release, store = write_many_step_release(tmp_path / "teacher", "ChunkCausalGDN"), write_store(tmp_path / "s.zarr")
    full = {"method": "full", "cache": str(tmp_path / "cache")}
    parts = trained(tmp_path / "parts", store, release, **full, scaling={"sharded": True, "checkpointed": True})
    whole = trained(tmp_path / "whole", store, release, **full, scaling={"checkpointed": False})
    one, other = (
        bundle.load(folder / "bundle", device="cpu", precision="fp32").denoiser.state_dict()
        for folder in (parts, whole)
    )
    for name, x in one.items():
        torch.testing.assert_close(x, other[name], rtol=1e-3, atol=1e-5)
    adapter = trained(tmp_path / "lora", store, release, cache=str(tmp_path / "cache"), rank=2)
    ups = [x for name, x in load_file(adapter / "adapter.safetensors").items() if "lora_B" in name]
    assert any(bool(x.abs().max() > 0) for x in ups)
