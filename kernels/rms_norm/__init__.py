"""RMS norm over all channels of a token and, in the same pass, its heads' rotary rotation (spec dit.md 3.5, 3.9)."""

from __future__ import annotations

from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.rms_norm import reference

# Largest difference between the backends in fp32, for values of unit size: the order of a sum.
TOLERANCE = 1e-5


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    epsilon: float,
    rotation: tuple[Tensor, Tensor] | None = None,
    *,
    split: bool = False,
    backend: str = "auto",
) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, statistics and products in fp32, in x's dtype.

    x: [..., C]. weight: [C], or None for one of ones. rotation: cosine and sine [B, T, S, N or 1, P], fp32, of x [B, T,
    S, C]: each pair of lanes (2j, 2j + 1), or (j, j + P) if split, of each head of 2P lanes is turned by angle j. The
    reference rounds to x's dtype before the rotation
    too, the fused form once, at the end. BackendError where "fused" cannot run; it has no gradients.
    """
    if (
        resolve(backend, x.device, op="rms_norm", gradients=needs_gradients(x, *(() if weight is None else (weight,))))
        == "fused"
    ):
        from sanawm_env.kernels.rms_norm import fused

        return fused.rms_norm(x, weight, epsilon, rotation, split=split)
    return reference.rms_norm(x, weight, epsilon, rotation, split=split)
