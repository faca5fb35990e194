"""Whole models with every fused form at once, in Triton's interpreter: the numbers that the references give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sanawm_env.kernels import backend
from sanawm_env.model.autoencoder import Autoencoder, AutoencoderConfig
from sanawm_env.state import WorldState
from sanawm_env.world import WorldModel, initial, step

# Ops that ran fused: each model must meet its own.
WORLD = {
    "frame_gates",
    "gated_residual",
    "gated_spatial_conv",
    "modulated_norm",
    "output_gate",
    "ray_encode",
    "rms_norm",
}
PATH = torch.eye(4, dtype=torch.float64).repeat(1, 8, 1, 1)
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


def opened(model: WorldModel) -> WorldState:
    """A world after its first step, by the references."""
    picture = torch.randint(0, 256, (1, 32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return step(model, initial(model, picture, seeds=[3])[0], PATH, decode=False)[0]


def stepped(model: WorldModel, state: WorldState) -> list[Tensor]:
    """What one more step leaves behind; it reads the memory of the first."""
    return [x.float() for x in step(model, state, PATH, decode=False)[0].tensors().values()]


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


@pytest.mark.slow
def test_a_world_steps_alike(tiny_model: WorldModel, request: pytest.FixtureRequest) -> None:
    state = opened(tiny_model)
    wanted = stepped(tiny_model, opened(tiny_model))
    ran = request.getfixturevalue("fused")
    assert_close(stepped(tiny_model, state), wanted)
    assert ran >= WORLD


def test_a_mirrored_autoencoder_decodes_alike(request: pytest.FixtureRequest) -> None:
    wanted = decoded(MIRRORED)
    ran = request.getfixturevalue("fused")
    assert_close(decoded(MIRRORED), wanted)
    assert ran == {"conv_frames", "channels_to_space"}
