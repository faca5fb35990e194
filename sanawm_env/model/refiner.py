"""The LTX-2 refiner: adds detail to finished latents, block by block over a bounded window or a clip at once (spec
rollout.md 8).

Weights and layers are those of diffusers' `SanaWMLTX2RefinerTransformer3DModel`; refiner_layers.py runs the video half
of its blocks. Diffusers' own forward pass keeps a window that grows and slides by concatenation, of one age for
the whole batch. Here the window is a state of fixed shape that goes in and comes out, and every world of a batch may
be of another age. Two sums are also done once instead of once a token or a pass: the noise level's modulation, which
all tokens of a pass share, and the text's keys and values, which no noise level changes.

Tokens are [B, L, C] with L = frames * h * w; keys and values [B, frames, S, heads, head_dim] with S = h * w.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sanawm_env.errors import ConfigError, StateError
from sanawm_env.kernels.modulated_norm.reference import EPSILON
from sanawm_env.model.offload import device_of, on_demand, on_device
from sanawm_env.model.quantised import Quantisation
from sanawm_env.model.refiner_layers import (
    Keys,
    Reading,
    Rotation,
    Window,
    keep_video_half,
    raw_keys,
    rotation_at,
    run_block,
    text_bias,
)
from sanawm_env.model.refiner_state import RefinerConfig, RefinerState


class Refiner(nn.Module):
    """LTX-2's video transformer as a refiner.

    transformer: diffusers' `SanaWMLTX2RefinerTransformer3DModel`, or the dict of its config.json, from which one with
    random weights is built. It is taken over, and its audio half, which refining never runs, is dropped. Raises
    ConfigError for a transformer of another kind or with parts that refining lacks.

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
        self.quantisation: Quantisation | None = None  # of its large layers (quantised.py)
        self._check_transformer()
        keep_video_half(transformer)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are never quantised; the state's tensors have it too."""
        dtype: torch.dtype = self.transformer.proj_in.weight.dtype
        return dtype

    @property
    def blocks(self) -> Any:
        """Its transformer blocks."""
        return self.transformer.transformer_blocks

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

    @on_demand
    def open(self, state: RefinerState, first: Tensor, text: Tensor | None, text_mask: Tensor | None) -> RefinerState:
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

    @on_demand
    def refine(
        self,
        state: RefinerState,
        latents: Tensor,
        noise: Tensor,
        text: Tensor | None,
        text_mask: Tensor | None,
        *,
        position: Tensor | None = None,
    ) -> tuple[Tensor, RefinerState]:
        """One block of every world refined, and the state for the next one (spec rollout.md 8.2); `state` is unchanged.

        latents, noise: [B, block_latents, C, h, w], the latent frames from `state.position` on. position: the same
        [B] on the weights' device, for whom nothing may be copied there meanwhile. The result has the latents' shape
        and dtype. Worlds may be of different ages; those that agree are computed in one attention call if they are
        neighbours in the batch.
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
        position = state.position.to(device_of(self)) if position is None else position
        window = self._window(state, position, self.config.block_latents)
        refined = self._denoise(latents, noise, window, reading)
        # What later blocks read always comes from one more pass over the finished latents at noise level 0.
        _, keys = self._predict(refined, 0.0, window, reading, keep="rotated")
        return refined.to(latents.dtype), self._append(state, position, keys)

    @on_demand
    def velocity(self, state: RefinerState, x: Tensor, sigma: float, text: Tensor | None = None) -> Tensor:
        """Velocity (noise less refined latents) of blocks x [B, block_latents, C, h, w] at a noise level, as `refine`
        sees it on its way; what training compares.
        """
        self._check(state, x, self.config.block_latents, "x")
        window = self._window(state, state.position.to(device_of(self)), self.config.block_latents)
        return self._predict(x, sigma, window, self._read_text(text, None, state.batch_size))[0]

    @on_demand
    def commit(self, state: RefinerState, refined: Tensor, text: Tensor | None = None) -> RefinerState:
        """The state after blocks [B, block_latents, C, h, w] that are refined already."""
        self._check(state, refined, self.config.block_latents, "refined")
        position = state.position.to(device_of(self))
        window = self._window(state, position, self.config.block_latents)
        reading = self._read_text(text, None, state.batch_size)
        return self._append(state, position, self._predict(refined, 0.0, window, reading, keep="rotated")[1])

    @on_demand
    def refine_clip(self, latents: Tensor, noise: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor:
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
        window = self._window(opened, opened.position.to(device_of(self)), frames - sink)
        return torch.cat([latents[:, :sink], self._denoise(latents[:, sink:], noise, window, reading)], dim=1)

    def sink_positions(self, position: Tensor) -> Tensor:
        """[B, sink] latent positions at which blocks at `position` [B] see the sink: always right before their history,
        so that the distance stays bounded however long a world runs.
        """
        before = (position - self.config.sink - self.config.history).clamp_min(0)
        return before[:, None] + torch.arange(self.config.sink, device=position.device)

    def _empty(
        self, batch: int, grid: tuple[int, int], history: int, device: torch.device | str | None = None
    ) -> RefinerState:
        device = device_of(self) if device is None else device
        layers = [
            {name: torch.zeros(shape, device=device, dtype=self.dtype) for name, shape in shapes.items()}
            for shapes in self._shapes(batch, grid, history)
        ]
        return RefinerState(position=torch.zeros(batch, dtype=torch.int64), layers=layers, grid=grid)

    def _shapes(self, batch: int, grid: tuple[int, int], history: int) -> list[dict[str, tuple[int, ...]]]:
        """What each layer keeps."""
        sizes = self.transformer.config
        token = (grid[0] * grid[1], sizes.num_attention_heads, sizes.attention_head_dim)
        frames = {"sink_k": self.config.sink, "sink_v": self.config.sink, "history_k": history, "history_v": history}
        return [{name: (batch, count, *token) for name, count in frames.items()}] * sizes.num_layers

    def _open(self, state: RefinerState, first: Tensor, reading: Reading) -> RefinerState:
        """`open` without the checks."""
        alone = Window(
            rotation=self._rotation(torch.arange(self.config.sink).expand(state.batch_size, -1), state.grid),
            past=[((), ())] * len(state.layers),
            lengths=(first[0, :, 0].numel(),) * state.batch_size,
        )
        _, keys = self._predict(first, 0.0, alone, reading, keep="raw")
        layers = [layer | {"sink_k": k, "sink_v": v} for layer, (k, v) in zip(state.layers, keys, strict=True)]
        return replace(state, position=state.position + self.config.sink, layers=layers)

    def _denoise(self, latents: Tensor, noise: Tensor, window: Window, reading: Reading) -> Tensor:
        """Truncated denoising from the first noise level to 0 by Euler steps; fp32."""
        sigmas = self.config.sigmas
        x = (1 - sigmas[0]) * latents.float() + sigmas[0] * noise.float()
        for sigma, following in pairwise(sigmas):
            velocity, _ = self._predict(x, sigma, window, reading)
            x = x + (following - sigma) * velocity.float()
        return x

    def _window(self, state: RefinerState, position: Tensor, frames: int) -> Window:
        """What a block of `frames` latent frames at `position`, that of the state on the device, reads."""
        tokens = state.grid[0] * state.grid[1]
        sink = self._rotation(self.sink_positions(position), state.grid)
        valid = frames + self.config.sink + state.filled
        return Window(
            rotation=self._rotation(position[:, None] + torch.arange(frames, device=position.device), state.grid),
            past=[
                ((sink(layer["sink_k"]), layer["history_k"]), (layer["sink_v"], layer["history_v"]))
                for layer in state.layers
            ],
            lengths=tuple((valid * tokens).tolist()),
        )

    def _append(self, state: RefinerState, position: Tensor, keys: list[Keys]) -> RefinerState:
        """The state after a block with these keys and values, each [B, block_latents, S, heads, head_dim]."""
        count, history, device = self.config.block_latents, self.config.history, position.device
        slots = (position[:, None] - self.config.sink + torch.arange(count, device=device)) % history
        where = (torch.arange(state.batch_size, device=device)[:, None], slots)
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
        window: Window,
        reading: Reading,
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
        modulation, kept = modulation.view(1, 6, -1), []
        for layer, block in enumerate(self.blocks):
            with on_device(block):
                text = reading.keys(layer, block.attn2)
                x, raw, (k, v) = run_block(block, x, modulation, frames, window, layer, text, reading.bias)
                if keep is not None:
                    kept.append((raw_keys(block, raw, frames) if keep == "raw" else k, v))
        shift, scale = (net.scale_shift_table + embedded).unbind(0)
        velocity = net.proj_out(net.norm_out(x) * (1 + scale) + shift)
        return velocity.unflatten(1, (frames, height, width)).permute(0, 1, 4, 2, 3), kept

    def _read_text(self, text: Tensor | None, mask: Tensor | None, batch: int) -> Reading:
        net = self.transformer
        width = net.config.caption_channels
        if text is None and not self.config.reads_text:
            text = torch.zeros(batch, 1, width, device=device_of(self))
        if text is None:
            raise StateError("the refiner reads a prompt and was given none; pass text, or set reads_text=False.")
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
        return Reading(projected, None if mask is None else text_bias(mask, projected.dtype))

    def _rotation(self, position: Tensor, grid: tuple[int, int]) -> Rotation:
        return rotation_at(self.transformer.rope, self.config, position, grid, device_of(self))

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
            "qk_norm": "rms_norm_across_heads",
            "norm_elementwise_affine": False,
            "norm_eps": EPSILON,
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
