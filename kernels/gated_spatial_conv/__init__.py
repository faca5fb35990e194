"""What a feed-forward does between its two large products, on the token grid of each frame (spec dit.md 3.12).

SiLU, a 3x3 depthwise convolution with zeros beyond the edges, then the first half of the channels gated by the second.
On a GPU the fused form reads the wide tensor once from memory and writes half of it; its SiLU is computed in registers.
"""

from __future__ import annotations

from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.gated_spatial_conv import reference

# Largest difference between the backends in fp32, for values of unit size: the order of nine additions.
TOLERANCE = 1e-5


def gated_spatial_conv(
    p: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int], *, backend: str = "auto"
) -> Tensor:
    """y[..., :H] * silu(y[..., H:]) of y = conv(silu(p)), [B, T, S, H] in p's dtype.

    p: [B, T, S, 2H]. weight: [2H, 1, 3, 3]. bias: [2H]. grid: rows and columns of the S tokens. The fused form computes
    in fp32 and rounds once, at the end. BackendError where "fused" cannot run; it has no gradients.
    """
    if resolve(backend, p.device, op="gated_spatial_conv", gradients=needs_gradients(p, weight, bias)) == "fused":
        from sanawm_env.kernels.gated_spatial_conv import fused

        return fused.gated_spatial_conv(p, weight, bias, grid)
    return reference.gated_spatial_conv(p, weight, bias, grid)
