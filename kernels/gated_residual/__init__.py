"""A branch of a block added to what it reads, weighed by the gate of each frame (spec dit.md 3.4)."""

from __future__ import annotations

from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.gated_residual import reference

# Largest difference between the backends in fp32, for values of unit size: one rounding, where the GPU fuses it.
TOLERANCE = 1e-6


def gated_residual(
    x: Tensor, gate: Tensor, branch: Tensor, offset: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """x + gate * branch (+ offset), [B, T, S, C] in x's dtype.

    x, branch, offset: [B, T, S, C]. gate: [B, T, 1, C]. The fused form computes in fp32 and rounds once, at the end.
    BackendError where "fused" cannot run; it has no gradients.
    """
    given = (x, gate, branch) if offset is None else (x, gate, branch, offset)
    if resolve(backend, x.device, op="gated_residual", gradients=needs_gradients(*given)) == "fused":
        from sanawm_env.kernels.gated_residual import fused

        return fused.gated_residual(x, gate, branch, offset)
    return reference.gated_residual(x, gate, branch, offset)
