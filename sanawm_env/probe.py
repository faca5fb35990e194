"""A check that loaded weights follow the camera: a camera that is silently ignored looks like a working model."""

from __future__ import annotations

import math

import torch

from sanawm_env.conditioning import condition
from sanawm_env.errors import BundleError
from sanawm_env.kernels.philox import normal
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.world import WorldModel

GRID = (4, 6)
YAW_A_FRAME = math.radians(2.0)
LEAST_CHANGE = 1e-4


@torch.no_grad()
def check_camera(model: WorldModel) -> float:
    """How much a turning camera changes the denoiser's prediction, relative to its size; one pass on few tokens.

    BundleError when the prediction is not finite, or when turning by 2 degrees a frame changes it by less than 1e-4.
    """
    still, turning = (_prediction(model, yaw) for yaw in (0.0, YAW_A_FRAME))
    if not bool(torch.isfinite(torch.stack([still, turning])).all()):
        raise BundleError(
            "the denoiser predicts NaN or infinity from ordinary noise; its weights are damaged or of another model."
        )
    change = float((turning - still).norm() / still.norm().clamp_min(1e-12))
    if change < LEAST_CHANGE:
        raise BundleError(
            f"turning the camera changes the denoiser's prediction by {change:.1e} of its size, expected at least "
            f"{LEAST_CHANGE:.0e}: these weights ignore the camera; take a camera-controlled checkpoint, whole and "
            "converted with its camera layers."
        )
    return change


def _prediction(model: WorldModel, yaw: float) -> torch.Tensor:
    """Of one opening chunk whose camera turns by `yaw` radians a frame."""
    config, device = model.config, model.device
    frames = config.chunk_latents + 1
    count = 1 + config.temporal_stride * config.chunk_latents
    turn = yaw * torch.arange(count)
    poses = torch.eye(4).repeat(1, count, 1, 1)
    poses[..., 0, 0] = poses[..., 2, 2] = turn.cos()
    poses[..., 0, 2], poses[..., 2, 0] = turn.sin(), -turn.sin()
    width = GRID[1] * config.spatial_stride
    given = condition(
        poses.to(device),
        torch.tensor([[width, width, width / 2, GRID[0] * config.spatial_stride / 2]], device=device),
        torch.arange(frames, device=device)[None],
        temporal_stride=config.temporal_stride,
        spatial_stride=config.spatial_stride,
        grid=GRID,
        first=True,
    )
    text = model.empty_text(1)
    if "mask" in text:
        text["mask"][:, 0] = True  # one word of zeros: what is asked about is the camera
    seed = torch.zeros(1, dtype=torch.int64)
    latents = normal(seed, seed, 0, (frames, config.denoiser.in_channels, *GRID), device=device).to(model.dtype)
    level = torch.full((1, frames), 500.0, device=device)
    memory = model.denoiser.memory(1, GRID, device=device, dtype=model.dtype)
    chunks = ChunkGrid((frames,), opening=True)
    return model.denoiser(latents, level, given.reading(text), chunks, memory)[0].float()
