"""Counter-based normal noise: Philox4x32-10, so that a world's noise depends on (seed, chunk, draw, element) alone.

Layout (fixed; recorded rollouts depend on it). Of 64-bit values the low 32 bits come first:

    key      (seed low, seed high)
    counter  (block, draw, chunk low, chunk high)     element e of a draw is word e % 4 of block e // 4

Words become uniforms by (word + 0.5) / 2**32 and normals by Box-Muller in float64, words (0, 1) and (2, 3) of a block
in pairs: sqrt(-2 ln u) (cos, sin)(2 pi v), rounded to float32. Integers are the same on every device and backend;
normals on different devices can differ in their last bit, where the logarithms and cosines of the two do.
Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.backend import resolve
from sanawm_env.kernels.philox import reference

# Largest difference between the normals of two devices or backends: two float32 units in the last place below 8.
TOLERANCE = 1e-6
# One draw of one world: its blocks are counted in 32 bits.
MAX_ELEMENTS = 4 * 2**32


def normal(
    seeds: Tensor,
    chunk: Tensor,
    draw: int,
    shape: tuple[int, ...],
    *,
    device: torch.device | str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Standard normal float32 [B, *shape]; row b depends on seeds[b], chunk[b], `draw` and the element's index only.

    seeds, chunk: int64 [B], any device. draw: which draw of the chunk, 0 <= draw < 2**32. device: where the numbers are
    made and returned, that of `seeds` if None. A BackendError says what is wrong with a backend, shape or draw.
    """
    seeds, chunk = _prepare(seeds, chunk, draw, shape, device)
    count = math.prod(shape)
    if resolve(backend, seeds.device, op="philox") == "fused":
        from sanawm_env.kernels.philox import fused

        values = fused.normal(seeds, chunk, draw, count)
    else:
        values = reference.normal(seeds, chunk, draw, count)
    return values.reshape(-1, *shape)


def words(seeds: Tensor, chunk: Tensor, draw: int, blocks: int, *, backend: str = "auto") -> Tensor:
    """The integers below `normal`: int64 [B, blocks, 4] in 0 .. 2**32 - 1. Arguments as there."""
    seeds, chunk = _prepare(seeds, chunk, draw, (4 * blocks,), None)
    if resolve(backend, seeds.device, op="philox") == "fused":
        from sanawm_env.kernels.philox import fused

        return fused.words(seeds, chunk, draw, blocks)
    return reference.words(seeds, chunk, draw, blocks)


def _prepare(
    seeds: Tensor, chunk: Tensor, draw: int, shape: tuple[int, ...], device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    if seeds.dtype != torch.int64 or chunk.dtype != torch.int64 or seeds.ndim != 1 or seeds.shape != chunk.shape:
        raise BackendError(
            f"philox got seeds {seeds.dtype} {tuple(seeds.shape)} and chunk {chunk.dtype} {tuple(chunk.shape)}; "
            "both are int64 [B], one entry a world"
        )
    if not 0 <= draw < 2**32 or math.prod(shape) > MAX_ELEMENTS:
        raise BackendError(
            f"philox got draw {draw} and shape {tuple(shape)}; "
            f"allowed are 0 <= draw < 2**32 and at most {MAX_ELEMENTS} elements"
        )
    target = seeds.device if device is None else torch.device(device)
    return seeds.to(target), chunk.to(target)
