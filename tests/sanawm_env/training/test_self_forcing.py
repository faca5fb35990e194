"""Self-forcing: a rollout in training is that of world.step, one pass behind it sees what its last steps saw, and
distribution matching is its formula.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from sanawm_env.conditioning import Conditioning, condition
from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import ChunkGrid, clip_chunks
from sanawm_env.model.sampler import denoise
from sanawm_env.training.latents import Clips
from sanawm_env.training.objective import blank_memory, noised, streamed
from sanawm_env.training.rollouts import rolled
from sanawm_env.training.self_forcing import (
    ExitSampler,
    ScoreLevels,
    matching_direction,
    matching_loss,
    score_chunks,
    self_forced,
)
from sanawm_env.world import WorldModel, set_out, step


def clips(model: WorldModel, latents: int = 5, batch: int = 2) -> Clips:
    torch.manual_seed(3)
    poses = torch.eye(4).repeat(batch, 1 + 4 * (latents - 1), 1, 1)
    poses[..., 2, 3] = 0.05 * torch.arange(poses.shape[1])
    return Clips(torch.randn(batch, latents, model.config.denoiser.in_channels, *model.config.grid), poses)


def told(model: WorldModel, made: Clips) -> Conditioning:
    batch, latents = made.latents.shape[:2]
    lens = torch.tensor(model.config.intrinsics).expand(batch, 4)
    position = torch.arange(latents).expand(batch, -1)
    return condition(
        made.poses, lens, position, temporal_stride=4, spatial_stride=8, grid=model.config.grid, first=True
    )


def student(model: WorldModel, **world: Any) -> WorldModel:
    """A trainable copy."""
    made = WorldModel(replace(model.config, **world), copy.deepcopy(model.denoiser), model.autoencoder)
    made.denoiser.requires_grad_(True)
    return made


def test_a_rollout_in_training_is_that_of_world_step(tiny_model: WorldModel) -> None:
    given = clips(tiny_model)
    noise = torch.randn_like(given.latents[:, 1:])
    poses = given.poses.double()
    state = set_out(tiny_model.empty_state(2, decoder=False), [0, 1], poses[:, 0], None, None, None)
    state.first_latent = given.latents[:, 0]
    want = [given.latents[:, :1]]
    for path, part in zip(poses[:, 1:].split(8, dim=1), noise.split(2, dim=1), strict=True):
        state, output = step(tiny_model, state, path, noise=part, decode=False)
        want.append(output.latents)
    last = len(tiny_model.config.timesteps) - 1
    made = self_forced(student(tiny_model), given, ExitSampler(last, renoised=False), noise)
    torch.testing.assert_close(made.made, torch.cat(want, dim=1), rtol=0, atol=1e-6)
    assert torch.equal(rolled(tiny_model, given, noise), torch.cat(want, dim=1))


def test_the_first_latent_stays_as_it_is_and_an_early_exit_is_the_first_look(tiny_model: WorldModel) -> None:
    given = clips(tiny_model, latents=3)
    noise = torch.randn_like(given.latents[:, 1:])
    trained = student(tiny_model, timesteps=(1000, 600, 300))
    made = self_forced(trained, given, ExitSampler(0, renoised=True), noise)
    once = rolled(student(tiny_model, timesteps=(1000,)), given, noise)
    assert torch.equal(made.made[:, 0], given.latents[:, 0]) and torch.equal(made.noisy[:, 1:], noise)
    torch.testing.assert_close(made.made, once, rtol=0, atol=1e-6)
    torch.manual_seed(8)
    later = self_forced(trained, given, ExitSampler(2, renoised=True), noise)
    assert later.level.tolist() == [[0.0, 300.0, 300.0]] * 2
    assert torch.equal(later.made[:, 0], given.latents[:, 0]) and not torch.allclose(later.made, made.made, atol=1e-3)


@pytest.mark.parametrize("last", [0, 1, 2])
def test_one_pass_sees_what_the_rollout_saw_and_trains_every_weight(tiny_model: WorldModel, last: int) -> None:
    given = clips(tiny_model, latents=9)
    trained = student(tiny_model, timesteps=(1000, 600, 300))
    made = self_forced(trained, given, ExitSampler(last, renoised=True))
    assert not made.made.requires_grad
    seen = streamed(trained.denoiser, made.made, made.noisy, made.level, told(tiny_model, given), clip_chunks(9, 2))
    torch.testing.assert_close(seen[:, 1:], made.made[:, 1:], rtol=0, atol=2e-5)
    seen[:, 1:].square().mean().backward()
    silent = {name for name, p in trained.denoiser.named_parameters() if p.grad is None}
    assert not {name for name in silent if "plucker" in name or "qkv" in name or "final_layer" in name}


def test_rollouts_are_parted_by_clips(tiny_model: WorldModel) -> None:
    made = self_forced(student(tiny_model), clips(tiny_model, batch=3), ExitSampler(0, renoised=True))
    made.text = {"hidden": torch.arange(3.0)[:, None]}
    parts = made.split(2)
    assert [len(part.made) for part in parts] == [2, 1]
    for name in ("latents", "poses", "made", "noisy", "level"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(made, name)), name
    assert parts[1].text["hidden"].tolist() == [[2.0]]


def test_matching_is_the_formula(tiny_model: WorldModel) -> None:
    made = clips(tiny_model)
    given, x = told(tiny_model, made), made.latents
    fake, real = student(tiny_model).denoiser, tiny_model.denoiser
    with torch.no_grad():
        fake.final_layer.linear.weight.mul_(1.1)
    chunks = {"fake": clip_chunks(5, 2), "real": ChunkGrid((5,), opening=True)}
    level = ScoreLevels().draw(2, 5, x.device)
    torch.manual_seed(1)
    direction = matching_direction(x, level, given, (fake, chunks["fake"]), (real, chunks["real"]))
    torch.manual_seed(1)
    noisy = noised(x, level)
    with torch.no_grad():
        f = fake.predict_clean(noisy, level, given, chunks["fake"], blank_memory(fake, x))
        r = real.predict_clean(noisy, level, given, chunks["real"], blank_memory(real, x))
    assert torch.equal(noisy[:, 0], x[:, 0])
    for world in range(2):
        size = (x[world, 1:] - r[world, 1:]).abs().mean()
        torch.testing.assert_close(direction[world], (f[world] - r[world]) / size)
    rollout = x.clone().requires_grad_(True)
    matching_loss(rollout, direction).backward()
    assert rollout.grad is not None and bool((rollout.grad[:, 0] == 0).all())
    torch.testing.assert_close(rollout.grad[:, 1:], direction[:, 1:] / direction[:, 1:].numel())


def test_a_student_moves_to_where_the_real_score_sees_it(tiny_model: WorldModel) -> None:
    """By hand: real sees 1 everywhere, fake what is there; descending by the direction arrives at 1."""
    x = torch.zeros(1, 3, 1, 2, 2, requires_grad=True)
    for _ in range(200):
        made = x.detach()
        direction = (made - torch.ones_like(made)) / (made - 1)[:, 1:].abs().mean().clamp_min(1e-6)
        loss = matching_loss(x, direction)
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x - 0.1 * gradient).detach().requires_grad_(True)
    assert bool((x[:, 0] == 0).all()) and bool(((x[:, 1:] - 1).abs() < 0.02).all())


def test_score_levels_are_shifted_and_clamped() -> None:
    level = ScoreLevels(shift=3.0).draw(4000, 4, torch.device("cpu"))
    assert bool((level[:, 0] == 0).all()) and bool((level[:, 1:] == level[:, 1:2]).all())
    assert float(level[:, 1].min()) == 20 and float(level[:, 1].max()) == 980
    assert 730 < float(level[:, 1].median()) < 770  # 3 u / (1 + 2 u) at u = 1 / 2
    with pytest.raises(ConfigError, match="have shift 0"):
        ScoreLevels(shift=0.0)


def test_scores_judge_a_clip_as_they_were_trained(tiny_model: WorldModel) -> None:
    config = tiny_model.config
    assert score_chunks(replace(config, variant="bidirectional"), 9).lengths == (9,)
    assert score_chunks(replace(config, variant="teacher"), 9).lengths == (3, 2, 2, 2)


def test_watching_a_sampler_shows_every_level_on_the_way(tiny_model: WorldModel) -> None:
    seen: dict[int, torch.Tensor] = {}
    watched = student(tiny_model, timesteps=(1000, 600))
    watched.sampler = functools.partial(denoise, watch=lambda level, x: seen.setdefault(level, x))
    given = clips(tiny_model, latents=3, batch=1)
    noise = torch.randn_like(given.latents[:, 1:])
    end = rolled(watched, given, noise)
    assert list(seen) == [1000, 600] and torch.equal(seen[1000][:, 1:], noise)
    assert torch.equal(seen[600][:, 0], given.latents[:, 0]) and not torch.equal(seen[600][:, 1:], end[:, 1:])
