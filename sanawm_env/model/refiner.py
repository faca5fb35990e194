"""The LTX-2 refiner: adds detail to finished latents, block by block over a bounded window or a clip at once (spec
rollout.md 8).

Weights and layers are those of diffusers' `SanaWMLTX2RefinerTransformer3DModel`; the functions below run the video
half of its blocks. Diffusers' own forward pass keeps a window that grows and slides by concatenation, of one age for
the whole batch. Here the window is a state of fixed shape that goes in and comes out, and every world of a batch may
be of another age. Two sums are also done once instead of once a token or a pass: the noise level's modulation, which
all tokens of a pass share, and the text's keys and values, which no noise level changes.

Tokens are [B, L, C] with L = frames * h * w; keys and values [B, frames, S, heads, head_dim] with S = h * w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sanawm_env.errors import ConfigError, StateError
from sanawm_env.kernels.window_attention import window_attention

Keys = tuple[Tensor, Tensor]

# What the masked tokens of a text lose in the softmax; finite, so that a text without any valid token stays finite.
MASKED = -10_000.0


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """How latents are refined; the defaults are those of the released weights (spec rollout.md 8.2).

    block_latents: latent frames refined together. sink: first latent frames, kept as they came and read by every block.
    kv_max_frames: sink and history together; the block itself comes on top. sigmas: noise levels, from the first one
    (where truncated denoising begins) down to 0. fps: of the video, the unit of temporal positions. temporal_stride,
    spatial_stride: frames and pixels of one latent.
    """

    block_latents: int = 3
    sink: int = 1
    kv_max_frames: int = 11
    sigmas: tuple[float, ...] = (0.909375, 0.725, 0.421875, 0.0)
    fps: float = 16.0
    temporal_stride: int = 8
    spatial_stride: int = 32

    def __post_init__(self) -> None:
        for name in ("block_latents", "sink", "temporal_stride", "spatial_stride"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, allowed is a whole number >= 1.")
        if self.kv_max_frames < self.sink + self.block_latents:
            raise ConfigError(
                f"kv_max_frames is {self.kv_max_frames}, allowed >= {self.sink + self.block_latents} (sink "
                f"{self.sink} + block {self.block_latents}): a smaller window flickers from block to block."
            )
        falling = all(a > b for a, b in pairwise(self.sigmas))
        if len(self.sigmas) < 2 or not falling or self.sigmas[0] > 1 or self.sigmas[-1] != 0:
            raise ConfigError(
                f"sigmas are {self.sigmas}, allowed is a falling row from at most 1 down to 0, "
                "as in (0.909375, 0.725, 0.421875, 0.0)."
            )
        if not self.fps > 0:
            raise ConfigError(f"fps is {self.fps}, allowed > 0; the released weights expect 16.")

    @property
    def history(self) -> int:
        """Refined latent frames that a block can read."""
        return self.kv_max_frames - self.sink


@dataclass(kw_only=True)
class RefinerState:
    """The window of a batch of worlds, one row each; every shape is fixed by config, weights and grid.

    position: [B] int64 on the host, index of the next latent frame to refine; 0 before `Refiner.open`. layers: one dict
    a transformer layer: sink_k, sink_v [B, sink, S, heads, head_dim], keys before their rotation, which differs from
    block to block; history_k, history_v [B, history, S, heads, head_dim], keys rotated. Latent frame f lies in slot (f
    - sink) % history, so the filled slots are always the first ones; their order means nothing to attention. grid: (h,
    w) of the latents.
    """

    position: Tensor
    layers: list[dict[str, Tensor]]
    grid: tuple[int, int]

    @property
    def batch_size(self) -> int:
        return self.position.shape[0]

    @property
    def filled(self) -> Tensor:
        """[B] history frames that the next block reads."""
        first = self.layers[0]
        return (self.position - first["sink_k"].shape[1]).clamp(0, first["history_k"].shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under flat names, batch first."""
        flat = {f"layers.{index}.{name}": x for index, layer in enumerate(self.layers) for name, x in layer.items()}
        return {"position": self.position} | flat

    def map(self, change: Callable[[str, Tensor], Tensor]) -> RefinerState:
        """A new state whose tensors are `change(flat name, tensor)`."""
        layers = [
            {name: change(f"layers.{index}.{name}", x) for name, x in layer.items()}
            for index, layer in enumerate(self.layers)
        ]
        return replace(self, position=change("position", self.position), layers=layers)

    def clone(self) -> RefinerState:
        """An independent copy."""
        return self.map(lambda _, x: x.clone())

    def nbytes(self) -> dict[str, int]:
        """Bytes by part: sink, history, and the total."""
        parts = dict.fromkeys(("sink", "history"), 0)
        for layer in self.layers:
            for name, x in layer.items():
                parts[name.split("_")[0]] += x.nbytes
        return parts | {"total": sum(parts.values()) + self.position.nbytes}


