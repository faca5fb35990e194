"""Where the branches of a self-attention meet: their sum, gated (spec dit.md 3.8.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.output_gate import reference

# Largest difference between the backends in fp32, for values of unit size: two forms of SiLU.
TOLERANCE = 1e-6


def output_gate(main: Tensor, camera: Tensor, gate: Tensor, dtype: torch.dtype, *, backend: str = "auto") -> Tensor:
    """(main + camera) * silu(gate), product in fp32, [B, T, S, C] in `dtype`.

    main, camera, gate: [B, T, S, C], main of any dtype. The reference rounds main and the sum to `dtype` first, the
    fused form rounds once, at the end. BackendError where "fused" cannot run; it has no gradients.
    """
    if resolve(backend, gate.device, op="output_gate", gradients=needs_gradients(main, camera, gate)) == "fused":
        from sanawm_env.kernels.output_gate import fused

        return fused.output_gate(main, camera, gate, dtype)
    return reference.output_gate(main, camera, gate, dtype)
