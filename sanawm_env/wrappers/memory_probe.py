"""What a step does inside the model: size and decay of each recurrent block's memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanawm_env.kernels.frame_gates import frame_gates
from sanawm_env.model.attention import GatedDeltaAttention
from sanawm_env.source import WorldSource
from sanawm_env.state import WorldState
from sanawm_env.visits import computed_at_once
from sanawm_env.world import WorldModel

Readings = dict[str, dict[str, np.ndarray]]


class MemoryProbe:
    """Watches a model during a step, the pass over finished latents alone, which writes the memory. Nothing is changed,
    and outside `watching` nothing is there.

    The gates are no part of a world's state, so they are read on their way; a step that is replayed from CUDA graphs
    runs no Python, and gives none (captured=False of an environment does). The truth has no memory to watch. B worlds.
    """

    def __init__(self, model: WorldSource) -> None:
        self._model = model
        blocks = model.denoiser.blocks if isinstance(model, WorldModel) else ()
        attention = {index: block.attn for index, block in enumerate(blocks)}
        self._attention = {index: a for index, a in attention.items() if isinstance(a, GatedDeltaAttention)}
        self.blocks = list(self._attention)
        self._reset()

    @contextlib.contextmanager
    def watching(self, world: WorldState) -> Iterator[None]:
        """Around one step of these worlds."""
        self._reset()
        if not isinstance(self._model, WorldModel):
            yield
            return
        self._order = torch.cat(computed_at_once(self._model, world.chunk.clamp(max=self._model.settled))).argsort()
        watched = {} if self._model.captured else self._attention
        hooks = [
            attention.register_forward_pre_hook(functools.partial(self._see_gates, index), with_kwargs=True)
            for index, attention in watched.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def readings(self, world: WorldState) -> Readings:
        """By plot and series, each [B]: "state norm" and "camera state norm" (Frobenius, over the heads of a block),
        "decay" (mean over heads and frames of the step: 1 keeps everything), of the worlds after the step."""
        names = [f"block {index:02d}" for index in self.blocks]
        norms = {
            plot: [torch.linalg.vector_norm(world.memory[index][key].flatten(1), dim=1) for index in self.blocks]
            for plot, key in (("state norm", "state"), ("camera state norm", "camera_state"))
        }
        seen = [torch.cat(gates)[self._order.to(gates[0].device)] for gates in self._decays.values() if gates]
        found = {**norms, "decay": seen}
        return {plot: dict(zip(names, _numpy(rows))) for plot, rows in found.items() if rows}

    def _reset(self) -> None:
        self._decays: dict[int, list[Tensor]] = {index: [] for index in self.blocks}

    def _see_gates(self, index: int, attention: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        if options.get("collect"):
            # The gate of a frame depends on the mean of its tokens alone.
            mean = given[0].mean(dim=2, keepdim=True)
            _, decay = frame_gates(
                mean,
                attention.beta_proj.weight,
                attention.beta_proj.bias,
                attention.gate_proj.weight,
                attention.gate_proj.bias,
                attention.A_log,
                attention.dt_bias,
                backend="reference",
            )
            self._decays[index].append(decay.mean(dim=(1, 2)))


def latent_statistics(latents: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of the latents of a step [B, n, C, h, w], [B, C] each."""
    channels = latents.float().transpose(1, 2).flatten(2)
    mean, deviation = _numpy([channels.mean(dim=2), channels.std(dim=2)])
    return mean, deviation


def _numpy(rows: list[Tensor]) -> list[np.ndarray]:
    """All at once, so that a GPU is waited for once."""
    return list(torch.stack(rows).cpu().numpy()) if rows else []
