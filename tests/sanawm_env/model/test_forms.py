"""Forms of a denoiser: each is what its name says, and streams as it trains."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from tests.sanawm_env.model.test_denoiser import GRID, build, clip, empty

from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.streaming import streaming_error
from sanawm_env.kernels.camera_scan import reference as camera_reference
from sanawm_env.kernels.gated_delta import reference as delta_reference
from sanawm_env.kernels.main_scan import reference as main_reference
from sanawm_env.model.chunks import clip_chunks
from sanawm_env.model.config import tiny_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.feed_forward import Memory
from sanawm_env.model.forms import FORMS, reform, reshaped
from sanawm_env.world import WorldModel

TOKENS = GRID[0] * GRID[1]
FRAMES = 7


def formed(names: str) -> Denoiser:
    return reform(build(reshaped(tiny_config().denoiser, names)), names, TOKENS)


@torch.no_grad()
def passed(denoiser: Denoiser, intrinsics: float = 25.0) -> tuple[torch.Tensor, list[Memory]]:
    latents, level, given = clip(denoiser.config, FRAMES)
    if intrinsics != 25.0:
        given = replace(given, to_ray=given.to_ray.flip(1), from_ray=given.from_ray.flip(1))
        given = replace(given, plucker=given.plucker.flip(1))
    return denoiser(latents, level, given, clip_chunks(FRAMES, 2), empty(denoiser), collect=True)


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def test_linear_is_the_rule_without_what_it_corrects(monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = passed(formed("linear"))
    scan = delta_reference.delta_scan
    monkeypatch.setattr(delta_reference, "delta_scan", lambda gram, *rest: scan(torch.zeros_like(gram), *rest))
    expected, _ = passed(formed("gdn"))
    assert largest(out, expected) < 1e-4
    monkeypatch.undo()
    assert largest(out, passed(formed("gdn"))[0]) > 1e-3


@pytest.mark.parametrize(
    ("form", "scale"), [("no_key_scale", 1.0), ("l2_keys", tiny_config().denoiser.head_dim ** -0.5)]
)
def test_keys_are_as_large_as_the_form_says(monkeypatch: pytest.MonkeyPatch, form: str, scale: float) -> None:
    _, after = passed(formed(form))
    module: ModuleType
    for module in (main_reference, camera_reference):
        monkeypatch.setattr(module, "key_scale", lambda width, tokens: scale)
    _, expected = passed(formed("gdn"))
    for name in ("state", "normaliser", "camera_state"):
        assert largest(after[0][name], expected[0][name]) < 1e-4


def test_forms_without_rays_do_not_see_the_camera() -> None:
    blind, other = (passed(formed("no_ucpe+no_plucker"), f)[0] for f in (25.0, 40.0))
    assert torch.equal(blind, other)
    for form in ("gdn", "no_ucpe", "no_plucker"):
        one, other = (passed(formed(form), f)[0] for f in (25.0, 40.0))
        assert largest(one, other) > 1e-3


def test_nobody_reads_a_sink_that_is_gone() -> None:
    one, other = formed("no_sink"), formed("gdn")
    first, rest = clip_chunks(3 + 2, 2).lengths
    latents, level, given = clip(one.config, FRAMES)
    for denoiser in (one, other):
        seen = []
        for noise in (0.0, 1.0):
            memory = empty(denoiser)
            for block in memory:
                for name, x in block.items():
                    if name.startswith("sink_"):
                        x += noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
            told = type(given)(**{name: x[:, first : first + rest] for name, x in given.tensors().items()})
            with torch.no_grad():
                part = slice(first, first + rest)
                grid = replace(clip_chunks(3 + 2, 2), lengths=(rest,), opening=False, filled=(0, 0))
                seen.append(denoiser(latents[:, part], level[:, part], told, grid, memory)[0])
        assert torch.equal(*seen) == (denoiser is one)


def test_a_filter_that_passes_the_present_ignores_its_weights() -> None:
    one, other = formed("no_convolution"), formed("no_convolution")
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "conv_k" in name:
                parameter.add_(1.0)
    assert torch.equal(passed(one)[0], passed(other)[0])


def test_state_is_lost_where_it_is_said() -> None:
    one, other = (build(tiny_config().denoiser) for _ in range(2))
    reform(other, "forgetful", TOKENS)
    latents, level, given = clip(one.config, 3)
    memory = [{name: torch.ones_like(x) for name, x in block.items()} for block in empty(one)]
    grid = replace(clip_chunks(5, 2), lengths=(2,), opening=False, filled=(1, 1))
    for start, same in ((7, True), (9, False), (17, False)):
        position = torch.arange(start, start + 2).expand(2, 2)
        told = type(given)(
            **{name: x[:, :2] for name, x in given.tensors().items() if name != "position"}, position=position
        )
        with torch.no_grad():
            kept, lost = (x(latents[:, :2], level[:, :2], told, grid, memory)[0] for x in (one, other))
        assert torch.equal(kept, lost) == same


@pytest.mark.parametrize("form", ["gdn", "linear", "softmax", "no_softmax", "no_sink", "window_3", "no_convolution"])
def test_forms_stream_as_they_train(form: str) -> None:
    config = tiny_config()
    told = replace(config, denoiser=reshaped(config.denoiser, form))
    model = WorldModel(told, formed(form), WorldModel.random(config).autoencoder)
    latents = torch.randn(1, 9, 8, *GRID)
    poses = torch.eye(4).double().expand(1, 32, 4, 4)
    error = streaming_error(model, latents, poses[:, 0], poses, torch.tensor([[25.0, 25.0, 19.5, 15.5]]))
    assert error < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_every_form_learns_all_that_it_uses(form: str) -> None:
    denoiser = formed(form).requires_grad_(True)
    latents, level, given = clip(denoiser.config, FRAMES)
    denoiser(latents, level, given, clip_chunks(FRAMES, 2), empty(denoiser))[0].square().mean().backward()
    moved = {name for name, x in denoiser.named_parameters() if x.grad is not None and x.grad.abs().max() > 0}
    assert "final_layer.linear.weight" in moved and any("qkv" in name for name in moved)
    assert any("_cam" in name for name in moved) == (form != "no_ucpe")
    assert any("plucker" in name for name in moved) == (form != "no_plucker")


def test_an_unknown_form_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        reshaped(tiny_config().denoiser, "gdn+linaer")
