"""Gated feed-forward with a spatial depthwise convolution and a temporal tail (GLUMBConvTemp, spec dit.md 3.12)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanawm_env.kernels.gated_spatial_conv import gated_spatial_conv
from sanawm_env.model.chunks import ChunkGrid, masked
from sanawm_env.model.config import DenoiserConfig

Memory = dict[str, Tensor]


class NamedConv(nn.Module):
    """A convolution under the name `conv`, where the public checkpoints keep it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv


class FeedForward(nn.Module):
    """x [B, T, S, C] to [B, T, S, C]; the temporal convolution reads the last frame of the chunk before, never
    beyond its own chunk.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width = config.hidden_size
        hidden = int(width * config.mlp_ratio)
        self.inverted_conv = NamedConv(nn.Conv2d(width, 2 * hidden, 1))
        self.depth_conv = NamedConv(nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden))
        self.point_conv = NamedConv(nn.Conv2d(hidden, width, 1, bias=False))
        self.t_conv = nn.Conv2d(width, width, (3, 1), bias=False)

    def forward(self, x: Tensor, grid: tuple[int, int], chunks: ChunkGrid, memory: Memory) -> tuple[Tensor, Tensor]:
        """Returns the output and the frame-local part f [B, T, S, C], whose last frame is the next chunk's tail."""
        inverted, depth, point = self.inverted_conv.conv, self.depth_conv.conv, self.point_conv.conv
        p = functional.linear(x, inverted.weight.flatten(1), inverted.bias)
        mixed = gated_spatial_conv(p, depth.weight, depth.get_parameter("bias"), grid)
        f = functional.linear(mixed, point.weight.flatten(1))
        before = torch.cat([memory["ffn_tail"].to(f.dtype), f[:, :-1]], dim=1)
        after = masked(torch.roll(f, -1, dims=1), chunks.same_chunk(1))
        taps = self.t_conv.weight.squeeze(-1).transpose(1, 2).flatten(1)
        return f + functional.linear(torch.cat([before, f, after], dim=-1), taps), f
