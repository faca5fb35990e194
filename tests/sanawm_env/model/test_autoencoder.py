"""The autoencoder against diffusers' own forward pass, and its streaming contract."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKLLTX2Video
from torch import Tensor

from sanawm_env.errors import ConfigError, StateError
from sanawm_env.model import causal_video
from sanawm_env.model.autoencoder import Autoencoder, AutoencoderConfig, to_uint8

GRID = (4, 5)
TINY = AutoencoderConfig(latent_channels=8, encoder_widths=(8, 16), decoder_widths=(8, 16))
# The released model's pattern of levels, patch and padding, with small widths.
LTX2 = AutoencoderConfig(
    latent_channels=16,
    encoder_widths=(16, 32, 64, 64),
    decoder_widths=(16, 32, 64),
    encoder_layers=(1, 1, 1, 1, 1),
    decoder_layers=(1, 1, 1, 1),
    upsample_factors=(2, 2, 2),
    levels=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    decoder_levels=("spatiotemporal",) * 3,
    patch=4,
    decoder_padding="reflect",
)
SHORTCUTS = AutoencoderConfig(
    latent_channels=8,
    encoder_widths=(16, 32),
    decoder_widths=(8, 16),
    upsample_factors=(1, 1),
    decoder_layers=(1, 2, 1),
)


def build(config: AutoencoderConfig) -> Autoencoder:
    torch.manual_seed(0)
    autoencoder = Autoencoder(config).eval().requires_grad_(False)
    channels = config.latent_channels
    autoencoder.set_statistics(torch.randn(channels), torch.rand(channels) + 0.5)
    return autoencoder


@pytest.fixture(params=[TINY, LTX2, SHORTCUTS], ids=["rooms", "ltx2", "shortcuts"])
def autoencoder(request: pytest.FixtureRequest) -> Autoencoder:
    return build(request.param)


def clips(config: AutoencoderConfig, batch: int = 1, latents: int = 5) -> Tensor:
    frames = 1 + config.temporal_stride * (latents - 1)
    return torch.rand(batch, 3, frames, GRID[0] * config.spatial_stride, GRID[1] * config.spatial_stride) * 2 - 1


def random_latents(config: AutoencoderConfig, batch: int = 1, count: int = 5) -> Tensor:
    return torch.randn(batch, count, config.latent_channels, *GRID)


def decode_in_parts(autoencoder: Autoencoder, latents: Tensor, parts: list[int]) -> Tensor:
    cache = autoencoder.initial_cache(latents.shape[0], *GRID)
    shown = []
    for part in latents.split(parts, dim=1):
        pixels, cache = autoencoder.decode(part, cache)
        shown.append(pixels)
    return torch.cat(shown, dim=2)


def test_encode_and_decode_equal_diffusers(autoencoder: Autoencoder) -> None:
    vae, frames = autoencoder.to_diffusers(), clips(autoencoder.config)
    raw = vae.encode(frames).latent_dist.mode()
    mean, std = (x.view(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
    latents = autoencoder.encode(frames)
    torch.testing.assert_close(latents.transpose(1, 2), (raw - mean) / std, atol=2e-5, rtol=0)
    pixels, _ = autoencoder.decode(latents, autoencoder.initial_cache(1, *GRID))
    torch.testing.assert_close(pixels, vae.decode(raw).sample, atol=2e-5, rtol=0)


def test_layers_are_those_of_diffusers(autoencoder: Autoencoder) -> None:
    """Names, order and shapes of all weights, and the values that a seed begins with."""
    torch.manual_seed(0)
    ours = Autoencoder(autoencoder.config).vae.state_dict()
    torch.manual_seed(0)
    theirs = AutoencoderKLLTX2Video.from_config(autoencoder.to_diffusers().config).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], x) for name, x in theirs.items())


@pytest.mark.parametrize("parts", [[1, 1, 1, 1, 1], [1, 2, 2], [3, 2]], ids=str)
def test_streaming_equals_the_whole_clip(autoencoder: Autoencoder, parts: list[int]) -> None:
    latents = random_latents(autoencoder.config)
    whole = decode_in_parts(autoencoder, latents, [5])
    streamed = decode_in_parts(autoencoder, latents, parts)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=0)
    assert (to_uint8(streamed).int() - to_uint8(whole).int()).abs().max() <= 1
    assert torch.equal(autoencoder.decode_clip(latents), whole)


def test_frames_per_latent(autoencoder: Autoencoder) -> None:
    stride, side = autoencoder.config.temporal_stride, autoencoder.config.spatial_stride
    cache = autoencoder.initial_cache(1, *GRID)
    first, cache = autoencoder.decode(random_latents(autoencoder.config, count=1), cache)
    later, _ = autoencoder.decode(random_latents(autoencoder.config, count=2), cache)
    assert first.shape == (1, 3, 1, GRID[0] * side, GRID[1] * side)
    assert later.shape == (1, 3, 2 * stride, GRID[0] * side, GRID[1] * side)


def test_decode_is_pure_and_keeps_shapes(autoencoder: Autoencoder) -> None:
    latents = random_latents(autoencoder.config, batch=2)
    start = autoencoder.initial_cache(2, *GRID)
    _, given = autoencoder.decode(latents[:, :1], start)
    kept = copy.deepcopy(given)
    once, new = autoencoder.decode(latents[:, 1:3], given)
    again, _ = autoencoder.decode(latents[:, 1:3], given)
    assert torch.equal(once, again)
    assert all(torch.equal(given[name], kept[name]) for name in kept)
    assert all(not start[name].any() for name in start)
    shapes = {name: (x.shape, x.dtype) for name, x in start.items()}
    assert shapes == {name: (x.shape, x.dtype) for name, x in new.items()}
    assert all(x.shape[0] == 2 for x in new.values())
    # A cache that shares memory with the frames or with the old cache would change under its owner.
    assert {x.data_ptr() for x in new.values()}.isdisjoint({x.data_ptr() for x in given.values()})


def test_a_batch_equals_its_worlds_run_singly() -> None:
    autoencoder = build(TINY)
    frames = clips(TINY, batch=3)
    latents = autoencoder.encode(frames)
    torch.testing.assert_close(latents, torch.cat([autoencoder.encode(row) for row in frames.split(1)]))
    together = decode_in_parts(autoencoder, latents, [1, 2, 2])
    singly = torch.cat([decode_in_parts(autoencoder, row, [1, 2, 2]) for row in latents.split(1)])
    torch.testing.assert_close(together, singly, atol=5e-5, rtol=0)


def test_clips_of_one_tile_are_decoded_whole() -> None:
    autoencoder, latents = build(TINY), random_latents(TINY)
    torch.testing.assert_close(
        autoencoder.decode_tiled(latents), autoencoder.decode_clip(latents), atol=5e-5, rtol=1e-4
    )


def test_tiles_are_those_of_the_public_autoencoder() -> None:
    """Equal to diffusers' own tiled decoding; and the larger the tiles, the less the picture changes."""
    autoencoder = build(TINY)
    draw = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 3, TINY.latent_channels, 16, 16, generator=draw)
    whole = autoencoder.decode_tiled(latents)
    side = 16 * TINY.spatial_stride
    public = AutoencoderKLLTX2Video.from_config(autoencoder.to_diffusers().config).eval()
    public.load_state_dict({name: x.contiguous() for name, x in autoencoder.vae.state_dict().items()})
    mean, std = (x.view(1, -1, 1, 1, 1) for x in (public.latents_mean, public.latents_std))
    errors = []
    for size in (side // 2, 3 * side // 4):
        tiles = {f"tile_sample_min_{edge}": size for edge in ("height", "width")}
        tiles |= {f"tile_sample_stride_{edge}": side // 4 for edge in ("height", "width")}
        public.enable_tiling(**tiles)
        tiled = autoencoder.decode_tiled(latents, tiles)
        wanted = public.decode(latents.transpose(1, 2) * std + mean, return_dict=False)[0]
        torch.testing.assert_close(tiled, wanted, atol=1e-5, rtol=1e-5)
        errors.append(float((tiled - whole).norm() / whole.norm()))
    assert 0 < errors[1] < errors[0]


def test_later_latents_do_not_change_earlier_frames() -> None:
    autoencoder, latents = build(TINY), random_latents(TINY)
    changed = latents.clone()
    changed[:, 3:] += 1
    stride = TINY.temporal_stride
    before, after = autoencoder.decode_clip(latents), autoencoder.decode_clip(changed)
    assert torch.equal(before[:, :, : 1 + 2 * stride], after[:, :, : 1 + 2 * stride])
    assert not torch.equal(before[:, :, 1 + 2 * stride :], after[:, :, 1 + 2 * stride :])


def test_memory_layout_of_weights_survives_copies_and_casts() -> None:
    autoencoder = build(TINY)
    other = copy.deepcopy(autoencoder).bfloat16().float()
    other.load_state_dict(autoencoder.state_dict())
    weight = other.vae.decoder.conv_in.conv.weight
    assert weight.transpose(1, 2).flatten(1, 2).data_ptr() == weight.data_ptr()
    assert torch.equal(other.decode_clip(random_latents(TINY) * 0), autoencoder.decode_clip(random_latents(TINY) * 0))


def test_streams_of_both_kinds_in_one_batch_are_refused() -> None:
    autoencoder = build(TINY)
    cache = autoencoder.initial_cache(2, *GRID)
    cache["started"][0] = 1
    with pytest.raises(StateError, match="two calls"):
        autoencoder.decode(random_latents(TINY, batch=2), cache)


def test_wrong_clip_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 \\+ 4k"):
        build(TINY).encode(torch.zeros(1, 3, 4, 32, 40))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ("spatiotemporal", "temporl")}, "did you mean 'temporal'"),
        ({"decoder_widths": (8, 16, 32)}, "decoder_widths"),
        ({"decoder_levels": ("spatial", "spatiotemporal")}, "strides"),
    ],
)
def test_impossible_configurations_are_named(change: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencoderConfig(**change)  # type: ignore[arg-type]


def test_to_uint8_rounds_and_clamps() -> None:
    pixels = torch.tensor([-1.5, -1.0, 0.0, 0.005, 1.0, 3.0]).view(1, 1, 1, 1, 6).expand(1, 3, 1, 1, 6)
    assert to_uint8(pixels)[0, 0, 0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]


def test_long_clips_are_encoded_piece_by_piece(autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    config = autoencoder.config
    video, calls = clips(config, latents=8), []
    whole = autoencoder.encode(video)
    monkeypatch.setattr("sanawm_env.model.autoencoder.ENCODED_FRAMES", 3 * config.temporal_stride + 1)
    encode = causal_video.encode
    monkeypatch.setattr(causal_video, "encode", lambda *given: calls.append(given[1].shape[2]) or encode(*given))
    torch.testing.assert_close(autoencoder.encode(video), whole, rtol=0, atol=1e-5)
    stride = config.temporal_stride
    assert calls == [1 + 3 * stride, 3 * stride, stride]
