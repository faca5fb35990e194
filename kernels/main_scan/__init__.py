"""Main branch of a recurrent block, from the projections to the mixed values (spec dit.md 3.6, 3.8.1 - 3.8.3).

Keys are filtered over time; queries and keys normed over all channels, then ReLU; keys scaled; both rotated. The
frame-wise gated delta rule mixes them, its read-out divided by the same rule with target 1 on unrotated keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.gated_delta import width_obstacle
from sanawm_env.kernels.main_scan import reference

# Largest relative difference (2-norm) between the fused form and the fp32 reference, by the dtype of the projections.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}


def main_scan(
    qkv: Tensor,
    k_tail: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    conv_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    beta: Tensor,
    decay: Tensor,
    state: Tensor,
    normaliser: Tensor,
    lengths: tuple[int, ...],
    *,
    norm_eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """(out [B, T, S, N, D], state [B, K, N, D, D] and normaliser [B, K, N, D] after each of the K chunks).

    qkv: [B, T, S, 3 C] raw projections, C = N D. k_tail: [B, taps - 1, S, C], raw keys of the frames before. q_weight,
    k_weight: [C], of the norms. conv_weight: [C, 1, taps]. cos, sin: [B, T, S, 1, D / 2] fp32, or broadcastable to it.
    beta: [B, T, S, N] and decay: [B, T, N], fp32, as `frame_gates` gives them. state: [B, N, D, D], key lanes first,
    and normaliser: [B, N, D], fp32, carried in. lengths: of the chunks, their sum is T. dtype: of `out`, that of qkv if
    None; the state is fp32 always. BackendError
    where "fused" cannot run; it has no gradients and takes heads of 128 lanes at most.
    """
    given = (qkv, k_tail, q_weight, k_weight, conv_weight, cos, sin, beta, decay, state, normaliser)
    chosen = resolve(
        backend,
        qkv.device,
        op="main_scan",
        gradients=needs_gradients(*given),
        obstacle=width_obstacle(state.shape[-1]),
    )
    if chosen == "fused":
        from sanawm_env.kernels.main_scan import fused

        return fused.main_scan(*given, lengths, norm_eps=norm_eps, dtype=dtype)
    return reference.main_scan(*given, lengths, norm_eps=norm_eps, dtype=dtype)
