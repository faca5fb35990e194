"""The denoiser of SANA-WM, from the released 2.66 B model down to Rooms: one class, three ways to run it (spec dit.md).

Bidirectional (one long opening chunk), one-pass chunk-causal (all chunks of a clip) and streaming (one chunk that
continues a memory) are the same function on different chunk grids. Parameter names are those of the public checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanawm_env.conditioning import Conditioning
from sanawm_env.kernels.gated_residual import gated_residual
from sanawm_env.kernels.modulated_norm import modulated_norm
from sanawm_env.model.attention import GatedDeltaAttention, Geometry, SoftmaxAttention
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.model.config import DenoiserConfig
from sanawm_env.model.embeddings import RayEncoding, RMSNorm, RotaryFrequencies, TimestepEmbedder
from sanawm_env.model.feed_forward import FeedForward, Memory
from sanawm_env.model.offload import on_demand, on_device
from sanawm_env.model.quantised import Quantisation
from sanawm_env.model.window import NAMES


class PointEmbedding(nn.Module):
    """A 1x1x1 convolution applied to channel-last tokens."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.linear(tokens.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


class CaptionEmbedding(nn.Module):
    """Two-layer MLP of text embeddings, under the names of the public checkpoints."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.y_proj = nn.ModuleDict({"fc1": nn.Linear(channels, width), "fc2": nn.Linear(width, width)})

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj["fc2"](functional.gelu(self.y_proj["fc1"](text), approximate="tanh"))


class CrossAttention(nn.Module):
    """Attention of every token over the text (spec dit.md 3.11)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.cross_heads
        self.q_linear, self.kv_linear, self.proj = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.q_norm, self.k_norm = RMSNorm(width, 1e-6), RMSNorm(width, 1e-6)

    def keys(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, L, D] of text [B, L, C]."""
        k, v = self.kv_linear(text).chunk(2, dim=-1)
        return self._split_heads(self.k_norm(k)), self._split_heads(v)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, S, C]; k, v: `keys` of the text; mask [B, L], True = attend."""
        q = self._split_heads(self.q_norm(self.q_linear(x)).flatten(1, 2))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool()[:, None, None])
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class BlockReading(NamedTuple):
    """What a block computes of the conditioning alone: offset [B, T, S, C] of its rays, keys, values and mask of its
    text, or None, and windows of its attention, laid out by the first pass.
    """

    offset: Tensor
    text: tuple[Tensor, Tensor, Tensor] | None
    windows: Memory


@dataclass(frozen=True, eq=False)
class Reading:
    """A conditioning as a denoiser reads it: what no latents and no noise level change, computed once for all passes
    over a chunk on top of one memory, without gradients. blocks: by index, filled by the first pass, which has each
    block's weights at hand.
    """

    plucker: Tensor
    text: tuple[Tensor, Tensor] | None
    geometry: Geometry
    blocks: dict[int, BlockReading] = field(default_factory=dict)


class Block(nn.Module):
    """One transformer block (spec dit.md 3.4)."""

    def __init__(self, config: DenoiserConfig, *, softmax: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.attn = (SoftmaxAttention if softmax else GatedDeltaAttention)(config)
        self.plucker_proj = nn.Linear(width, width)
        if config.caption_channels is not None:
            self.cross_attn = CrossAttention(config)
        self.mlp = FeedForward(config)

    def read(self, plucker: Tensor, text: tuple[Tensor, Tensor] | None) -> BlockReading:
        """plucker [B, T, S, C]; text [B, L, C] and its mask [B, L]."""
        return BlockReading(
            self.plucker_proj(plucker), None if text is None else (*self.cross_attn.keys(text[0]), text[1]), {}
        )

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        told: BlockReading,
        geometry: Geometry,
        grid: tuple[int, int],
        chunks: ChunkGrid,
        memory: Memory,
        collect: bool,
    ) -> tuple[Tensor, Memory]:
        """x [B, T, S, C]; modulation [B, T, 6, C] of the timesteps. Returns x and, if asked for, the memory after
        each chunk.
        """
        table = self.scale_shift_table + modulation
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = table.to(x.dtype)[:, :, :, None].unbind(2)
        u = modulated_norm(x, shift_a, scale_a)
        mixed, after = self.attn(u, geometry, chunks, memory, told.windows, collect=collect)
        x = gated_residual(x, gate_a, mixed, told.offset)
        if told.text is not None:
            x = x + self.cross_attn(x, *told.text)
        out, local = self.mlp(modulated_norm(x, shift_f, scale_f), grid, chunks, memory)
        if collect:
            after["ffn_tail"] = torch.stack([local[:, end - 1 : end] for end in chunks.ends], dim=1)
        return gated_residual(x, gate_f, out), after


