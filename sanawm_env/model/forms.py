"""Forms of a denoiser in which one of its parts is missing or another, for ablations: the model itself has one path.

A form changes the config, or modules of a denoiser that is made; weights keep their names but where a form says so, so
that a reformed denoiser computes and trains as any other. It is no bundle: what reads one would not know of the form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sanawm_env.errors import ConfigError, nearest
from sanawm_env.model.attention import GatedDeltaAttention, Geometry, SelfAttention, SoftmaxAttention
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.model.config import DenoiserConfig
from sanawm_env.model.denoiser import Block, Denoiser
from sanawm_env.model.feed_forward import Memory

# Keys so small, and queries so large, that what the delta rule corrects, quadratic in the keys, is lost in fp32.
UNCORRECTED = 2.0**-10
FORGETS_AT = (9, 17)  # latents; of a world of four frames a latent, after 32 and 64 frames
Change = Callable[[Block, int], None]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What it is, in words; fields of the config that differ, of the config as it was; and what becomes of each block,
    told the tokens of a frame.
    """

    what: str
    config: Callable[[DenoiserConfig], dict[str, Any]] = lambda config: {}
    change: Change = lambda block, tokens: None


def split(names: str) -> list[str]:
    """The forms that `names` joins by "+". ConfigError where one is unknown."""
    found = names.split("+")
    for name in found:
        if name not in FORMS:
            raise ConfigError(f"form is {name!r}; {nearest(name, FORMS)} Several are joined by +.")
    return found


def reshaped(config: DenoiserConfig, names: str) -> DenoiserConfig:
    """The config of a denoiser in these forms. ConfigError as `split`."""
    for name in split(names):
        config = replace(config, **FORMS[name].config(config))
    return config


def reform(denoiser: Denoiser, names: str, tokens: int) -> Denoiser:
    """Brings a denoiser, of `reshaped`'s config and with its weights, into these forms, in place. tokens: of a frame.
    ConfigError as `split`."""
    for name in split(names):
        for block in denoiser.blocks:
            assert isinstance(block, Block)
            FORMS[name].change(block, tokens)
    return denoiser


class Silent(nn.Module):
    """Zeros of `width` channels, whatever comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.width)


class Times(nn.Module):
    """A weight that is a multiple of what is trained, so that a factor needs no other learning rate."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


class Passing(nn.Module):
    """A filter over time that passes the present frame alone, whatever is trained."""

    def forward(self, weight: Tensor) -> Tensor:
        taps = torch.zeros_like(weight)
        taps[..., -1] = 1.0
        return taps


class SinklessAttention(SoftmaxAttention):
    """Softmax over the current and the previous chunks. The sink keeps its place in the memory, and nobody reads it."""

    def mix(
        self, u: Tensor, geometry: Geometry, chunks: ChunkGrid, memory: Memory, kept: Memory, *, collect: bool
    ) -> tuple[Tensor, Tensor, Memory]:
        without = {name: x[:, :0] if name.startswith("sink_") else x for name, x in memory.items()}
        main, camera, after = super().mix(u, geometry, chunks, without, kept, collect=collect)
        place = self.config.chunk_latents + 1
        for name in [name for name in after if name.startswith("sink_")]:
            shape = after[name].shape
            after[name] = after[name].new_zeros(*shape[:2], place, *shape[3:])
        return main, camera, after

    def opened_sink(self, stored: dict[str, Tensor], chunks: ChunkGrid) -> Memory:
        return {f"sink_{name}": x[:, :0] for name, x in stored.items()}


class ForgetfulAttention(GatedDeltaAttention):
    """The recurrence, whose state is lost before the chunks that begin at latents `FORGETS_AT`."""

    def mix(
        self, u: Tensor, geometry: Geometry, chunks: ChunkGrid, memory: Memory, kept: Memory, *, collect: bool
    ) -> tuple[Tensor, Tensor, Memory]:
        keeps = torch.stack([geometry.position[:, 0] != latent for latent in FORGETS_AT]).all(0)
        states = {name: memory[name] for name in ("state", "normaliser", "camera_state")}
        lost = {name: x * keeps.view(-1, *[1] * (x.ndim - 1)) for name, x in states.items()}
        return super().mix(u, geometry, chunks, memory | lost, kept, collect=collect)


def _turned_into(block: Block, kind: type[SelfAttention]) -> None:
    """Gives the attention of a block, of `kind`'s base, another class; weights stay the same tensors."""
    if isinstance(block.attn, kind.__bases__):
        with torch.device("meta"):
            other = kind(block.attn.config)
        other.load_state_dict(block.attn.state_dict(), assign=True)
        block.attn = other.train(block.attn.training)  # type: ignore[assignment]


def _scaled(block: Block, factor: float) -> None:
    """Keys of a recurrent block times a factor, its queries by it: ReLU keeps it, and what is read stays as large."""
    attention = block.attn
    if isinstance(attention, GatedDeltaAttention):
        for norm, times in (("k_norm", factor), ("q_norm", 1 / factor)):
            for module in (norm, f"{norm}_cam"):
                parametrize.register_parametrization(getattr(attention, module), "weight", Times(times))


def _without_rays(block: Block, tokens: int) -> None:
    block.attn.out_proj_cam = Silent(block.attn.out_proj_cam.out_features)  # type: ignore[assignment]


def _without_plucker(block: Block, tokens: int) -> None:
    block.plucker_proj = Silent(block.plucker_proj.out_features)  # type: ignore[assignment]


def _without_convolution(block: Block, tokens: int) -> None:
    if isinstance(block.attn, GatedDeltaAttention):
        for filtered in (block.attn.conv_k, block.attn.conv_k_cam):
            parametrize.register_parametrization(filtered, "weight", Passing())
    block.mlp.t_conv = Silent(block.mlp.t_conv.out_channels)  # type: ignore[assignment]


FORMS: dict[str, Form] = {
    "gdn": Form(what="as it is: gated delta rule, every n-th block softmax"),
    "linear": Form(
        what="linear attention with decay: the delta rule without its correction",
        change=lambda block, tokens: _scaled(block, UNCORRECTED),
    ),
    "softmax": Form(what="every block softmax over its window", config=lambda config: {"softmax_every_n": 1}),
    "no_softmax": Form(what="every block recurrent", config=lambda config: {"softmax_every_n": config.depth + 1}),
    "l2_keys": Form(
        what="keys scaled by 1 / sqrt(D), not by 1 / sqrt(D S)",
        change=lambda block, tokens: _scaled(block, tokens**0.5),
    ),
    "no_key_scale": Form(
        what="keys not scaled",
        change=lambda block, tokens: _scaled(block, (tokens * block.attn.config.head_dim) ** 0.5),
    ),
    "no_ucpe": Form(what="no ray branch (UCPE)", change=_without_rays),
    "no_plucker": Form(what="no Pluecker rays", change=_without_plucker),
    "no_convolution": Form(what="no convolution over time", change=_without_convolution),
    "no_sink": Form(
        what="no sink in the softmax window", change=lambda block, tokens: _turned_into(block, SinklessAttention)
    ),
    "forgetful": Form(
        what="recurrent state lost after 32 and after 64 frames",
        change=lambda block, tokens: _turned_into(block, ForgetfulAttention),
    ),
    **{
        f"window_{chunks}": Form(
            what=f"softmax window of {chunks} chunks, the sink among them",
            config=partial(lambda chunks, config: {"window_chunks": chunks}, chunks),
        )
        for chunks in (2, 3, 5, 9)
    },
}
