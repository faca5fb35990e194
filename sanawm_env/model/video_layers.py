"""The layers of LTX-2's video autoencoder: their weights and how they are joined; causal_video.py computes with them.

Names, order, shapes and first values are those of diffusers' `AutoencoderKLLTX2Video`, so that weights go from one to
the other. They stand here because that class brings all of diffusers' autoencoders, transformers and torch's compiler
along: half of the time that a program with a small world ran.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sanawm_env.model.autoencoder import AutoencoderConfig

Padding = Literal["zeros", "reflect"]  # what lies beyond the edges of a picture

COLOURS = 3
STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}


class VideoLayers(nn.Module):
    """Encoder, decoder and the statistics of raw latents."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.register_buffer("latents_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latents_std", torch.ones(config.latent_channels))


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        padding, width = config.encoder_padding, config.latent_channels
        self.patch_size = config.patch
        self.conv_in = CausalConv(COLOURS * config.patch**2, width, padding)
        self.down_blocks = nn.ModuleList()
        for count, level, wider in zip(config.encoder_layers, config.levels, config.encoder_widths):
            self.down_blocks.append(DownBlock(count, width, wider, level, padding))
            width = wider
        self.mid_block = Blocks(config.encoder_layers[-1], width, padding)
        self.conv_out = CausalConv(width, config.latent_channels + 1, padding)


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        padding, width = config.decoder_padding, config.decoder_widths[-1]
        # From the coarsest level on; diffusers takes `upsample_type` alone in the order that it is given.
        counts, factors = config.decoder_layers[::-1], config.upsample_factors[::-1]
        residual = config.upsample_residual[::-1] or (True,) * len(factors)
        self.patch_size, self.is_causal = config.patch, config.decoder_causal
        self.conv_in = CausalConv(config.latent_channels, width, padding)
        self.mid_block = Blocks(counts[0], width, padding)
        self.up_blocks = nn.ModuleList()
        for i, level in enumerate(config.upsampling):
            before, width = width // factors[i], config.decoder_widths[-1 - i] // factors[i]
            self.up_blocks.append(UpBlock(counts[i + 1], before, width, level, factors[i], residual[i], padding))
        self.conv_out = CausalConv(width, COLOURS * config.patch**2, padding)


class CausalConv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, padding: Padding) -> None:
        super().__init__()
        self.in_channels, self.kernel_size = in_channels, (3, 3, 3)
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=(0, 1, 1), padding_mode=padding)


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, padding: Padding) -> None:
        super().__init__()
        self.conv1 = CausalConv(in_channels, out_channels, padding)
        self.conv2 = CausalConv(out_channels, out_channels, padding)
        same = in_channels == out_channels
        self.norm3 = None if same else nn.LayerNorm(in_channels, eps=1e-6)
        self.conv_shortcut = None if same else nn.Conv3d(in_channels, out_channels, 1)


class Blocks(nn.Module):
    """Residual blocks of one width."""

    def __init__(self, count: int, channels: int, padding: Padding) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, padding) for _ in range(count))


class DownBlock(Blocks):
    def __init__(self, count: int, in_channels: int, out_channels: int, level: str, padding: Padding) -> None:
        super().__init__(count, in_channels, padding)
        self.downsamplers = nn.ModuleList([Downsampler(in_channels, out_channels, level, padding)])


class UpBlock(nn.Module):
    """factor: what the doubling divides channels by; before it there are `factor` times `out_channels`."""

    def __init__(
        self, count: int, in_channels: int, out_channels: int, level: str, factor: int, residual: bool, padding: Padding
    ) -> None:
        super().__init__()
        self.conv_in = None if in_channels == out_channels else ResidualBlock(in_channels, out_channels, padding)
        self.upsamplers = nn.ModuleList([Upsampler(factor * out_channels, out_channels, level, residual, padding)])
        self.resnets = nn.ModuleList(ResidualBlock(out_channels, out_channels, padding) for _ in range(count))


class Downsampler(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, level: str, padding: Padding) -> None:
        super().__init__()
        self.stride = STRIDES[level]
        self.group_size = in_channels * prod(self.stride) // out_channels
        self.conv = CausalConv(in_channels, out_channels // prod(self.stride), padding)


class Upsampler(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, level: str, residual: bool, padding: Padding) -> None:
        super().__init__()
        self.stride, self.residual = STRIDES[level], residual
        self.conv = CausalConv(in_channels, out_channels * prod(self.stride), padding)
