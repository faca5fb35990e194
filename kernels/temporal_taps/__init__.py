"""Each token with its place in the frame before and in the frame after, side by side (spec dit.md 3.12).

What the temporal convolution of a feed-forward multiplies by one matrix: the frame before the first is the tail of an
earlier call, and the frame after stays within the chunk.
"""

from __future__ import annotations

from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.temporal_taps import reference

# Between the backends: values are moved, never changed.
TOLERANCE = 0.0


def temporal_taps(f: Tensor, tail: Tensor, lengths: tuple[int, ...], *, backend: str = "auto") -> Tensor:
    """[before | f | after], [B, T, S, 3 C] in f's dtype.

    f: [B, T, S, C]. tail: [B, 1, S, C], the frame before the first. lengths: of the chunks, their sum is T; behind the
    last frame of each stand zeros. BackendError where "fused" cannot run; it has no gradients.
    """
    if resolve(backend, f.device, op="temporal_taps", gradients=needs_gradients(f, tail)) == "fused":
        from sanawm_env.kernels.temporal_taps import fused

        return fused.temporal_taps(f, tail, lengths)
    return reference.temporal_taps(f, tail, lengths)
