"""The causal video autoencoder: LTX-2's class, encoded as a clip and decoded as a stream with an explicit cache.

Weights and layers are those of diffusers' `AutoencoderKLLTX2Video`, from the Rooms size to the released one
(video_layers.py); causal_video.py computes with them. All that a stream remembers is a flat dict of tensors which goes
in and comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sanawm_env.errors import ConfigError, StateError, nearest
from sanawm_env.model import causal_video
from sanawm_env.model.causal_video import Cache, Stream
from sanawm_env.model.offload import device_of, on_demand
from sanawm_env.model.video_layers import STRIDES, VideoLayers

# Frames of a tile of `decode_tiled`, and from one tile to the next.
TILE_FRAMES, TILE_STRIDE = 96, 64
ENCODED_FRAMES = 128  # that `encode` runs at once, beside a clip's first one


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of the autoencoder; tuples run from the finest level to the coarsest, as in diffusers.

    encoder_widths: channels after each halving (before the first there are latent_channels). decoder_widths,
    upsample_factors: channels before each doubling, and what the doubling divides them by. encoder_layers,
    decoder_layers: residual blocks of each level, the middle block last. levels: what each level halves, "spatial",
    "temporal" or "spatiotemporal"; the decoder undoes `decoder_levels`, `levels` where that is empty. patch: pixels of
    a side folded into channels before the first level. encoder_padding, decoder_padding: what lies beyond the edges of
    a picture. upsample_residual: whether each doubling adds its input, all
    where empty. decoder_causal: whether a frame depends on no later latent; only then can latents be decoded as a
    stream.
    """

    latent_channels: int = 32
    encoder_widths: tuple[int, ...] = (64, 128)
    decoder_widths: tuple[int, ...] = (64, 128)
    encoder_layers: tuple[int, ...] = (1, 1, 1)
    decoder_layers: tuple[int, ...] = (1, 1, 1)
    upsample_factors: tuple[int, ...] = (2, 2)
    levels: tuple[str, ...] = ("spatiotemporal", "spatiotemporal")
    decoder_levels: tuple[str, ...] = ()
    patch: int = 2
    decoder_padding: Literal["zeros", "reflect"] = "zeros"
    encoder_padding: Literal["zeros", "reflect"] = "zeros"
    upsample_residual: tuple[bool, ...] = ()
    decoder_causal: bool = True

    def __post_init__(self) -> None:
        for level in self.levels + self.decoder_levels:
            if level not in STRIDES:
                raise ConfigError(f"level is {level!r}; {nearest(level, STRIDES)}")
        self._check_lengths()
        if _product(self.levels) != _product(self.upsampling):
            raise ConfigError(
                f"decoder_levels {self.decoder_levels} have other strides than levels {self.levels}; make them equal."
            )

    def _check_lengths(self) -> None:
        down, up = len(self.levels), len(self.upsampling)
        expected = {
            "encoder_widths": down,
            "encoder_layers": down + 1,
            "decoder_widths": up,
            "decoder_layers": up + 1,
            "upsample_factors": up,
            "upsample_residual": up if self.upsample_residual else 0,
        }
        for name, count in expected.items():
            if len(getattr(self, name)) != count:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected {count} values for levels {self.levels}.")

    @property
    def upsampling(self) -> tuple[str, ...]:
        return self.decoder_levels or self.levels

    @property
    def temporal_stride(self) -> int:
        return _product(self.levels)[0]

    @property
    def spatial_stride(self) -> int:
        return self.patch * _product(self.levels)[1]


def _product(levels: tuple[str, ...]) -> tuple[int, int]:
    time = space = 1
    for level in levels:
        time, space = time * STRIDES[level][0], space * STRIDES[level][1]
    return time, space


