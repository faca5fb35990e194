"""The worlds of the released variants: clock, noise levels, lens and sizes, with or without a checkpoint at hand."""

from __future__ import annotations

import inspect

import torch

from sanawm_env.model.autoencoder import AutoencoderConfig
from sanawm_env.model.checkpoint import shapes_of
from sanawm_env.model.config import DenoiserConfig, Schedule, WorldConfig
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.public_keys import Variant, autoencoder_config, denoiser_config
from sanawm_env.scene import USUAL_FOCAL

FPS = 16.0
SIZE = (704, 1280)
# Noise levels of the distilled model; the others never take few steps (spec rollout.md 6.1).
TIMESTEPS = {"distilled": (1000, 960, 889, 727)}


def world_config(
    variant: Variant,
    denoiser: DenoiserConfig,
    autoencoder: AutoencoderConfig,
    size: tuple[int, int] = SIZE,
    shift: float | None = None,
) -> WorldConfig:
    """The world of a released variant from its parts: clock, noise levels, a usual lens where a scene names none.

    shift: of the many-step sampler, the released one where None.
    """
    height, width = size
    focal = USUAL_FOCAL * max(height, width)
    return WorldConfig(
        name=f"sana-wm-{variant}",
        fps=FPS,
        height=height,
        width=width,
        # camera.py counts pixels at their centres, so the middle of the frame lies half a pixel before size / 2.
        intrinsics=(focal, focal, (width - 1) / 2, (height - 1) / 2),
        variant=variant,
        timesteps=TIMESTEPS.get(variant, (1000,)),
        schedule=Schedule() if shift is None else Schedule(shift=shift),
        units_per_metre=None,
        denoiser=denoiser,
        autoencoder=autoencoder,
    )


def released_config(
    variant: Variant,
    shape: DenoiserConfig | None = None,
    autoencoder: AutoencoderConfig | None = None,
    size: tuple[int, int] = SIZE,
) -> WorldConfig:
    """The world of a released variant as the shapes of its checkpoint tell it, without a checkpoint (spec dit.md 1.1,
    rollout.md 4).

    shape, autoencoder, size: others in place of the released ones, to try out in miniature.
    """
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video

    if autoencoder is None:
        # The released autoencoder is diffusers' class as it stands.
        arguments = inspect.signature(AutoencoderKLLTX2Video).parameters.values()
        given = {x.name: list(x.default) if isinstance(x.default, tuple) else x.default for x in arguments}
        autoencoder = autoencoder_config(given)
    shape = DenoiserConfig() if shape is None else shape
    with torch.device("meta"):
        shapes = shapes_of(Denoiser(shape))
    denoiser = denoiser_config(shapes, {}, variant=variant, length=shape.caption_length)
    return world_config(variant, denoiser, autoencoder, size)
