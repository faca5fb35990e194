"""Layers of the refiner: the video half of LTX-2's blocks, with the window that their self-attention reads going in.

Tokens are [B, L, C] with L = frames * h * w; keys and values [B, frames, S, heads, head_dim] with S = h * w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sanawm_env.kernels.encoding import rotate
from sanawm_env.kernels.gated_residual import gated_residual
from sanawm_env.kernels.modulated_norm import modulated_norm
from sanawm_env.kernels.rms_norm import rms_norm
from sanawm_env.kernels.window_attention import window_attention
from sanawm_env.model.quantised import FP8Linear
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
        return rotate(x, self.cos, self.sin, split=self.split).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Window:
    """What a block's queries read: the block itself, then sink and history.

    rotation: of the block. past: of each layer the parts of the keys and of the values that follow the block's own.
    lengths: valid keys of each world, those of the block included.
    """

    rotation: Rotation
    past: list[Past]
    lengths: tuple[int, ...]

    def keys(self, layer: int, k: Tensor, v: Tensor) -> Keys:
        """Keys and values [B, frames, S, heads, head_dim] of a layer behind the block's own k and v."""
        keys, values = self.past[layer]
        return torch.cat([k, *keys], dim=1), torch.cat([v, *values], dim=1)


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
    block: Any, x: Tensor, modulation: Tensor, frames: int, window: Window, layer: int, text: Keys, bias: Tensor | None
) -> tuple[Tensor, Tensor, Keys]:
    """Tokens x [B, L, C] of `frames` latent frames after LTX-2's block `layer`; also what its self-attention projects
    for its keys, before norm and rotation, and its keys and values.

    modulation: [1, 6, C] of the noise level. text, bias: of a `Reading`.
    """
    # Shift, scale and gate of the self-attention, then of the feed-forward; each [1, 1, 1, C], one for all frames.
    shift, scale, gate, *feed = (block.scale_shift_table + modulation)[:, None, None].unbind(3)
    u = modulated_norm(x[:, None], shift, scale, centred=False)[:, 0]
    seen, raw, keys = _self_attention(block.attn1, u, frames, window, layer)
    x = gated_residual(x[:, None], gate, seen[:, None])[:, 0]
    x = x + _text_attention(block.attn2, rms_norm(x, None, block.norm2.eps), text, bias)
    shift, scale, gate = feed
    u = modulated_norm(x[:, None], shift, scale, centred=False)[:, 0]
    return gated_residual(x[:, None], gate, _feed_forward(block.ff, u)[:, None])[:, 0], raw, keys


def raw_keys(block: Any, raw: Tensor, frames: int) -> Tensor:
    """Keys [B, frames, S, heads, head_dim] before their rotation, of what `run_block` gives of them."""
    attn = block.attn1
    return _heads(attn, rms_norm(raw, attn.norm_k.weight, attn.norm_k.eps)).unflatten(1, (frames, -1))


def text_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, L] to add to the logits of a text with this mask [B, L], 1 for a valid token."""
    return ((1 - mask.to(dtype)) * MASKED)[:, None, None]


def _heads(attn: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1))


def _self_attention(attn: Any, u: Tensor, frames: int, window: Window, layer: int) -> tuple[Tensor, Tensor, Keys]:
    """Attention of tokens u [B, L, C] over their window; also their projection for keys, and keys and values."""
    raw, v = attn.to_k(u), _heads(attn, attn.to_v(u)).unflatten(1, (frames, -1))
    turn = (window.rotation.cos, window.rotation.sin)
    q, k = (
        _heads(attn, rms_norm(x.unflatten(1, (frames, -1)), norm.weight, norm.eps, turn, split=window.rotation.split))
        for x, norm in ((attn.to_q(u), attn.norm_q), (raw, attn.norm_k))
    )
    keys, values = (x.flatten(1, 2) for x in window.keys(layer, k, v))
    seen = window_attention(q.flatten(1, 2), keys, values, window.lengths, attn.head_dim**-0.5)
    return _project(attn, u, seen), raw, (k, v)


def _text_attention(attn: Any, u: Tensor, text: Keys, bias: Tensor | None) -> Tensor:
    q = _heads(attn, rms_norm(attn.to_q(u), attn.norm_q.weight, attn.norm_q.eps)).transpose(1, 2)
    seen = scaled_dot_product_attention(q, *text, attn_mask=bias, scale=attn.head_dim**-0.5)
    return _project(attn, u, seen.transpose(1, 2))


def _feed_forward(ff: Any, u: Tensor) -> Tensor:
    opening, dropout, closing = ff.net
    if isinstance(closing, FP8Linear):
        return closing(opening.proj(u), gelu=True)
    return closing(dropout(opening(u)))


def _project(attn: Any, u: Tensor, seen: Tensor) -> Tensor:
    """Gate, where the weights have one, and output projection of what each head has seen, [B, L, heads, head_dim]."""
    if attn.to_gate_logits is not None:
        seen = seen * (2 * torch.sigmoid(attn.to_gate_logits(u)))[..., None]
    projection, dropout = attn.to_out
    return dropout(projection(seen.flatten(2)))