class Autoencoder(nn.Module):
    """Frames to latents and back; latents have zero mean and unit variance per channel over the training data."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = VideoLayers(config)
        causal_video.lay_out(self.vae)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vae.encoder.conv_in.conv.weight.dtype
        return dtype

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Make raw latents with this mean and deviation (both [C]) come out normalised."""
        self.vae.latents_mean.copy_(mean)
        self.vae.latents_std.copy_(std)

    @on_demand
    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents [B, 1+k, C, h, w], float32, of clips: the posterior's mode (spec rollout.md 4).

        frames: [B, 3, 1+rk, H, W] in [-1, 1]; the first frame has a latent of its own, every r later ones share one.
        """
        stride = self.config.temporal_stride
        if (frames.shape[2] - 1) % stride:
            raise ConfigError(f"clip has {frames.shape[2]} frames, allowed is 1 + {stride}k; cut or extend it.")
        piece = ENCODED_FRAMES - ENCODED_FRAMES % stride
        first, *later = frames.tensor_split(tuple(range(1 + piece, frames.shape[2], piece)), dim=2)
        parts, kept = [], None
        # Long clips piece by piece: a convolution over more than 2**31 numbers is refused by many a GPU library.
        for part in (first, *later):
            stream = Stream(kept, keep=bool(later))
            moments = causal_video.encode(self.vae.encoder, part.to(self.dtype), stream)
            parts.append(moments[..., : self.config.latent_channels].float())
            kept = stream.new
        raw = torch.cat(parts, dim=1)
        return ((raw - self.vae.latents_mean.float()) / self.vae.latents_std.float()).permute(0, 1, 4, 2, 3)

    def initial_cache(
        self,
        batch: int,
        height: int,
        width: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Cache:
        """The memory of `batch` streams that have not started: tensors of fixed shapes, batch first.

        height, width: of the latent grid. dtype, device: of the weights by default.
        """
        device = device_of(self) if device is None else device
        cache = {"started": torch.zeros(batch, dtype=torch.uint8, device=device)}
        for name, shape in causal_video.memory_shapes(self.vae.decoder, height, width):
            cache[name] = torch.zeros(batch, *shape, dtype=dtype or self.dtype, device=device)
        return cache

    @on_demand
    def decode(self, latents: Tensor, cache: Cache, *, started: bool | None = None) -> tuple[Tensor, Cache]:
        """Frames of the next latents of streams: (pixels [B, 3, F, H, W], new cache).

        latents: [B, n, C, h, w], normalised. cache: of `initial_cache` or of the call before; it is not changed.
        Pixels are meant to lie in [-1, 1] and may slightly leave it. A stream's first latent gives 1 frame, every other
        one r. started: what cache["started"] says, for callers who know it and would not wait for the device.
        Raises StateError when streams that have started share a batch with others, or when the decoder looks ahead.
        """
        started = _all_started(cache["started"]) if started is None else started
        if started and not self.config.decoder_causal:
            raise StateError(
                "this autoencoder's decoder looks ahead (decoder_causal is false), so that a stream cannot go on; "
                "decode whole clips, or take the autoencoder of a streaming checkpoint."
            )
        stream = Stream(cache if started else None, keep=True, causal=self.config.decoder_causal)
        pixels = causal_video.decode(self.vae.decoder, self._denormalise(latents), stream)
        kept = {name: stream.new[name].to(old.dtype) for name, old in cache.items() if name != "started"}
        return pixels, {"started": torch.ones_like(cache["started"]), **kept}

    @on_demand
    def decode_clip(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, 1+rk, H, W] of whole clips [B, 1+k, C, h, w], for training: no memory is kept."""
        return causal_video.decode(
            self.vae.decoder, self._denormalise(latents), Stream(causal=self.config.decoder_causal)
        )

    @on_demand
    def decode_tiled(self, latents: Tensor, tiles: Mapping[str, int] | None = None) -> Tensor:
        """Pixels [B, 3, 1+rk, H, W] of whole clips, in overlapping tiles that are blended: for clips whose decoding at
        once would not fit, by a decoder that looks ahead and so cannot stream. Clips smaller than a tile are decoded
        whole. tiles: other sizes and strides, named as in diffusers' `enable_tiling`.
        """
        public = self.to_diffusers()
        long = {"tile_sample_min_num_frames": TILE_FRAMES, "tile_sample_stride_num_frames": TILE_STRIDE}
        public.enable_tiling(**long, **(tiles or {}))
        public.use_framewise_decoding = True  # spec rollout.md 4
        raw = self._denormalise(latents).permute(0, 4, 1, 2, 3)
        pixels: Tensor = public.decode(raw, return_dict=False)[0]
        return pixels

    def to_diffusers(self) -> Any:
        """Diffusers' `AutoencoderKLLTX2Video` of these very weights, no copies."""
        # Importing it takes seconds (video_layers.py).
        from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video

        config = self.config
        with torch.device("meta"):
            public = AutoencoderKLLTX2Video(
                latent_channels=config.latent_channels,
                block_out_channels=config.encoder_widths,
                down_block_types=("LTX2VideoDownBlock3D",) * len(config.levels),
                decoder_block_out_channels=config.decoder_widths,
                layers_per_block=config.encoder_layers,
                decoder_layers_per_block=config.decoder_layers,
                spatio_temporal_scaling=(True,) * len(config.levels),
                decoder_spatio_temporal_scaling=(True,) * len(config.upsampling),
                decoder_inject_noise=(False,) * (len(config.upsampling) + 1),
                downsample_type=config.levels,
                upsample_type=config.upsampling,
                upsample_residual=config.upsample_residual or (True,) * len(config.upsampling),
                upsample_factor=config.upsample_factors,
                patch_size=config.patch,
                decoder_causal=config.decoder_causal,
                encoder_spatial_padding_mode=config.encoder_padding,
                decoder_spatial_padding_mode=config.decoder_padding,
                spatial_compression_ratio=config.spatial_stride,
                temporal_compression_ratio=config.temporal_stride,
            )
        public.load_state_dict(self.vae.state_dict(), assign=True)
        return public.eval().requires_grad_(False)

    def _denormalise(self, latents: Tensor) -> Tensor:
        """Raw latents [B, n, h, w, C] in the dtype of the weights."""
        raw = latents.permute(0, 1, 3, 4, 2).float() * self.vae.latents_std.float() + self.vae.latents_mean.float()
        return raw.to(self.dtype)


def to_uint8(pixels: Tensor) -> Tensor:
    """Displayable frames uint8 [B, F, H, W, 3] of pixels [B, 3, F, H, W] in [-1, 1], rounded to the nearest level."""
    levels = ((pixels.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).contiguous()


def _all_started(flags: Tensor) -> bool:
    values = set(flags.tolist())
    if len(values) > 1:
        raise StateError("some streams of the batch have started, some have not; decode the two groups in two calls.")
    return bool(values and values.pop())
