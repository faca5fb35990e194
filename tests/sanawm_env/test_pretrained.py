"""Released checkpoints: every public layout, written to disk with small random weights, loads as what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.public_layouts import (
    NAMES,
    SIZE,
    Weights,
    load,
    random_autoencoder,
    random_transformer,
)

from sanawm_env import bundle, cli
from sanawm_env.errors import BundleError, ConfigError, StateError
from sanawm_env.pretrained import convert, from_pretrained, plan
from sanawm_env.world import WorldModel, step


def source_weights(layouts: Path, name: str) -> tuple[Weights, Weights]:
    folder = {"streaming": "streaming/ltx2_causal_vae"}.get(name, "original/vae")
    expected = {key: x for key, x in random_transformer().state_dict().items()}  # noqa: C416 - a plain dict of copies
    return expected, load_file(layouts / folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_loads_as_its_weights(layouts: Path, name: str) -> None:
    model = load(layouts / name, layouts, name)
    denoiser, autoencoder = source_weights(layouts, name)
    for stored, module in ((denoiser, model.denoiser), (autoencoder, model.autoencoder.vae)):
        loaded = module.state_dict()
        assert loaded.keys() == stored.keys()
        for key, x in stored.items():
            torch.testing.assert_close(loaded[key], x, rtol=0, atol=0, msg=key)
    assert not any(x.is_meta for x in (*model.denoiser.parameters(), *model.autoencoder.buffers()))
    assert len(model.fingerprint) == 64


@pytest.mark.parametrize("name", NAMES)
def test_the_world_of_each_variant(layouts: Path, name: str) -> None:
    config = load(layouts / name, layouts, name).config
    variant = NAMES[name]
    assert (config.variant, config.fps, config.grid) == (variant, 16.0, (2, 3))
    assert (config.temporal_stride, config.spatial_stride, config.chunk_latents) == (8, 32, 3)
    assert config.denoiser.behaviour == ("diffusers" if variant == "bidirectional" else "nvlabs_train")
    assert config.denoiser.window_chunks == (2 if variant == "distilled" else None)
    assert config.denoiser.caption_length == (300 if name == "diffusers" else 7)
    assert config.autoencoder.decoder_causal == (variant == "distilled")
    assert config.intrinsics == pytest.approx((76.8, 76.8, 47.5, 31.5))
    if variant == "distilled":
        assert config.timesteps == (1000, 960, 889, 727)
    else:
        assert config.schedule.shift == (8.0 if name == "diffusers" else 9.5)


def test_the_released_frame_size_is_the_default(layouts: Path) -> None:
    told = {"variant": "distilled", "device": "cpu"}
    config = from_pretrained(layouts / "streaming", **told).config  # type: ignore[arg-type]
    assert (config.height, config.width, config.grid) == (704, 1280, (22, 40))
    assert config.intrinsics == (1024.0, 1024.0, 639.5, 351.5)
    with pytest.raises(ConfigError, match="700x1280, allowed are multiples of the spatial stride, 32"):
        from_pretrained(layouts / "streaming", **told, size=(700, 1280))  # type: ignore[arg-type]


def test_layouts_and_precisions_share_the_fingerprint_of_their_weights(layouts: Path) -> None:
    plain = load(layouts / "streaming", layouts, "streaming")
    half = load(layouts / "streaming", layouts, "streaming", precision="bf16")
    assert {x.dtype for x in half.denoiser.parameters()} == {torch.bfloat16}
    assert plain.fingerprint == half.fingerprint
    low = load(layouts / "streaming", layouts, "streaming", precision="nvfp4")
    assert low.execution.startswith("nvfp4 weight-only") and low.denoiser.quantisation is not None
    assert plain.fingerprint == low.fingerprint
    assert plain.fingerprint != load(layouts / "teacher", layouts, "teacher").fingerprint


@pytest.mark.parametrize("name", ["original", "streaming"])
def test_clips_are_decoded_as_diffusers_does(layouts: Path, name: str) -> None:
    model = load(layouts / name, layouts, name)
    latents = torch.randn(1, 3, 16, 2, 3)
    theirs = random_autoencoder(causal=name == "streaming")
    raw = latents.transpose(1, 2) * theirs.latents_std.view(-1, 1, 1, 1) + theirs.latents_mean.view(-1, 1, 1, 1)
    with torch.no_grad():
        expected = theirs.decode(raw).sample
    torch.testing.assert_close(model.autoencoder.decode_clip(latents), expected, rtol=1e-4, atol=1e-4)


def test_a_decoder_that_looks_ahead_starts_a_stream_and_refuses_to_go_on(layouts: Path) -> None:
    autoencoder = load(layouts / "original", layouts, "original").autoencoder
    latents = torch.randn(1, 1, 16, 2, 3)
    empty = autoencoder.initial_cache(1, 2, 3)
    pixels, cache = autoencoder.decode(latents, empty)
    torch.testing.assert_close(pixels, autoencoder.decode_clip(latents))
    assert {name: x.shape for name, x in cache.items()} == {name: x.shape for name, x in empty.items()}
    with pytest.raises(StateError, match="looks ahead"):
        autoencoder.decode(latents, cache)


def one_step(model: WorldModel) -> torch.Tensor:
    """Frames of the first chunk of a world that has seen a picture and reads a prompt."""
    config, state = model.config, model.empty_state(1)
    draw = torch.Generator().manual_seed(5)
    state.text["hidden"].copy_(torch.randn(1, 7, 12, generator=draw))
    state.text["mask"].fill_(True)
    picture = torch.rand(1, 3, 1, *SIZE, generator=draw) * 2 - 1
    latents = model.autoencoder.encode(picture)
    assert state.decoder is not None
    _, cache = model.autoencoder.decode(latents.to(model.dtype), state.decoder)
    state = replace(state, first_latent=latents[:, 0], decoder=cache)
    poses = torch.eye(4).expand(1, config.frames_per_chunk, 4, 4).clone()
    poses[..., 2, 3] = torch.linspace(0.02, 0.4, config.frames_per_chunk)
    _, output = step(model, state, poses)
    assert output.frames is not None
    return output.frames


def test_a_converted_bundle_gives_the_same_frames(layouts: Path, tmp_path: Path) -> None:
    folder = convert(layouts / "streaming", tmp_path / "ours", variant="distilled", size=SIZE)
    ours = bundle.load(folder, device="cpu", precision="bf16")
    direct = load(layouts / "streaming", layouts, "streaming", precision="bf16")
    assert ours.config == direct.config
    frames = one_step(ours)
    assert frames.float().std() > 1
    assert torch.equal(frames, one_step(direct))
    told = bundle.description(folder)
    assert told["provenance"]["weights_sha256"] == direct.fingerprint
    assert str(layouts / "streaming") in told["licence"]
    again = load(folder, layouts, "streaming", precision="bf16")
    assert again is ours
    with pytest.raises(ConfigError, match="a bundle of a distilled model; pass 'distilled'"):
        load(folder, layouts, "streaming", variant="teacher")
    with pytest.raises(ConfigError, match=r"size is \(32, 32\), but .* is a bundle of 64x96 frames"):
        load(folder, layouts, "streaming", precision="bf16", size=(32, 32))
    with pytest.raises(ConfigError, match="is a bundle with its own"):
        load(folder, layouts, "streaming", autoencoder=layouts / "streaming")
    with pytest.raises(BundleError, match="is a bundle already"):
        convert(folder, tmp_path / "twice", variant="distilled")
    assert plan(folder, variant="distilled") == []


def test_converting_refuses_before_it_reads(layouts: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        convert(tmp_path / "nowhere", tmp_path / "there", variant="distilled")


def test_the_command_tells_the_plan_first(layouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", str(layouts / "streaming"), str(tmp_path / "ours"), "variant=distilled"]
    assert cli.main([*words, "height=64", "width=96"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("0.0 MB  to download")
    assert json.loads(printed[-1]) == {"bundle": str(tmp_path / "ours")}
    assert bundle.load(tmp_path / "ours", device="cpu").config.variant == "distilled"
    assert cli.main(words[:-1]) == 2
    assert "'variant' of Convert is missing" in capsys.readouterr().err
