"""The small refiner: its objective is the truncated one, it learns through the loop that runs it, and it opens beside
its bundle.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import sanawm_env  # noqa: F401 - registers the environments
from sanawm_env import bundle
from sanawm_env.errors import BundleError
from sanawm_env.evaluation.command import EvalRooms
from sanawm_env.evaluation.command import run as evaluate
from sanawm_env.evaluation.world import Judged
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.refiner import RefinerStage, RefinerTraining, truncated
from sanawm_env.training.stages import SMOKE_CLIPS
from sanawm_env.world import WorldModel

SMALL = {"layers": 1, "heads": 2, "head_dim": 16, "lr": 3e-3, "warmup": 1, "max_steps": 2, "validation_scenes": 1}


def stage(model: WorldModel, tmp_path: Path, **settings: Any) -> RefinerStage:
    folder = tmp_path / "tiny"
    if not folder.exists():
        bundle.save(folder, model, {"denoiser": []}, bits=32)
    ranks = Ranks()
    ranks.device = torch.device("cpu")
    asked = RefinerTraining(**{"out": tmp_path / "out", **SMOKE_CLIPS, **SMALL, **settings})  # type: ignore[arg-type]
    return RefinerStage(asked, str(folder), bundle.load(folder, device="cpu", precision="fp32"), ranks, {})


def test_the_path_runs_from_what_is_given_to_the_truth() -> None:
    high, low = torch.randn(2, 2, 4, 3, 3), torch.randn(2, 2, 4, 3, 3)
    torch.manual_seed(4)
    x, velocity, sigma = truncated(high, low, 0.6, 1.0)
    torch.manual_seed(4)
    noise = torch.randn_like(low)
    assert sigma == 0.6
    torch.testing.assert_close(x, 0.4 * low + 0.6 * noise)  # what Refiner.refine begins with
    for share in (1.0, 0.5, 0.1):
        x, velocity, sigma = truncated(high, low, 0.6, share)
        torch.testing.assert_close(x - sigma * velocity, high, rtol=1e-4, atol=1e-5)


def test_the_loop_s_parts_are_the_loop(tiny_model: WorldModel, tmp_path: Path) -> None:
    """Velocity and commit, which training calls, chained by Euler steps are `Refiner.refine`."""
    refiner = stage(tiny_model, tmp_path).refiner.requires_grad_(False)
    torch.nn.init.normal_(refiner.transformer.proj_out.weight, std=0.1)
    grid, size = tiny_model.config.grid, (2, 2, 8, *tiny_model.config.grid)
    state = refiner.open(refiner.empty_state(2, grid), torch.randn(2, 1, 8, *grid), None, None)
    for _ in range(3):
        latents, noise = torch.randn(size), torch.randn(size)
        refined, after = refiner.refine(state, latents, noise, None, None)
        sigmas = refiner.config.sigmas
        x = (1 - sigmas[0]) * latents + sigmas[0] * noise
        for sigma, following in pairwise(sigmas):
            x = x + (following - sigma) * refiner.velocity(state, x, sigma)
        torch.testing.assert_close(x, refined)
        mine = refiner.commit(state, refined).tensors()
        assert all(torch.equal(mine[name], y) for name, y in after.tensors().items())
        state = after


@pytest.mark.parametrize("narrow", [False, True])
def test_it_learns_on_clips_that_stay(tiny_model: WorldModel, tmp_path: Path, narrow: bool) -> None:
    made = stage(tiny_model, tmp_path)
    bank, weight = made.new_bank()
    assert torch.equal(bank.history[:, 0], bank.latents[:, 0])
    assert not torch.equal(bank.history[:, 1:], bank.latents[:, 1:])
    found = []
    for _ in range(6 if narrow else 25):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            found.append(float(made.step(bank, bank.draw(2), weight)[0]))
    assert np.isfinite(found).all()
    if not narrow:
        assert np.mean(found[-6:]) < 0.85 * np.mean(found[:6])


def test_it_may_take_over_later_than_it_learned_to(tiny_model: WorldModel, tmp_path: Path) -> None:
    """The levels of its steps afterwards are those of the loop; what it learns from is the same."""
    losses = []
    for deployed in (None, (0.2, 0.1, 0.0)):
        made = stage(tiny_model, tmp_path, deployed=deployed)
        assert made.refiner.config.sigmas == (deployed or made.settings.sigmas)
        torch.manual_seed(0)
        bank, weight = made.new_bank()
        losses.append(float(made.step(bank, bank.draw(2), weight)[0]))
    assert losses[0] == losses[1]


def test_it_opens_beside_its_bundle(tiny_model: WorldModel, tmp_path: Path) -> None:
    made = stage(tiny_model, tmp_path)
    figures = made.train()
    assert np.isfinite(figures["psnr_8"])
    folder = tmp_path / "out" / "bundle"
    refined = bundle.load(folder, device="cpu", precision="fp32", refiner=True)
    assert refined.refiner is not None and not refined.reads_text
    assert bundle.load(folder, device="cpu", precision="fp32").refiner is None
    frames = {}
    for asked in (False, True):
        env = gymnasium.make(
            "sanawm_env/Rooms-v0", bundle=str(folder), refiner=asked, device="cpu", precision="fp32", task="drive"
        )
        env.reset(seed=0)
        frames[asked] = env.step(np.array([0.2, 0.1], np.float32))[0]
    assert not np.array_equal(frames[False], frames[True])
    told = {"bundle": str(folder), "device": "cpu", "scenes": 2, "frames": 8, "returns": (), "precision": "fp32"}
    plain, better = (evaluate(EvalRooms(**told, refiner=asked)) for asked in (False, True))  # type: ignore[arg-type]
    assert (plain["precision"], better["precision"]) == ("fp32", "fp32; refiner: fp32")
    assert plain["psnr_all"]["8"] != better["psnr_all"]["8"] and plain["autoencoder"] == better["autoencoder"]
    judged, _ = Judged(bundle=str(folder), refiner=True, precision="fp32").open("cpu")
    assert judged is refined
    assert stage(tiny_model, tmp_path).run.step == made.run.step == 2
    told = tmp_path / "out" / "bundle-refiner" / "refiner.json"
    written = json.loads(told.read_text())
    written["latents_of"] = {"autoencoder-00001.safetensors": "0"}
    told.write_text(json.dumps(written))
    bundle._loaded.clear()
    with pytest.raises(BundleError, match="another autoencoder"):
        bundle.load(folder, device="cpu", precision="fp32", refiner=True)
    with pytest.raises(BundleError, match="has no refiner"):
        bundle.load(tmp_path / "tiny", device="cpu", precision="fp32", refiner=True)
