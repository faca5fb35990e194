"""Ten chunks of a released checkpoint through `gym.make`: from a file and in a fork it goes on as if nothing had been.

The same test runs in miniature on a CPU and at full size, with random weights, on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tests.full_release import write_full_release
from tests.public_layouts import SIZE, write_release

import sanawm_env  # noqa: F401 - registers the environments
from sanawm_env.snapshot import Snapshot

CHUNKS = 10


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.gpu)], ids=["tiny", "full"])
def test_ten_chunks_go_on_from_a_file_and_in_a_fork(full: bool, tmp_path: Path) -> None:
    release = write_full_release(tmp_path / "release") if full else write_release(tmp_path / "release")
    options: dict[str, Any] = {"source": str(release), "text_encoder": release / "gemma2", "disable_env_checker": True}
    options |= {"prompt_cache": tmp_path / "prompts"}
    options |= {} if full else {"size": SIZE, "device": "cpu", "precision": "fp32"}
    height, width = size = (704, 1280) if full else SIZE
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    lens = [0.8 * width, 0.8 * width, (width - 1) / 2, (height - 1) / 2]

    def make() -> Any:
        return gymnasium.make(
            "sanawm_env/SanaWM-v0", image=picture, intrinsics=lens, prompt="a kitchen with red chairs", **options
        )

    drive = np.random.default_rng(1).uniform(-0.5, 0.5, (CHUNKS, 2)).astype(np.float32)
    before, after = drive[: CHUNKS // 2], drive[CHUNKS // 2 :]
    env = make()
    env.reset(seed=5)
    begun = [env.step(action)[4]["frames"] for action in before]
    assert begun[0].shape == (24, *size, 3) and begun[-1].std() > 0
    taken = env.unwrapped.get_state()
    taken.save(tmp_path / "snapshot")
    branch, pair = env.unwrapped.fork(1), env.unwrapped.fork(2)
    wanted = [env.step(action)[4]["frames"] for action in after]

    forked = [branch.step(action[None])[4]["frames"][0] for action in after]
    assert all(map(np.array_equal, forked, wanted))
    pair.step(np.stack([after[0]] * 2))
    both = pair.get_state().world.plan().tensors()
    assert [name for name, x in both.items() if not torch.equal(*x.nan_to_num())] == []
    del branch, pair, both

    fresh = make()
    fresh.reset(seed=0)
    fresh.unwrapped.set_state(Snapshot.load(tmp_path / "snapshot", fresh.unwrapped.model))
    loaded = [fresh.step(action)[4]["frames"] for action in after]
    assert all(map(np.array_equal, loaded, wanted))
