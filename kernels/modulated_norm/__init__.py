"""LayerNorm or RMS norm without affine, then a scale and a shift for each frame: what a block's branches read (spec
dit.md 3.4).

On a GPU the fused form reads each token once and writes it once.
"""

from __future__ import annotations

from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.modulated_norm import reference

# Largest difference between the backends in fp32, for values of unit size: the order of two sums.
TOLERANCE = 1e-5


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, *, centred: bool = True, backend: str = "auto") -> Tensor:
    """norm(x) (1 + scale) + shift, [B, T, S, C] in x's dtype; mean and variance over C in fp32, epsilon 1e-6.

    x: [B, T, S, C]. shift, scale: [B, T, 1, C]. centred: LayerNorm; else RMS norm, which leaves the mean. The reference
    rounds to x's dtype after each of its four operations, the fused form once, at the end. BackendError where "fused"
    cannot run; it has no gradients.
    """
    if resolve(backend, x.device, op="modulated_norm", gradients=needs_gradients(x, shift, scale)) == "fused":
        from sanawm_env.kernels.modulated_norm import fused

        return fused.modulated_norm(x, shift, scale, centred=centred)
    return reference.modulated_norm(x, shift, scale, centred=centred)
