"""UCPE's encoding of heads by the rays of their tokens (spec dit.md 3.8.4, 3.9).

The first half of a head's lanes, in groups of four, is multiplied by the token's 4x4 ray transform; the second half is
turned by the camera's rotary angles. `device.py` holds the same for other Triton kernels to call.
"""

from __future__ import annotations

from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.ray_encode import reference

# Largest difference between the backends in fp32, for values of unit size: the order of four additions and of a sum.
TOLERANCE = 1e-5


def ray_encode(
    x: Tensor,
    matrix: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    inverse: bool = False,
    shrink: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Encoded heads, [B, T, S, N, D] in x's dtype, computed in fp32 and rounded once.

    x: [B, T, S, N, D], D a multiple of 8. matrix: [B, T, S, 4, 4], fp32. cos, sin: [B, T, S, 1, D / 4], fp32. inverse:
    turn the other way; the matrix is taken as it is. shrink: scale each head down where its RMS would exceed that of x
    (`downscale`). BackendError where "fused" cannot run; it has no gradients.
    """
    if resolve(backend, x.device, op="ray_encode", gradients=needs_gradients(x, matrix)) == "fused":
        from sanawm_env.kernels.ray_encode import fused

        return fused.ray_encode(x, matrix, cos, sin, inverse=inverse, shrink=shrink)
    return reference.ray_encode(x, matrix, cos, sin, inverse=inverse, shrink=shrink)
