"""Layers of the refiner: the video half of LTX-2's blocks, with the window that their self-attention reads going in.

Tokens are [B, L, C] with L = frames * h * w; keys and values [B, frames, S, heads, head_dim] with S = h * w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sanawm_env.kernels.window_attention import window_attention
from sanawm_env.model.refiner_state import RefinerConfig

Keys = tuple[Tensor, Tensor]
Past = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]

# What the video half consists of. The rest of LTX-2, sound and what passes between sound and picture, is never run.
VIDEO = {
    *("proj_in", "time_embed", "caption_projection", "rope", "transformer_blocks"),
    *("scale_shift_table", "norm_out", "proj_out"),
}
VIDEO_BLOCK = {"scale_shift_table", "norm1", "attn1", "norm2", "attn2", "norm3", "ff"}

# What the masked tokens of a text lose in the softmax; finite, so that a text without any valid token stays finite.
MASKED = -10_000.0


@dataclass(frozen=True, eq=False)
class Rotation:
    """Cosine and sine of rotary angles [B, T, S, heads, head_dim / 2], fp32. split: a pair lies half a head apart,
    otherwise side by side.
    """

    cos: Tensor
    sin: Tensor
    split: bool

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, T, S, heads, head_dim], each pair rotated by its angle in fp32; same dtype."""
        lanes, pair = ((2, -1), -2) if self.split else ((-1, 2), -1)
        a, b = x.float().unflatten(-1, lanes).unbind(pair)
        turned = torch.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], dim=pair)
        return turned.flatten(-2).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Window:
    """What a block's queries read: the block itself, then sink and history.

    rotation: of the block. past: of each layer the parts of the keys and of the values that follow the block's own.
    lengths: valid keys of each world, those of the block included.
    """

    rotation: Rotation
    past: list[Past]
    lengths: tuple[int, ...]


class Reading:
    """A text that was projected to [B, L, C], as the layers read it. bias: [B, 1, 1, L] of masked tokens, or None."""

    def __init__(self, projected: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self._projected = projected
        self._keys: dict[int, Keys] = {}

    def keys(self, layer: int, attn: Any) -> Keys:
        """Keys and values [B, heads, L, head_dim] of a layer with the text attention `attn`: computed on its first
        pass, which needs its weights anyway, and kept for the others.
        """
        if layer not in self._keys:
            k, v = attn.norm_k(attn.to_k(self._projected)), attn.to_v(self._projected)
            self._keys[layer] = (_heads(attn, k).transpose(1, 2), _heads(attn, v).transpose(1, 2))
        return self._keys[layer]


def keep_video_half(transformer: Any) -> None:
    """Drops every layer and weight of LTX-2's transformer that refining does not run, about a third of them."""
    for module, kept in ((transformer, VIDEO), *((block, VIDEO_BLOCK) for block in transformer.transformer_blocks)):
        names = {name for name, _ in (*module.named_children(), *module.named_parameters(recurse=False))}
        for name in names - kept:
            delattr(module, name)


def rotation_at(
    rope: Any, config: RefinerConfig, position: Tensor, grid: tuple[int, int], device: torch.device
) -> Rotation:
    """Rotation of tokens at latent positions [B, T] on a grid (h, w), by the settings of diffusers' `rope` module (spec
    rollout.md 8, "RoPE coordinates").
    """
    # A latent stands for a range of frames, the first one for a single frame; its place is the range's middle.
    edges = torch.stack([position, position + 1]).to(device, torch.float64) * config.temporal_stride
    seconds = (edges + rope.causal_offset - config.temporal_stride).clamp_min(0).mean(0) / config.fps
    rows, columns = (
        (torch.arange(size, device=device, dtype=torch.float64) + 0.5) * config.spatial_stride for size in grid
    )
    full = (*position.shape, *grid)
    shares = torch.stack(
        [
            (seconds / rope.base_num_frames)[:, :, None, None].expand(full),
            (rows / rope.base_height)[:, None].expand(full),
            (columns / rope.base_width).expand(full),
        ],
        dim=-1,
    )
    # The weights know frequencies of single precision, whatever they were computed in. The angles themselves keep
    # double precision: in single precision they would be off by half a radian after an hour of video.
    count = rope.dim // 6
    exponents = torch.linspace(
        0, 1, count, device=device, dtype=torch.float64 if rope.double_precision else torch.float32
    )
    rates = (rope.theta**exponents * torch.pi / 2).float().double()
    # Lanes run frequency by frequency, time, row and column each; the first few, which do not divide, stay still.
    angles = ((2 * shares - 1)[..., None, :] * rates[:, None]).flatten(-2)
    still = angles.new_zeros(*full, rope.dim // 2 - 3 * count)
    angles = torch.cat([still, angles], dim=-1).flatten(2, 3).unflatten(-1, (rope.num_attention_heads, -1))
    return Rotation(angles.cos().float(), angles.sin().float(), rope.rope_type == "split")


def run_block(
    block: Any, x: Tensor, modulation: Tensor, frames: int, window: Window, past: Past, text: Keys, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens x [B, L, C] of `frames` latent frames after one of LTX-2's blocks; also the keys of their self-attention
    before and after rotation, and its values.

    modulation: [1, 6, C] of the noise level. past: what this layer's self-attention reads beside the tokens. text,
    bias: of a `Reading`.
    """
    # Shift, scale and gate of the self-attention, then of the feed-forward; each [1, C].
    shift, scale, gate, *feed = (block.scale_shift_table + modulation).unbind(1)
    u = block.norm1(x) * (1 + scale) + shift
    seen, raw, rotated, v = _self_attention(block.attn1, u, frames, window, past)
    x = x + seen * gate
    x = x + _text_attention(block.attn2, block.norm2(x), text, bias)
    shift, scale, gate = feed
    x = x + block.ff(block.norm3(x) * (1 + scale) + shift) * gate
    return x, raw, rotated, v


def text_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, L] to add to the logits of a text with this mask [B, L], 1 for a valid token."""
    return ((1 - mask.to(dtype)) * MASKED)[:, None, None]


def _heads(attn: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1))


def _self_attention(
    attn: Any, u: Tensor, frames: int, window: Window, past: Past
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention of tokens u [B, L, C] over their window; also their keys before and after rotation, and values."""
    q, raw, v = (
        _heads(attn, x).unflatten(1, (frames, -1))
        for x in (attn.norm_q(attn.to_q(u)), attn.norm_k(attn.to_k(u)), attn.to_v(u))
    )
    q, k = window.rotation(q), window.rotation(raw)
    keys, values = (torch.cat([own, *others], dim=1).flatten(1, 2) for own, others in zip((k, v), past))
    seen = window_attention(q.flatten(1, 2), keys, values, window.lengths, attn.head_dim**-0.5)
    return _project(attn, u, seen), raw, k, v


def _text_attention(attn: Any, u: Tensor, text: Keys, bias: Tensor | None) -> Tensor:
    q = _heads(attn, attn.norm_q(attn.to_q(u))).transpose(1, 2)
    seen = scaled_dot_product_attention(q, *text, attn_mask=bias, scale=attn.head_dim**-0.5)
    return _project(attn, u, seen.transpose(1, 2))


def _project(attn: Any, u: Tensor, seen: Tensor) -> Tensor:
    """Gate, where the weights have one, and output projection of what each head has seen, [B, L, heads, head_dim]."""
    if attn.to_gate_logits is not None:
        seen = seen * (2 * torch.sigmoid(attn.to_gate_logits(u)))[..., None]
    projection, dropout = attn.to_out
    return dropout(projection(seen.flatten(2)))