class Refiner(nn.Module):
    """LTX-2's video transformer as a refiner.

    transformer: diffusers' `SanaWMLTX2RefinerTransformer3DModel`, or the dict of its config.json, from which one with
    random weights is built. Raises ConfigError for a transformer of another kind or with parts that refining lacks.

    All methods take latents [B, T, C, h, w] as the denoiser gives them, standard normal noise of the refined frames'
    shape, drawn by the caller, text [B, L, caption_channels] as LTX-2's connectors give it and its mask [B, L] (1 for a
    valid token; None where all are valid, which is faster). They raise StateError for shapes that do not fit. Gradients
    flow; whoever needs none calls under `torch.no_grad()`.
    """

    def __init__(self, config: RefinerConfig, transformer: nn.Module | Mapping[str, Any]) -> None:
        super().__init__()
        # Importing diffusers takes a second or two; only whoever builds a refiner pays for it.
        from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2RefinerTransformer3DModel

        if isinstance(transformer, Mapping):
            transformer = SanaWMLTX2RefinerTransformer3DModel.from_config(dict(transformer))
        if not isinstance(transformer, SanaWMLTX2RefinerTransformer3DModel):
            raise ConfigError(
                f"transformer is a {type(transformer).__name__}, allowed is SanaWMLTX2RefinerTransformer3DModel or the "
                "dict of its config.json; load it with that class's from_pretrained."
            )
        self.config = config
        self.transformer: Any = transformer
        self._check_transformer()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are never quantised; the state's tensors have it too."""
        dtype: torch.dtype = self.transformer.proj_in.weight.dtype
        return dtype

    @property
    def caption_channels(self) -> int:
        """Width of the text it reads."""
        width: int = self.transformer.config.caption_channels
        return width

    def empty_state(
        self, batch: int, grid: tuple[int, int], *, device: torch.device | str | None = None
    ) -> RefinerState:
        """The state of worlds that have not begun; grid: (h, w) of their latents. By default on the weights' device."""
        return self._empty(batch, grid, self.config.history, device)

    def open(self, state: RefinerState, first: Tensor, text: Tensor, text_mask: Tensor | None) -> RefinerState:
        """The state in which the first latents [B, sink, C, h, w] are the sink, at noise level 0; they stay as they
        are.

        Raises StateError unless `state` is empty.
        """
        self._check_state(state)
        if state.position.any():
            raise StateError(
                f"the worlds are at latents {state.position.tolist()}, allowed is 0: take `empty_state` to begin anew."
            )
        self._check(state, first, self.config.sink, "first")
        return self._open(state, first, self._read_text(text, text_mask, state.batch_size))

    def refine(
        self, state: RefinerState, latents: Tensor, noise: Tensor, text: Tensor, text_mask: Tensor | None
    ) -> tuple[Tensor, RefinerState]:
        """One block of every world refined, and the state for the next one (spec rollout.md 8.2); `state` is unchanged.

        latents, noise: [B, block_latents, C, h, w], the latent frames from `state.position` on. The result has the
        latents' shape and dtype. Worlds may be of different ages; those that agree are computed in one attention call
        if they are neighbours in the batch.
        """
        self._check_state(state)
        if not state.position.all():
            raise StateError(
                f"the worlds are at latents {state.position.tolist()}, allowed >= {self.config.sink}; "
                "begin each with `open`."
            )
        self._check(state, latents, self.config.block_latents, "latents")
        self._check(state, noise, self.config.block_latents, "noise")
        reading = self._read_text(text, text_mask, state.batch_size)
        window = self._window(state, self.config.block_latents)
        refined = self._denoise(latents, noise, window, reading)
        # What later blocks read always comes from one more pass over the finished latents at noise level 0.
        _, keys = self._predict(refined, 0.0, window, reading, keep="rotated")
        return refined.to(latents.dtype), self._append(state, keys)

    def refine_clip(self, latents: Tensor, noise: Tensor, text: Tensor, text_mask: Tensor | None) -> Tensor:
        """A whole clip refined at once (spec rollout.md 8.1).

        latents: [B, T, C, h, w] with T > sink; noise: [B, T - sink, C, h, w]. Returns the latents' shape and dtype: the
        sink as it came, then the refined frames. Every refined frame attends to all of the clip, the sink to itself.
        """
        sink = self.config.sink
        if latents.ndim != 5 or latents.shape[1] <= sink:
            raise StateError(
                f"latents have shape {tuple(latents.shape)}, allowed is [B, T, C, h, w] with T > {sink} (the sink)."
            )
        batch, frames, _, height, width = latents.shape
        empty = self._empty(batch, (height, width), history=0)
        self._check(empty, latents, frames, "latents")
        self._check(empty, noise, frames - sink, "noise")
        reading = self._read_text(text, text_mask, batch)
        # No token of the sink reads the rest of the clip: its keys are those of a pass over the sink alone. What is
        # left is one long block right behind it.
        opened = self._open(empty, latents[:, :sink], reading)
        window = self._window(opened, frames - sink)
        return torch.cat([latents[:, :sink], self._denoise(latents[:, sink:], noise, window, reading)], dim=1)

    def sink_positions(self, state: RefinerState) -> Tensor:
        """[B, sink] latent positions at which the next block sees the sink: always right before its history, so that
        the distance stays bounded however long a world runs.
        """
        before = state.position - state.filled - self.config.sink
        return before[:, None] + torch.arange(self.config.sink)

    def _empty(
        self, batch: int, grid: tuple[int, int], history: int, device: torch.device | str | None = None
    ) -> RefinerState:
        weight = self.transformer.proj_in.weight
        device = weight.device if device is None else device
        layers = [
            {name: torch.zeros(shape, device=device, dtype=weight.dtype) for name, shape in shapes.items()}
            for shapes in self._shapes(batch, grid, history)
        ]
        return RefinerState(position=torch.zeros(batch, dtype=torch.int64), layers=layers, grid=grid)

    def _shapes(self, batch: int, grid: tuple[int, int], history: int) -> list[dict[str, tuple[int, ...]]]:
        """What each layer keeps."""
        sizes = self.transformer.config
        token = (grid[0] * grid[1], sizes.num_attention_heads, sizes.attention_head_dim)
        frames = {"sink_k": self.config.sink, "sink_v": self.config.sink, "history_k": history, "history_v": history}
        return [{name: (batch, count, *token) for name, count in frames.items()}] * sizes.num_layers

    def _open(self, state: RefinerState, first: Tensor, reading: _Reading) -> RefinerState:
        """`open` without the checks."""
        alone = _Window(
            rotation=self._rotation(torch.arange(self.config.sink).expand(state.batch_size, -1), state.grid),
            past=[((), ())] * len(state.layers),
            lengths=(first[0, :, 0].numel(),) * state.batch_size,
        )
        _, keys = self._predict(first, 0.0, alone, reading, keep="raw")
        layers = [layer | {"sink_k": k, "sink_v": v} for layer, (k, v) in zip(state.layers, keys, strict=True)]
        return replace(state, position=state.position + self.config.sink, layers=layers)

    def _denoise(self, latents: Tensor, noise: Tensor, window: _Window, reading: _Reading) -> Tensor:
        """Truncated denoising from the first noise level to 0 by Euler steps; fp32."""
        sigmas = self.config.sigmas
        x = (1 - sigmas[0]) * latents.float() + sigmas[0] * noise.float()
        for sigma, following in pairwise(sigmas):
            velocity, _ = self._predict(x, sigma, window, reading)
            x = x + (following - sigma) * velocity.float()
        return x

    def _window(self, state: RefinerState, frames: int) -> _Window:
        """What a block of `frames` latent frames at `state.position` reads."""
        tokens = state.grid[0] * state.grid[1]
        sink = self._rotation(self.sink_positions(state), state.grid)
        valid = frames + self.config.sink + state.filled
        return _Window(
            rotation=self._rotation(state.position[:, None] + torch.arange(frames), state.grid),
            past=[
                ((sink(layer["sink_k"]), layer["history_k"]), (layer["sink_v"], layer["history_v"]))
                for layer in state.layers
            ],
            lengths=tuple((valid * tokens).tolist()),
        )

    def _append(self, state: RefinerState, keys: list[Keys]) -> RefinerState:
        """The state after a block with these keys and values, each [B, block_latents, S, heads, head_dim]."""
        count, history = self.config.block_latents, self.config.history
        device = state.layers[0]["history_k"].device
        slots = (state.position[:, None] - self.config.sink + torch.arange(count)) % history
        where = (torch.arange(state.batch_size)[:, None].to(device), slots.to(device))
        layers = [
            layer
            | {name: layer[name].index_put(where, x.to(layer[name])) for name, x in zip(("history_k", "history_v"), kv)}
            for layer, kv in zip(state.layers, keys, strict=True)
        ]
        return replace(state, position=state.position + count, layers=layers)

    def _predict(
        self,
        latents: Tensor,
        sigma: float,
        window: _Window,
        reading: _Reading,
        keep: Literal["raw", "rotated"] | None = None,
    ) -> tuple[Tensor, list[Keys]]:
        """Velocity of latents [B, n, C, h, w] at one noise level; the keys, raw or rotated, and values of each layer
        where they are asked for.
        """
        net = self.transformer
        frames, (height, width) = latents.shape[1], latents.shape[3:]
        x = net.proj_in(latents.to(self.dtype).permute(0, 1, 3, 4, 2).flatten(1, 3))
        timestep = torch.full((1,), sigma * net.config.timestep_scale_multiplier, device=x.device)
        modulation, embedded = net.time_embed(timestep, batch_size=1, hidden_dtype=x.dtype)
        kept = []
        for block, past, text in zip(net.transformer_blocks, window.past, reading.keys, strict=True):
            # Shift, scale and gate of the self-attention, then of the feed-forward; each [1, C].
            shift, scale, gate, *feed = (block.scale_shift_table + modulation.view(1, 6, -1)).unbind(1)
            u = block.norm1(x) * (1 + scale) + shift
            seen, raw, rotated, v = _self_attention(block.attn1, u, frames, window, past)
            x = x + seen * gate
            x = x + _text_attention(block.attn2, block.norm2(x), text, reading.bias)
            shift, scale, gate = feed
            x = x + block.ff(block.norm3(x) * (1 + scale) + shift) * gate
            if keep is not None:
                kept.append((raw if keep == "raw" else rotated, v))
        shift, scale = (net.scale_shift_table + embedded).unbind(0)
        velocity = net.proj_out(net.norm_out(x) * (1 + scale) + shift)
        return velocity.unflatten(1, (frames, height, width)).permute(0, 1, 4, 2, 3), kept

    def _read_text(self, text: Tensor, mask: Tensor | None, batch: int) -> _Reading:
        net = self.transformer
        width = net.config.caption_channels
        if text.ndim != 3 or text.shape[0] != batch or text.shape[2] != width:
            raise StateError(
                f"text has shape {tuple(text.shape)}, expected ({batch}, L, {width}): one row a world, "
                "as LTX-2's connectors give it."
            )
        if mask is not None and mask.shape != text.shape[:2]:
            raise StateError(
                f"text_mask has shape {tuple(mask.shape)}, expected {tuple(text.shape[:2])}: one value a token of text."
            )
        projected = net.caption_projection(text.to(self.dtype))
        keys = []
        for block in net.transformer_blocks:
            attn = block.attn2
            k, v = attn.norm_k(attn.to_k(projected)), attn.to_v(projected)
            keys.append((_heads(attn, k).transpose(1, 2), _heads(attn, v).transpose(1, 2)))
        bias = None if mask is None else ((1 - mask.to(projected.dtype)) * MASKED)[:, None, None]
        return _Reading(keys, bias)

    def _rotation(self, position: Tensor, grid: tuple[int, int]) -> _Rotation:
        """Rotation of tokens at latent positions [B, T] on a grid (spec rollout.md 8, "RoPE coordinates")."""
        rope, config = self.transformer.rope, self.config
        device = self.transformer.proj_in.weight.device
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
        return _Rotation(angles.cos().float(), angles.sin().float(), rope.rope_type == "split")

    def _check_state(self, state: RefinerState) -> None:
        expected = self._shapes(state.batch_size, state.grid, self.config.history)
        found = [{name: tuple(x.shape) for name, x in layer.items()} for layer in state.layers]
        if found != expected:
            raise StateError(
                f"the state has {len(found)} layers of {found[:1]}, expected {len(expected)} of {expected[0]}; "
                "step a state with the refiner whose `empty_state` made it."
            )

    def _check(self, state: RefinerState, x: Tensor, frames: int, name: str) -> None:
        shape = (state.batch_size, frames, self.transformer.config.in_channels, *state.grid)
        if tuple(x.shape) != shape:
            raise StateError(
                f"{name}: shape {tuple(x.shape)}, expected {shape}, [B, T, C, h, w] with one row a world of the state "
                "and its grid."
            )

    def _check_transformer(self) -> None:
        config, sizes = self.config, self.transformer.config
        strides = (config.temporal_stride, config.spatial_stride, config.spatial_stride)
        expected = {
            "patch_size": 1,
            "patch_size_t": 1,
            "cross_attn_mod": False,
            "use_prompt_embeddings": True,
            "out_channels": sizes.in_channels,
            "vae_scale_factors": strides,
        }
        for name, value in expected.items():
            found = tuple(sizes[name]) if name == "vae_scale_factors" else sizes[name]
            if found != value:
                raise ConfigError(
                    f"the transformer's {name} is {found}, the refiner needs {value}; take an LTX-2 refiner's config, "
                    "and its strides for RefinerConfig."
                )


@dataclass(frozen=True, eq=False)
class _Rotation:
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
class _Window:
    """What a block's queries read: the block itself, then sink and history.

    rotation: of the block. past: of each layer the parts of the keys and of the values that follow the block's own.
    lengths: valid keys of each world, those of the block included.
    """

    rotation: _Rotation
    past: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
    lengths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Reading:
    """Each layer's keys and values of the text [B, heads, L, head_dim] and the bias [B, 1, 1, L] of masked tokens."""

    keys: list[Keys]
    bias: Tensor | None


def _heads(attn: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1))


def _self_attention(
    attn: Any, u: Tensor, frames: int, window: _Window, past: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
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
