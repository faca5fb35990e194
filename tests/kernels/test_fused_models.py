"""Whole models with every fused form at once, in Triton's interpreter: the numbers that the references give."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from sanawm_env.conditioning import condition
from sanawm_env.kernels import backend
from sanawm_env.model.autoencoder import Autoencoder, AutoencoderConfig
from sanawm_env.model.chunks import next_chunk
from sanawm_env.model.config import tiny_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.initialise import randomise

# Ops that a denoiser must have run fused.
DENOISER = {
    "frame_gates",
    "gated_residual",
    "gated_spatial_conv",
    "modulated_norm",
    "output_gate",
    "ray_encode",
    "rms_norm",
}
GRID = (2, 3)
MIRRORED = AutoencoderConfig(
    latent_channels=8,
    encoder_widths=(16, 32),
    decoder_widths=(8, 16),
    decoder_levels=("spatiotemporal", "spatiotemporal"),
    upsample_residual=(True, False),
    decoder_padding="reflect",
)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """ "auto" is the fused form, as on a GPU, wherever autograd records nothing. Holds the ops that ran."""
    ran: set[str] = set()

    def resolve(asked: str, kind: str, index: int | None, op: str) -> str:
        ran.add(op)
        return "fused" if asked == "auto" else asked

    monkeypatch.setattr(backend, "_resolve", resolve)
    return ran


def predicted(denoiser: Denoiser) -> list[Tensor]:
    """Prediction and new memory of one chunk that continues a world."""
    config, draw = denoiser.config, torch.Generator().manual_seed(1)
    path = torch.eye(4).repeat(1, 8, 1, 1)
    path[..., 2, 3] = 0.02 * torch.arange(8)
    given = condition(
        path,
        torch.tensor([[12.0, 12.0, 12.0, 8.0]]),
        torch.tensor([[3, 4]]),
        temporal_stride=4,
        spatial_stride=8,
        grid=GRID,
        first=False,
    )
    memory = denoiser.memory(1, GRID, device=torch.device("cpu"), dtype=torch.float32)
    memory = [{name: torch.rand(x.shape, generator=draw) for name, x in block.items()} for block in memory]
    latents, level = torch.randn(1, 2, config.in_channels, *GRID, generator=draw), torch.tensor([[600.0, 600.0]])
    out, after = denoiser(latents, level, given, next_chunk(2, (1,), 1), memory, collect=True)
    return [out, *(x for block in after for x in block.values())]


def decoded(config: AutoencoderConfig) -> list[Tensor]:
    torch.manual_seed(0)
    autoencoder = Autoencoder(config).eval().requires_grad_(False)
    latents, cache, shown = torch.randn(1, 2, 8, 2, 3), autoencoder.initial_cache(1, 2, 3), []
    for part in latents.split(1, dim=1):
        pixels, cache = autoencoder.decode(part, cache)
        shown.append(pixels)
    return [x.float() for x in (*shown, *cache.values())]


def assert_close(made: list[Tensor], wanted: list[Tensor]) -> None:
    for x, y in zip(made, wanted, strict=True):
        assert x.shape == y.shape and (x - y).norm() <= 1e-4 * y.norm()


def test_a_denoiser_predicts_alike(request: pytest.FixtureRequest) -> None:
    denoiser = Denoiser(dataclasses.replace(tiny_config().denoiser, window_chunks=2)).eval().requires_grad_(False)
    randomise(denoiser, torch.Generator().manual_seed(0))
    wanted = predicted(denoiser)
    ran = request.getfixturevalue("fused")
    assert_close(predicted(denoiser), wanted)
    assert ran >= DENOISER


def test_a_mirrored_autoencoder_decodes_alike(request: pytest.FixtureRequest) -> None:
    wanted = decoded(MIRRORED)
    ran = request.getfixturevalue("fused")
    assert_close(decoded(MIRRORED), wanted)
    assert ran == {"conv_frames", "channels_to_space"}