class FinalLayer(nn.Module):
    """Modulated norm and projection to latent channels."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(2, config.hidden_size))
        self.linear = nn.Linear(config.hidden_size, config.in_channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        table = (self.scale_shift_table + time[:, :, None]).to(x.dtype)
        shift, scale = table[:, :, :, None].unbind(2)
        return self.linear(modulated_norm(x, shift, scale))


class Denoiser(nn.Module):
    """Noisy latents, per-frame noise levels, camera and memory in; prediction and the memory after each chunk out."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.quantisation: Quantisation | None = None  # of its large layers (quantised.py)
        self.x_embedder = PointEmbedding(config.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.t_block = nn.ModuleList([nn.SiLU(), nn.Linear(width, 6 * width)])
        self.plucker_embedder = PointEmbedding(config.plucker_channels, width)
        self.raymap_embedder = PointEmbedding(3, width)  # in every public checkpoint, without effect (spec dit.md 3.2)
        if config.caption_channels is not None:
            self.y_embedder = CaptionEmbedding(config.caption_channels, width)
            self.attention_y_norm = RMSNorm(width, 1e-5)
        self.blocks = nn.ModuleList(Block(config, softmax=config.is_softmax(index)) for index in range(config.depth))
        self.final_layer = FinalLayer(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.x_embedder.proj.weight.dtype

    @on_demand
    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        given: Conditioning | Reading,
        chunks: ChunkGrid,
        memory: list[Memory],
        *,
        collect: bool = False,
    ) -> tuple[Tensor, list[Memory]]:
        """One pass over the chunks of `chunks`.

        latents: [B, T, channels, h, w]. timestep: [B, T], 0 .. 1000, 0 on clean frames. given: what the chunks are
        told, or its `read`, which several passes can share. memory: one dict a block, as
        `memory()` or an earlier pass gives; only read. Returns the prediction (`config.prediction`) in the latents'
        shape and dtype and, with `collect`, each block's memory after each chunk, [B, K, ...].
        """
        grid = (latents.shape[-2], latents.shape[-1])
        x = self.x_embedder(latents.flatten(3).transpose(2, 3))
        time = self.t_embedder(timestep)
        activation, widen = self.t_block
        modulation = widen(activation(time)).unflatten(-1, (6, -1))
        reading = self.read(given, grid) if isinstance(given, Conditioning) else given
        after: list[Memory] = []
        for index, (block, kept) in enumerate(zip(self.blocks, memory, strict=True)):
            assert isinstance(block, Block)
            with on_device(block):
                if index not in reading.blocks:
                    reading.blocks[index] = block.read(reading.plucker, reading.text)
                told = reading.blocks[index]
                x, block_after = block(x, modulation, told, reading.geometry, grid, chunks, kept, collect)
            after.append(block_after)
        out = self.final_layer(x, time)
        return out.transpose(2, 3).reshape(latents.shape).to(latents.dtype), after

    @on_demand
    def read(self, given: Conditioning, grid: tuple[int, int]) -> Reading:
        """What passes over the same chunks share; grid: height and width of their latents."""
        return Reading(self.plucker_embedder(given.plucker), self._text(given), self._geometry(given, grid))

    def predict_clean(
        self,
        latents: Tensor,
        timestep: Tensor,
        given: Conditioning | Reading,
        chunks: ChunkGrid,
        memory: list[Memory],
    ) -> Tensor:
        """Clean latents that the model sees in `latents` at noise level `timestep` / 1000."""
        out, _ = self(latents, timestep, given, chunks, memory)
        if self.config.prediction == "clean":
            return out
        return latents - (timestep / 1000)[:, :, None, None, None].to(latents.dtype) * out

    def memory(self, batch: int, grid: tuple[int, int], *, device: torch.device, dtype: torch.dtype) -> list[Memory]:
        """Memory of worlds that have seen nothing: every tensor has its final shape and is zero."""
        return [self._empty(index, batch, grid[0] * grid[1], device, dtype) for index in range(self.config.depth)]

    def _empty(self, block: int, batch: int, tokens: int, device: torch.device, dtype: torch.dtype) -> Memory:
        config = self.config
        heads, width = config.heads, config.head_dim

        def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.zeros(batch, *shape, device=device, dtype=kind)

        kept = {"ffn_tail": zeros(1, tokens, config.hidden_size)}
        if config.is_softmax(block):
            if config.window_chunks is not None:
                lengths = {"sink": config.chunk_latents + 1, "previous": config.previous_latents}
                kept |= {
                    f"{part}_{name}": zeros(n, tokens, heads, width) for part, n in lengths.items() for name in NAMES
                }
            return kept
        tail = (config.conv_kernel - 1, tokens, config.hidden_size)
        square = (heads, width, width)
        return kept | {
            "state": zeros(*square, kind=torch.float32),
            "normaliser": zeros(heads, width, kind=torch.float32),
            "camera_state": zeros(*square, kind=torch.float32),
            "k_tail": zeros(*tail),
            "k_cam_tail": zeros(*tail),
        }

    def _text(self, given: Conditioning) -> tuple[Tensor, Tensor] | None:
        if self.config.caption_channels is None or given.text is None or given.text_mask is None:
            return None
        return self.attention_y_norm(self.y_embedder(given.text.to(self.dtype))), given.text_mask

    def _geometry(self, given: Conditioning, grid: tuple[int, int]) -> Geometry:
        rotary = RotaryFrequencies(self.config.head_dim)

        def encoding(*, time: bool) -> RayEncoding:
            return RayEncoding(
                given.to_ray, given.from_ray, rotary.rotation(given.position, grid, camera=True, time=time)
            )

        return Geometry(
            position=given.position,
            rotation=rotary.rotation(given.position, grid, camera=False, time=True),
            rays=encoding(time=True),
            still_rotation=rotary.rotation(given.position, grid, camera=False, time=False),
            still_rays=encoding(time=False),
        )


def last_memory(after: list[Memory]) -> list[Memory]:
    """What the chunk after the last one of a call reads."""
    return [{name: x[:, -1] for name, x in block.items()} for block in after]
