"""LTX-2's video encoder and decoder as functions over layers, with the memory of a stream going in and out.

Diffusers runs a whole clip and keeps nothing. These functions read the weights of the same layers (video_layers.py) and
compute the same, with two differences that streaming needs (spec rollout.md 9): a causal convolution takes its last k-1
input frames from a cache, and a temporal upsampler drops its leading frames only at the start of a stream.

Activations are [B, T, H, W, C], channels last. On a CPU a convolution over time and space runs as one over space on
the k frames side by side as channels: the same sums, in fp32 seven times as fast as torch's own. On a GPU torch's own
is the faster one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanawm_env.kernels.channels_to_space import channels_to_space
from sanawm_env.kernels.conv_frames import conv_frames

Cache = dict[str, Tensor]

EPSILON = 1e-8  # of the mean square, where channels are brought to unit root mean square


class Stream:
    """Where the convolutions of one call find the frames before theirs, and leave their last ones.

    old: the cache of the call before, None at the start. keep: whether `new` is wanted. causal: without it convolutions
    look ahead as far as back, beyond the last frame at that frame repeated, and `old` must be None.
    """

    def __init__(self, old: Cache | None = None, keep: bool = False, causal: bool = True) -> None:
        self.old, self.keep, self.causal = old, keep, causal
        self.new: Cache = {}

    @property
    def is_start(self) -> bool:
        return self.old is None

    def extend(self, name: str, x: Tensor, past: int, border: tuple[int, int], epsilon: float | None = None) -> Tensor:
        """x, activated where an epsilon is given, with mirrored borders and the `past` frames before it: the cached
        ones, at the start its own first frame repeated.

        Where the stream is not causal, half of those frames come after it.
        """
        ahead = 0 if self.causal else past // 2
        before = None if self.old is None else self.old[name]
        extended = conv_frames(x, before, past, ahead=ahead, border=border, epsilon=epsilon)
        if self.keep:
            rows, columns = (slice(count, count + size) for count, size in zip(border, x.shape[2:4], strict=True))
            self.new[name] = extended[:, -past:, rows, columns].clone(memory_format=torch.contiguous_format)
        return extended


def lay_out(module: nn.Module) -> None:
    """Reorders convolution weights in memory, keeping values and shapes, so that `_convolve` reads them in place on the
    device where they are.
    """
    for conv in module.modules():
        if isinstance(conv, nn.Conv3d):
            on_cpu = conv.weight.device.type == "cpu"
            there, back = ((0, 3, 4, 2, 1), (0, 4, 3, 1, 2)) if on_cpu else ((0, 2, 3, 4, 1), (0, 4, 1, 2, 3))
            conv.weight.data = conv.weight.data.permute(there).contiguous().permute(back)


def encode(encoder: Any, pixels: Tensor, stream: Stream) -> Tensor:
    """Moments [B, n, h, w, C+1] of pixels [B, 3, F, H, W] that continue `stream`: C means and one shared log-variance.
    F is 1 + rk at the start of a stream, where n is 1 + k, and rk behind it.
    """
    x = _convolve(encoder.conv_in, "conv_in", _fold_patches(pixels, encoder.patch_size), stream)
    for i, block in enumerate(encoder.down_blocks):
        x = _residual_blocks(block, f"down_blocks.{i}", x, stream)
        for j, downsampler in enumerate(block.downsamplers or ()):
            x = _downsample(downsampler, f"down_blocks.{i}.downsamplers.{j}", x, stream)
    x = _residual_blocks(encoder.mid_block, "mid_block", x, stream)
    return _convolve(encoder.conv_out, "conv_out", x, stream, EPSILON)


def decode(decoder: Any, latents: Tensor, stream: Stream) -> Tensor:
    """Pixels [B, 3, F, H, W] of latents [B, n, h, w, C] that continue `stream`."""
    x = _convolve(decoder.conv_in, "conv_in", latents, stream)
    x = _residual_blocks(decoder.mid_block, "mid_block", x, stream)
    for i, block in enumerate(decoder.up_blocks):
        if block.conv_in is not None:
            x = _residual_block(block.conv_in, f"up_blocks.{i}.conv_in", x, stream)
        for j, upsampler in enumerate(block.upsamplers or ()):
            x = _upsample(upsampler, f"up_blocks.{i}.upsamplers.{j}", x, stream)
        x = _residual_blocks(block, f"up_blocks.{i}", x, stream)
    x = _convolve(decoder.conv_out, "conv_out", x, stream, EPSILON)
    return _unfold_patches(x, decoder.patch_size)


def memory_shapes(decoder: nn.Module, height: int, width: int) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Name and shape (past frames, H, W, C) of what each convolution of the decoder keeps of a stream.

    height, width: of the latent grid.
    """
    scale = 1
    for name, module in decoder.named_modules():
        causal: Any = module
        if hasattr(module, "conv") and hasattr(module, "kernel_size"):
            yield name, (causal.kernel_size[0] - 1, height * scale, width * scale, causal.in_channels)
        # An upsampler's convolution works on the small grid, all that is listed after it on the large one.
        if name.endswith("upsamplers.0.conv"):
            upsampler: Any = decoder.get_submodule(name.removesuffix(".conv"))
            scale *= upsampler.stride[1]


