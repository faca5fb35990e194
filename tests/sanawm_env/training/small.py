"""A clip and a learner of tiny size, the same wherever they are made."""

from __future__ import annotations

import torch

from sanawm_env.conditioning import Conditioning, condition
from sanawm_env.model.chunks import ChunkGrid, clip_chunks
from sanawm_env.model.config import tiny_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.initialise import randomise
from sanawm_env.training.learner import Learner
from sanawm_env.training.objective import clip_loss, velocity
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.scaling import Scaling

CONFIG = tiny_config().denoiser
GRID = (4, 5)


def clip(
    latents: int = 9, batch: int = 2, grid: tuple[int, int] = GRID
) -> tuple[torch.Tensor, Conditioning, ChunkGrid]:
    torch.manual_seed(0)
    poses = torch.eye(4).repeat(batch, 1 + 4 * (latents - 1), 1, 1)
    poses[..., 2, 3] = 0.05 * torch.arange(poses.shape[1])
    given = condition(
        poses,
        torch.tensor([[25.0, 25.0, 19.5, 15.5]]).expand(batch, 4),
        torch.arange(latents).expand(batch, -1),
        temporal_stride=4,
        spatial_stride=8,
        grid=grid,
        first=True,
    )
    return torch.randn(batch, latents, CONFIG.in_channels, *grid), given, clip_chunks(latents, CONFIG.chunk_latents)


def learner(scaling: Scaling, ranks: Ranks | None = None) -> Learner:
    denoiser = Denoiser(CONFIG)
    randomise(denoiser, torch.Generator().manual_seed(0))
    ranks = Ranks() if ranks is None else ranks
    ranks.device = torch.device("cpu")
    return Learner(denoiser, ranks, lr=1e-2, muon_lr=None, clip=1e9, scaling=scaling)


def loss(made: Learner, rows: slice) -> torch.Tensor:
    """Of some of two clips."""
    clean, given, chunks = clip(5)
    level = torch.full((2, 5), 500.0)
    level[:, 0] = 0
    noisy, worlds = clean + 0.1, torch.arange(2)[rows]
    ones = torch.ones(CONFIG.in_channels)
    assert isinstance(made.module, Denoiser)
    return clip_loss(made.module, clean[rows], level[rows], given.select(worlds), chunks, ones, velocity, noisy[rows])
