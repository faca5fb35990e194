"""How latents are refined, and what a refiner remembers of the latents before (spec rollout.md 8.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from sanawm_env.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """How latents are refined; the defaults are those of the released weights (spec rollout.md 8.2).

    block_latents: latent frames refined together. sink: first latent frames, kept as they came and read by every block.
    kv_max_frames: sink and history together; the block itself comes on top. sigmas: noise levels, from the first one
    (where truncated denoising begins) down to 0. fps: of the video, the unit of temporal positions. temporal_stride,
    spatial_stride: frames and pixels of one latent. reads_text: whether worlds tell it a prompt; without, it reads one
    blank word.
    """

    block_latents: int = 3
    sink: int = 1
    kv_max_frames: int = 11
    sigmas: tuple[float, ...] = (0.909375, 0.725, 0.421875, 0.0)
    fps: float = 16.0
    temporal_stride: int = 8
    spatial_stride: int = 32
    reads_text: bool = True

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