def _convolve(causal: Any, name: str, x: Tensor, stream: Stream, epsilon: float | None = None) -> Tensor:
    """Convolution of x; with an epsilon, of SiLU of x at unit root mean square over the channels of each pixel."""
    conv = causal.conv
    taps, padding, border = conv.kernel_size[0], conv.padding[1:], (0, 0)
    if conv.padding_mode == "reflect":
        padding, border = border, padding
    frames = x.shape[1]
    x = stream.extend(name, x, taps - 1, border, epsilon)
    if x.device.type == "cpu":
        side_by_side = torch.cat([x[:, k : k + frames] for k in range(taps)], dim=-1)
        weight = conv.weight.transpose(1, 2).flatten(1, 2)
        y = F.conv2d(side_by_side.flatten(0, 1).permute(0, 3, 1, 2), weight, conv.bias, padding=padding)
        return y.permute(0, 2, 3, 1).unflatten(0, (x.shape[0], frames))
    return F.conv3d(x.permute(0, 4, 1, 2, 3), conv.weight, conv.bias, padding=(0, *padding)).permute(0, 2, 3, 4, 1)


def _residual_blocks(parent: Any, name: str, x: Tensor, stream: Stream) -> Tensor:
    for i, block in enumerate(parent.resnets):
        x = _residual_block(block, f"{name}.resnets.{i}", x, stream)
    return x


def _residual_block(block: Any, name: str, x: Tensor, stream: Stream) -> Tensor:
    y = _convolve(block.conv1, f"{name}.conv1", x, stream, EPSILON)
    y = _convolve(block.conv2, f"{name}.conv2", y, stream, EPSILON)
    if block.conv_shortcut is not None:
        x = F.linear(block.norm3(x), block.conv_shortcut.weight.flatten(1), block.conv_shortcut.bias)
    return y + x


def _downsample(module: Any, name: str, x: Tensor, stream: Stream) -> Tensor:
    """Convolution, then time and space to channels, plus the input folded likewise, channels averaged in groups."""
    if stream.is_start:  # the first frame stands alone, as if the others of its group had been like it
        x = torch.cat([x[:, : module.stride[0] - 1], x], dim=1)
    folded = _space_to_channels(x, module.stride).unflatten(-1, (-1, module.group_size)).mean(-1)
    return _space_to_channels(_convolve(module.conv, f"{name}.conv", x, stream), module.stride) + folded


def _upsample(module: Any, name: str, x: Tensor, stream: Stream) -> Tensor:
    """Convolution, then channels to time and space, plus the input enlarged likewise."""
    # The first latent stands for one frame: the others that the enlargement makes of it lie before the stream.
    drop = module.stride[0] - 1 if stream.is_start else 0
    y = _convolve(module.conv, f"{name}.conv", x, stream)
    return channels_to_space(y, x if module.residual else None, tuple(module.stride), drop)


def _space_to_channels(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    batch, frames, height, width, _ = x.shape
    time, high, wide = stride
    x = x.reshape(batch, frames // time, time, height // high, high, width // wide, wide, -1)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4)


def _fold_patches(pixels: Tensor, patch: int) -> Tensor:
    """[B, T, H / patch, W / patch, 3 * patch * patch] of [B, 3, T, H, W]; patches column by column (LTX-2's order)."""
    x = pixels.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return x.permute(0, 2, 3, 5, 1, 6, 4).flatten(4)


def _unfold_patches(x: Tensor, patch: int) -> Tensor:
    x = x.unflatten(4, (-1, patch, patch)).permute(0, 4, 1, 2, 6, 3, 5)
    return x.flatten(5, 6).flatten(3, 4)
