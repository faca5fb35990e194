"""Gates of a recurrent block: how strongly each token writes, and how much of the state each frame keeps.

beta = sigmoid(W_b u + b_b) for each token and head; decay = exp(-exp(A_log) softplus(W_g mean(u) + b_g + dt_bias)) for
each frame and head, the mean over the frame's tokens (spec dit.md 3.8). On a GPU the products have a few columns and
long sums, which libraries split by the number of rows; the fused form adds in one order whatever shares the batch.
"""

from __future__ import annotations

from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.frame_gates import reference

# Largest difference between the backends in fp32: the orders of two sums.
TOLERANCE = 1e-5


def frame_gates(
    u: Tensor,
    beta_weight: Tensor,
    beta_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(beta [B, T, S, N], decay [B, T, N]), fp32, both in (0, 1).

    u: [B, T, S, C] modulated tokens. beta_weight, gate_weight: [N, C]. beta_bias, gate_bias, a_log, dt_bias: [N].
    BackendError where "fused" cannot run; it has no gradients.
    """
    weights = (beta_weight, beta_bias, gate_weight, gate_bias, a_log, dt_bias)
    if resolve(backend, u.device, op="frame_gates", gradients=needs_gradients(u, *weights)) == "fused":
        from sanawm_env.kernels.frame_gates import fused

        return fused.frame_gates(u, *weights)
    return reference.frame_gates(u, *weights)
