"""The end of a video decoder's upsampling: channels unfold to time and space, plus the input enlarged likewise."""

from __future__ import annotations

from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.channels_to_space import reference

# The backends agree to the bit: one sum of two numbers, rounded once.
TOLERANCE = 0.0


def channels_to_space(
    y: Tensor, x: Tensor | None, stride: tuple[int, int, int], drop: int = 0, *, backend: str = "auto"
) -> Tensor:
    """[B, T st - drop, H sh, W sw, Cy / K] in y's dtype, with stride (st, sh, sw), powers of two, and K = st sh sw.

    y: [B, T, H, W, Cy]; channel c K + (i sh + j) sw + k of a pixel becomes channel c at offset (i, j, k) of its block.
    x: [B, T, H, W, Cx], unfolded likewise, its channels repeated to Cy / K and added; None adds nothing. drop: leading
    frames of the result to leave out. BackendError where "fused" cannot run; it has no gradients.
    """
    given = (y,) if x is None else (y, x)
    if resolve(backend, y.device, op="channels_to_space", gradients=needs_gradients(*given)) == "fused":
        from sanawm_env.kernels.channels_to_space import fused

        return fused.channels_to_space(y, x, stride, drop)
    return reference.channels_to_space(y, x, stride, drop)
