"""The causal video autoencoder: LTX-2's class, encoded as a clip and decoded as a stream with an explicit cache.

Weights and layers are those of diffusers' `AutoencoderKLLTX2Video`, from the Rooms size to the released one. Diffusers can only decode a
whole clip; `decode` below walks the same decoder modules itself, so that all that a stream remembers is a flat dict of tensors which goes
in and comes out (spec rollout.md 9): for each causal convolution its last k-1 input frames, and whether the stream has started.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanawm_env.errors import ConfigError, StateError, nearest

STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
Cache = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of the autoencoder; tuples run from the finest level to the coarsest, as in diffusers.

    encoder_widths: channels after each halving (the first level has latent_channels). decoder_widths, upsample_factors: channels before each
    doubling and what the doubling divides them by. encoder_layers, decoder_layers: residual blocks of each level, the coarsest (middle) last.
    levels: what each level halves, "spatial", "temporal" or "spatiotemporal"; the decoder mirrors `decoder_levels`, or `levels` when empty.
    patch: pixels of a side folded into channels before the first level.
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
    decoder_padding: str = "reflect"

    def __post_init__(self) -> None:
        for level in self.levels + self.decoder_levels:
            if level not in STRIDES:
                raise ConfigError(f"level is {level!r}; {nearest(level, STRIDES)}")
        lengths = {
            "encoder_widths": (self.encoder_widths, len(self.levels)),
            "encoder_layers": (self.encoder_layers, len(self.levels) + 1),
            "decoder_widths": (self.decoder_widths, len(self.upsampling)),
            "decoder_layers": (self.decoder_layers, len(self.upsampling) + 1),
            "upsample_factors": (self.upsample_factors, len(self.upsampling)),
        }
        for name, (values, expected) in lengths.items():
            if len(values) != expected:
                raise ConfigError(f"{name} is {values}, expected {expected} values for levels {self.levels}.")
        if _product(self.levels) != _product(self.upsampling):
            raise ConfigError(f"decoder_levels {self.decoder_levels} undo other strides than levels {self.levels}; make their products equal.")

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
    """Frames to latents and back; latents have zero mean and unit variance per channel over the training data.

    On a CPU the worlds of a batch are convolved one by one, so that a world's numbers do not depend on who shares its batch.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        # Importing diffusers takes a second or two; only whoever builds an autoencoder pays for it.
        from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video

        self.config = config
        self.vae = AutoencoderKLLTX2Video(
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
            upsample_residual=(True,) * len(config.upsampling),
            upsample_factor=config.upsample_factors,
            patch_size=config.patch,
            decoder_spatial_padding_mode=config.decoder_padding,
            spatial_compression_ratio=config.spatial_stride,
            temporal_compression_ratio=config.temporal_stride,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.encoder.conv_in.conv.weight.dtype

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Make raw latents with this mean and deviation (both [C]) come out normalised."""
        self.vae.latents_mean.copy_(mean)
        self.vae.latents_std.copy_(std)

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents [B, 1+k, C, h, w], float32, of clips: the posterior's mode (spec rollout.md 4).

        frames: [B, 3, 1+rk, H, W] in [-1, 1]; the first frame has a latent of its own, every r later ones share one.
        """
        stride = self.config.temporal_stride
        if (frames.shape[2] - 1) % stride:
            raise ConfigError(f"clip has {frames.shape[2]} frames, allowed is 1 + {stride}k; cut or extend it.")
        raw = _one_by_one(self._encode_raw, frames.to(self.dtype))
        return self._normalise(raw).transpose(1, 2)

    def _encode_raw(self, frames: Tensor) -> Tensor:
        return self.vae.encoder(frames)[:, : self.config.latent_channels].float()

    def _normalise(self, raw: Tensor) -> Tensor:
        return (raw - _per_channel(self.vae.latents_mean)) / _per_channel(self.vae.latents_std)

    def initial_cache(
        self, batch: int, height: int, width: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Cache:
        """The memory of `batch` streams that have not started. height, width: of the latent grid. Every tensor is batch first."""
        device = self.vae.latents_mean.device if device is None else device
        cache = {"started": torch.zeros(batch, dtype=torch.uint8, device=device)}
        for name, conv, scale in _causal_convolutions(self.vae.decoder):
            past = conv.kernel_size[0] - 1
            shape = (batch, conv.in_channels, past, height * scale, width * scale)
            cache[name] = torch.zeros(shape, dtype=dtype or self.dtype, device=device)
        return cache

    def decode(self, latents: Tensor, cache: Cache, *, started: bool | None = None) -> tuple[Tensor, Cache]:
        """Frames of the next latents of streams: (pixels [B, 3, F, H, W] in [-1, 1] or slightly beyond, new cache).

        latents: [B, n, C, h, w], normalised. cache: of `initial_cache` or of the previous call; it is not changed. A stream's first latent
        gives 1 frame, every other one r. started: what cache["started"] says, for callers who know it and cannot wait for the device.
        Raises StateError when streams that have started share a batch with others.
        """
        if started is None:
            started = _all_started(cache["started"])
        raw = latents.transpose(1, 2).float()
        raw = (raw * _per_channel(self.vae.latents_std) + _per_channel(self.vae.latents_mean)).to(self.dtype)
        if raw.device.type != "cpu" or raw.shape[0] == 1:
            return _decode(self.vae.decoder, raw, cache, started)
        rows = [
            _decode(self.vae.decoder, raw[i : i + 1], {k: v[i : i + 1] for k, v in cache.items()}, started)
            for i in range(raw.shape[0])
        ]
        return torch.cat([pixels for pixels, _ in rows]), {k: torch.cat([new[k] for _, new in rows]) for k in cache}


def to_uint8(pixels: Tensor) -> Tensor:
    """Displayable frames uint8 [B, F, H, W, 3] of pixels [B, 3, F, H, W] in [-1, 1], rounded to the nearest grey level."""
    levels = ((pixels.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).contiguous()


def _per_channel(values: Tensor) -> Tensor:
    return values.float().view(1, -1, 1, 1, 1)


def _one_by_one(function, x: Tensor) -> Tensor:
    """function(x), on a CPU world by world."""
    if x.device.type != "cpu" or x.shape[0] == 1:
        return function(x)
    return torch.cat([function(row) for row in x.split(1)])


def _all_started(flags: Tensor) -> bool:
    values = flags.tolist()
    if len(set(values)) > 1:
        raise StateError("some streams of the batch have started and some have not; decode the two groups in two calls.")
    return bool(values and values[0])


def _causal_convolutions(decoder: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Name, module and spatial scale (of its input, against the latent grid) of each temporal convolution, in the order of the data."""
    scale = 1
    for name, module in decoder.named_modules():
        if hasattr(module, "conv") and hasattr(module, "kernel_size"):
            yield name, module, scale
        # An upsampler's convolution comes before its enlargement; named_modules lists the upsampler first.
        if name.endswith("upsamplers.0.conv"):
            scale *= decoder.get_submodule(name.removesuffix(".conv")).stride[1]


class _Stream:
    """The cache of one decode call: reads the old tensors, collects the new ones."""

    def __init__(self, cache: Cache, started: bool) -> None:
        self.old, self.started = cache, started
        self.new: Cache = {"started": torch.ones_like(cache["started"])}

    def convolve(self, conv: nn.Module, name: str, x: Tensor) -> Tensor:
        """Causal convolution of the stream: the frames before x are the cached ones, or x's first one repeated at the start."""
        past = conv.kernel_size[0] - 1
        before = self.old[name].to(x.dtype) if self.started else x[:, :, :1].expand(-1, -1, past, -1, -1)
        extended = torch.cat([before, x], dim=2)
        self.new[name] = extended[:, :, -past:].to(self.old[name].dtype, copy=True)
        return conv.conv(extended)


def _decode(decoder: nn.Module, x: Tensor, cache: Cache, started: bool) -> tuple[Tensor, Cache]:
    stream = _Stream(cache, started)
    x = stream.convolve(decoder.conv_in, "conv_in", x)
    x = _residual_blocks(decoder.mid_block, "mid_block", x, stream)
    for i, block in enumerate(decoder.up_blocks):
        if block.conv_in is not None:
            x = _residual_block(block.conv_in, f"up_blocks.{i}.conv_in", x, stream)
        for j, upsampler in enumerate(block.upsamplers):
            x = _upsample(upsampler, f"up_blocks.{i}.upsamplers.{j}", x, stream)
        x = _residual_blocks(block, f"up_blocks.{i}", x, stream)
    x = stream.convolve(decoder.conv_out, "conv_out", F.silu(decoder.norm_out(x)))
    return _unfold_patches(x, decoder.patch_size), stream.new


def _residual_blocks(parent: nn.Module, name: str, x: Tensor, stream: _Stream) -> Tensor:
    for i, block in enumerate(parent.resnets):
        x = _residual_block(block, f"{name}.resnets.{i}", x, stream)
    return x


def _residual_block(block: nn.Module, name: str, x: Tensor, stream: _Stream) -> Tensor:
    y = stream.convolve(block.conv1, f"{name}.conv1", F.silu(block.norm1(x)))
    y = stream.convolve(block.conv2, f"{name}.conv2", F.silu(block.norm2(y)))
    if block.conv_shortcut is not None:
        x = block.conv_shortcut(block.norm3(x.movedim(1, -1)).movedim(-1, 1))
    return y + x


def _upsample(module: nn.Module, name: str, x: Tensor, stream: _Stream) -> Tensor:
    """Convolution, then channels to time and space, plus the input enlarged likewise; the frames that a stream's first frame would have
    before it are dropped."""
    time, high, wide = module.stride
    drop = 0 if stream.started else time - 1
    enlarged = _channels_to_space(stream.convolve(module.conv, f"{name}.conv", x), module.stride)[:, :, drop:]
    if not module.residual:
        return enlarged
    repeats = time * high * wide // module.upscale_factor
    return enlarged + _channels_to_space(x, module.stride).repeat(1, repeats, 1, 1, 1)[:, :, drop:]


def _channels_to_space(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    batch, _, frames, height, width = x.shape
    time, high, wide = stride
    x = x.reshape(batch, -1, time, high, wide, frames, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, -1, frames * time, height * high, width * wide)


def _unfold_patches(x: Tensor, patch: int) -> Tensor:
    """[B, 3 * patch * patch, T, h, w] to [B, 3, T, h * patch, w * patch]; within a patch, columns vary slowest (LTX-2's order)."""
    batch, _, frames, height, width = x.shape
    x = x.reshape(batch, -1, patch, patch, frames, height, width).permute(0, 1, 4, 5, 3, 6, 2)
    return x.reshape(batch, -1, frames, height * patch, width * patch)
