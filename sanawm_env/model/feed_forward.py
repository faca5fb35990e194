"""Gated feed-forward with a spatial depthwise convolution and a temporal tail (GLUMBConvTemp, spec dit.md 3.12)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from sanawm_env.kernels.gated_spatial_conv import gated_spatial_conv
from sanawm_env.kernels.temporal_taps import temporal_taps
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.model.config import DenoiserConfig

Memory = dict[str, Tensor]


def token_matrix(weight: Tensor) -> Tensor:
    """The matrix [N, taps C] by which the weight of a linear layer [N, C] or of a convolution that mixes no places,
    [N, C, taps, 1], multiplies tokens; of several taps the earliest comes first.
    """
    return weight if weight.ndim == 2 else weight.squeeze(-1).transpose(1, 2).flatten(1)


def lay_out(conv: nn.Module, _: object = None) -> None:
    """Puts the weight of a convolution into memory as its `token_matrix` lies, which no call then has to copy."""
    weight = conv.get_parameter("weight")
    weight.data = weight.data.movedim(2, 1).contiguous().movedim(1, 2)


class TokenConv(nn.Conv2d):
    """A convolution that mixes no places, applied to channel-last tokens: x [..., taps C], one tap after another."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        lay_out(self)
        self.register_load_state_dict_post_hook(lay_out)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, token_matrix(self.weight), self.bias)


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
        self.inverted_conv = NamedConv(TokenConv(width, 2 * hidden, 1))
        self.depth_conv = NamedConv(nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden))
        self.point_conv = NamedConv(TokenConv(hidden, width, 1, bias=False))
        self.t_conv = TokenConv(width, width, (3, 1), bias=False)

    def forward(self, x: Tensor, grid: tuple[int, int], chunks: ChunkGrid, memory: Memory) -> tuple[Tensor, Tensor]:
        """Returns the output and the frame-local part f [B, T, S, C], whose last frame is the next chunk's tail."""
        depth = self.depth_conv.conv
        mixed = gated_spatial_conv(self.inverted_conv.conv(x), depth.weight, depth.get_parameter("bias"), grid)
        f = self.point_conv.conv(mixed)
        return f + self.t_conv(temporal_taps(f, memory["ffn_tail"], chunks.lengths)), f
