"""Names, shapes and configurations of the public checkpoints, full-size on the meta device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from sanawm_env.errors import BundleError
from sanawm_env.model.autoencoder import Autoencoder, AutoencoderConfig
from sanawm_env.model.checkpoint import Shape, differences, shapes_of
from sanawm_env.model.config import DenoiserConfig
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.public_keys import (
    autoencoder_config,
    caption_length,
    denoiser_config,
    denoiser_names,
)

TEACHER = dataclasses.replace(DenoiserConfig(), window_chunks=None)
# config.json of the released autoencoder's class with its default values.
RELEASED_AUTOENCODER: dict[str, Any] = {
    "_class_name": "AutoencoderKLLTX2Video",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "block_out_channels": [256, 512, 1024, 2048],
    "decoder_block_out_channels": [256, 512, 1024],
    "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5],
    "spatio_temporal_scaling": [True, True, True, True],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [False, False, False, False],
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "upsample_type": ["spatiotemporal", "spatiotemporal", "spatiotemporal"],
    "upsample_residual": [True, True, True],
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": False,
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-06,
    "scaling_factor": 1.0,
    "encoder_causal": True,
    "decoder_causal": False,
    "encoder_spatial_padding_mode": "zeros",
    "decoder_spatial_padding_mode": "reflect",
}


@pytest.fixture(scope="module")
def released() -> dict[str, Shape]:
    with torch.device("meta"):
        denoiser = Denoiser(DenoiserConfig())
    assert sum(x.numel() for x in denoiser.parameters()) == 2_661_800_448
    return shapes_of(denoiser)


def original(shapes: dict[str, Shape]) -> dict[str, Shape]:
    """The 872 tensors under the names of the original release."""
    renamed = {}
    for name, shape in shapes.items():
        for theirs, ours in (("mlp.0", "linear_1"), ("mlp.2", "linear_2")):
            name = name.replace(f"t_embedder.{ours}.", f"t_embedder.{theirs}.")
        renamed[name] = shape
    return renamed | {"pos_embed": (1, 484, 2240), "y_embedder.y_embedding": (300, 2304)}


@pytest.mark.parametrize("form", ["diffusers", "original", "streaming"])
def test_the_three_formats_are_the_released_denoiser(released: dict[str, Shape], form: str) -> None:
    stored = dict(released) if form == "diffusers" else original(released)
    if form == "streaming":
        stored = {f"model.{name}": shape for name, shape in stored.items()}
    assert len(released) == 870
    assert len(stored) == (870 if form == "diffusers" else 872)
    names = denoiser_names(stored)
    ours = {name: stored[given] for name, given in names.items()}
    assert differences(released, ours) == ""
    length = caption_length(stored)
    assert length == (None if form == "diffusers" else 300)
    assert denoiser_config(ours, {}, variant="distilled", length=length) == DenoiserConfig()
    assert denoiser_config(ours, {}, variant="teacher", length=length) == TEACHER
    bidirectional = dataclasses.replace(TEACHER, behaviour="diffusers")
    assert denoiser_config(ours, {}, variant="bidirectional", length=length) == bidirectional


def test_settings_decide_what_shapes_cannot(released: dict[str, Shape]) -> None:
    told = {"chunk_size": 4, "num_cached_blocks": 3, "num_attention_heads": 10, "model_max_length": 77}
    config = denoiser_config(released, told, variant="distilled")
    assert (config.chunk_latents, config.window_chunks, config.cross_heads, config.caption_length) == (4, 3, 10, 77)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"cam_attn_compress": 2}, "cam_attn_compress is 2, implemented is 1"),
        ({"pos_embed_type": "sincos"}, "pos_embed_type is 'sincos', implemented is 'wan_rope' or 'casual_wan_rope'"),
        ({"chunk_size": "three"}, "chunk_size is 'three', allowed is int"),
    ],
)
def test_settings_that_are_not_implemented(released: dict[str, Shape], told: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        denoiser_config(released, told, variant="distilled")


def test_other_weights_are_no_denoiser(released: dict[str, Shape]) -> None:
    with pytest.raises(BundleError, match=r"no weights of a SANA-WM denoiser \(missing \(1\): x_embedder"):
        denoiser_config({"layer.weight": (3, 3)}, {}, variant="teacher")
    with pytest.raises(BundleError, match=r"wrong shape \(1\): x_embedder\.proj\.weight has \(2240, 128\)"):
        denoiser_config(released | {"x_embedder.proj.weight": (2240, 128)}, {}, variant="teacher")


def test_a_missing_convolution_does_not_change_the_pattern_of_blocks(released: dict[str, Shape]) -> None:
    lacking = {name: shape for name, shape in released.items() if name != "blocks.0.attn.conv_k.weight"}
    config = denoiser_config(lacking, {}, variant="distilled")
    assert (config.softmax_every_n, config.conv_kernel) == (4, 4)


def test_two_names_for_one_tensor() -> None:
    with pytest.raises(BundleError, match=r"tensors model\.x and x are both x"):
        denoiser_names(["model.x", "x"])


def test_differences_count_everything_and_list_ten() -> None:
    expected = {f"a{i}": (1,) for i in range(12)} | {"b": (2, 3)}
    told = differences(expected, {"b": (3, 2), "c": (1,)})
    assert told.startswith("missing (12): a0, a1,")
    assert "a9, ...; unexpected (1): c; wrong shape (1): b has (3, 2), expected (2, 3)" in told
    assert "a10" not in told


@pytest.mark.parametrize("causal", [False, True])
def test_the_released_autoencoder_has_the_shapes_of_diffusers(causal: bool) -> None:
    from diffusers import AutoencoderKLLTX2Video

    told = RELEASED_AUTOENCODER | {"decoder_causal": causal}
    if causal:  # the streaming checkpoint's class has other words for the decoder's levels
        del told["upsample_type"]
        told |= {"decoder_upsample_type": None, "gradient_checkpointing": False}
    config = autoencoder_config(told)
    assert (config.temporal_stride, config.spatial_stride, config.decoder_causal) == (8, 32, causal)
    with torch.device("meta"):
        ours, theirs = Autoencoder(config), AutoencoderKLLTX2Video(decoder_causal=causal)
    assert differences(shapes_of(theirs), shapes_of(ours.vae)) == ""
    assert ours.vae.decoder.is_causal == causal


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("timestep_conditioning", True, "timestep_conditioning is True, implemented is False"),
        ("scaling_factor", 0.5, r"scaling_factor is 0\.5, implemented is 1\.0"),
        ("decoder_inject_noise", [False, True, False, False], "decoder_inject_noise is .*, implemented is False"),
        ("downsample_type", None, "downsample_type is None, expected a list of str"),
    ],
)
def test_autoencoders_that_are_not_implemented(name: str, value: Any, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        autoencoder_config(RELEASED_AUTOENCODER | {name: value})


def test_an_autoencoder_without_residual_upsampling() -> None:
    config = autoencoder_config(RELEASED_AUTOENCODER | {"upsample_residual": [False, True, True]})
    assert config.upsample_residual == (False, True, True)
    assert AutoencoderConfig().upsample_residual == ()
