"""Worlds with a refiner: it changes what is shown and nothing of what the denoiser remembers; its window is state."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.public_layouts import tiny_refiner

from sanawm_env.clips import generate, refine
from sanawm_env.errors import ConfigError, SceneError, StateError
from sanawm_env.kernels.philox import normal
from sanawm_env.model.autoencoder import to_uint8
from sanawm_env.model.config import WorldConfig, tiny_config
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.world import WorldModel, initial, step

WORDS, CAPTION = 5, 12
TRANSFORMER = tiny_refiner(8, vae_scale_factors=(4, 8, 8))


def refined(variant: str = "distilled", **changes: Any) -> WorldModel:
    config: WorldConfig = dataclasses.replace(tiny_config(), variant=variant, refiner_caption_length=WORDS, **changes)
    torch.manual_seed(1)
    refiner = Refiner(RefinerConfig(block_latents=2, kv_max_frames=5, temporal_stride=4, spatial_stride=8), TRANSFORMER)
    plain = WorldModel.random(config)
    return WorldModel(config, plain.denoiser, plain.autoencoder, refiner=refiner)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return refined()


def text(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, WORDS, dtype=torch.bool)
    mask[:, -1] = False
    hidden = torch.randn(1, WORDS, CAPTION, generator=torch.Generator().manual_seed(seed))
    return {"refiner_hidden": hidden.expand(batch, -1, -1), "refiner_mask": mask}


def pictures(batch: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def path(batch: int, chunk: int) -> torch.Tensor:
    poses = torch.eye(4, dtype=torch.float64).repeat(batch, 8, 1, 1)
    poses[..., 2, 3] = 0.02 * (1 + 8 * chunk + torch.arange(8))
    return poses


def start(model: WorldModel, batch: int = 2) -> WorldState:
    return initial(model, pictures(batch), seeds=range(batch), text=text(batch))[0]


def roll(model: WorldModel, state: WorldState, chunks: range) -> tuple[WorldState, list[StepOutput]]:
    outputs = []
    for chunk in chunks:
        state, output = step(model, state, path(state.batch_size, chunk))
        outputs.append(output)
    return state, outputs


def test_the_refiner_changes_what_is_shown_and_nothing_that_the_denoiser_remembers(model: WorldModel) -> None:
    bare = WorldModel(model.config, model.denoiser, model.autoencoder)
    refined_state, seen = roll(model, start(model), range(4))
    plain_state, plain = roll(bare, initial(bare, pictures(2), seeds=range(2))[0], range(4))
    for one, other in zip(seen, plain, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert one.refined is not None and other.refined is None
        assert not torch.allclose(one.refined, one.latents, atol=1e-2)
        assert not torch.equal(one.frames, other.frames)
    kept = refined_state.tensors()
    assert all(torch.equal(kept[name], x) for name, x in plain_state.tensors().items() if name.startswith("memory."))


def test_frames_are_those_of_the_refiner_run_by_hand(model: WorldModel) -> None:
    assert model.refiner is not None
    state, opened = initial(model, pictures(1), seeds=[7], text=text(1))
    _, outputs = roll(model, state.clone(), range(3))
    told = (text(1)["refiner_hidden"], text(1)["refiner_mask"])
    window = model.refiner.open(model.refiner.empty_state(1, model.config.grid), opened.latents, *told)
    cache = state.decoder
    assert cache is not None
    for chunk, output in enumerate(outputs):
        noise = normal(state.seed, torch.tensor([chunk]), 1, (2, 8, 4, 5), device=model.device)
        wanted, window = model.refiner.refine(window, output.latents, noise, *told)
        pixels, cache = model.autoencoder.decode(wanted, cache)
        assert torch.equal(output.refined, wanted)
        assert torch.equal(output.frames, to_uint8(pixels))


def test_batches_forks_and_files_carry_the_window(model: WorldModel, tmp_path: Path) -> None:
    state, _ = roll(model, start(model), range(3))
    state.save(tmp_path / "world")
    loaded = WorldState.load(tmp_path / "world", model)
    alone, forked = state.select([1]), state.select([0]).fork(3)
    shapes = {name: (x.shape, x.dtype) for name, x in state.tensors().items()}
    next_state, whole = step(model, state, path(2, 3))
    assert {name: (x.shape, x.dtype) for name, x in next_state.tensors().items()} == shapes
    for other, rows in ((loaded, [0, 1]), (alone, [1]), (forked, [0, 0, 0])):
        _, output = step(model, other, path(len(rows), 3))
        assert torch.equal(output.frames, whole.frames[rows])
    assert next_state.nbytes()["refiner"] == model.refiner.empty_state(2, (4, 5)).nbytes()["total"]


def test_worlds_of_different_ages_are_refined_together(model: WorldModel) -> None:
    old, _ = roll(model, start(model), range(3))
    young = start(model).select([1])
    mixed = old.clone().write([1], young)
    poses = torch.cat([path(1, 3), path(1, 0)])
    frames = step(model, mixed, poses)[1].frames
    assert torch.equal(frames[:1], step(model, old.select([0]), path(1, 3))[1].frames)
    assert torch.equal(frames[1:], step(model, young, path(1, 0))[1].frames)


def test_a_plan_has_no_window(model: WorldModel) -> None:
    state, _ = roll(model, start(model), range(2))
    plan = state.plan()
    assert plan.refiner is None and plan.nbytes()["refiner"] == 0
    after, output = step(model, plan, path(2, 2), decode=False)
    assert output.refined is None and after.refiner is None
    assert torch.equal(output.latents, step(model, state, path(2, 2))[1].latents)


@pytest.mark.parametrize("variant", ["distilled", "teacher", "bidirectional"])
def test_clips_of_every_variant_are_refined(variant: str) -> None:
    tiny = tiny_config()
    shape = dataclasses.replace(tiny.denoiser, window_chunks=2 if variant == "distilled" else None, sink_span=None)
    schedule = dataclasses.replace(tiny.schedule, steps=2, guidance=1.0)
    model = refined(variant, denoiser=shape, schedule=schedule)
    poses = torch.cat([torch.eye(4, dtype=torch.float64)[None, None], path(1, 0), path(1, 1)], dim=1)
    clip = generate(model, pictures(1), poses, seeds=[3], text=text(1))
    assert clip.refined is not None and clip.refined.shape == clip.latents.shape == (1, 5, 8, 4, 5)
    assert torch.equal(clip.refined[:, 0], clip.latents[:, 0])
    assert not torch.allclose(clip.refined[:, 1:], clip.latents[:, 1:], atol=1e-2)
    assert clip.frames is not None and clip.frames.shape == (1, 17, 32, 40, 3)


def test_refining_afterwards_gives_what_the_rollout_would_have_shown(model: WorldModel) -> None:
    bare = WorldModel(model.config, model.denoiser, model.autoencoder)
    poses = torch.cat([torch.eye(4, dtype=torch.float64)[None, None], path(1, 0), path(1, 1)], dim=1)
    kept = generate(bare, pictures(1), poses, seeds=[5]).latents
    shown = generate(model, pictures(1), poses, seeds=[5], text=text(1))
    frames, latents = refine(model, kept, seeds=[5], text=text(1))
    assert torch.equal(latents, shown.refined) and torch.equal(frames, shown.frames)
    nothing, again = refine(model, kept, seeds=[5], text=text(1), decode=False)
    assert nothing is None and torch.equal(again, latents)
    assert not torch.equal(refine(model, kept, seeds=[6], text=text(1))[1], latents)
    with pytest.raises(ConfigError, match="no refiner"):
        refine(bare, kept, seeds=[5], text={})
    with pytest.raises(ConfigError, match="4 latent frames"):
        refine(model, kept[:, :4], seeds=[5], text=text(1))
    with pytest.raises(SceneError, match="holds nothing"):
        refine(model, kept, seeds=[5], text={})


def test_what_does_not_fit_is_named(model: WorldModel) -> None:
    with pytest.raises(SceneError, match="holds nothing, this model reads"):
        initial(model, pictures(1), seeds=[0])
    with pytest.raises(SceneError, match="marks no position"):
        initial(model, pictures(1), seeds=[0], text=text(1) | {"refiner_mask": torch.zeros(1, WORDS)})
    with pytest.raises(ConfigError, match="blocks of 3 latents"):
        refiner = Refiner(RefinerConfig(temporal_stride=4, spatial_stride=8), TRANSFORMER)
        WorldModel(model.config, model.denoiser, model.autoencoder, refiner=refiner)
    state = start(model)
    with pytest.raises(StateError, match="frames were asked"):
        step(model, state.plan(), path(2, 0))
