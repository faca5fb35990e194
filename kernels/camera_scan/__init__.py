"""Camera branch of a recurrent block, from the projections to the mixed values (spec dit.md 3.6, 3.8.4).

Keys are filtered over time; queries and keys normed over all channels, then ReLU; keys scaled. Half of each head is
seen from the token's ray, half rotated. The frame-wise gated delta rule mixes them without denominator; what it reads
is brought back from the ray.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.camera_scan import reference
from sanawm_env.kernels.gated_delta import width_obstacle

# Largest relative difference (2-norm) between the fused form and the fp32 reference, by the dtype of the projections.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}


def camera_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_tail: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    conv_weight: Tensor,
    to_ray: Tensor,
    from_ray: Tensor,
    cos: Tensor,
    sin: Tensor,
    beta: Tensor,
    decay: Tensor,
    state: Tensor,
    lengths: tuple[int, ...],
    *,
    crossing: bool,
    downscaled: bool,
    norm_eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(out [B, T, S, N, D], state [B, K, N, D, D] after each of the K chunks).

    q, k, v: [B, T, S, C] raw projections, C = N D. k_tail: [B, taps - 1, S, C], raw keys of the frames before.
    q_weight, k_weight: [C], of the norms. conv_weight: [C, 1, taps]. to_ray, from_ray: [B, T, S, 4, 4] world-to-ray
    transforms and their inverses, fp32. cos, sin: [B, T, S, 1, D / 4] fp32, or broadcastable to it. beta: [B, T, S, N]
    and decay: [B, T, N], fp32, as `frame_gates` gives them. state: [B, N, D, D], key lanes first, fp32, carried in.
    lengths: of the chunks, their sum is T. crossing: whether the filter reads the chunk before. downscaled: whether
    what a ray sees is kept from growing. dtype: of `out`, that of q if None; the state is fp32 always. BackendError
    where "fused" cannot run; it has no gradients and takes heads of 128 lanes at most.
    """
    given = (q, k, v, k_tail, q_weight, k_weight, conv_weight, to_ray, from_ray, cos, sin, beta, decay, state)
    chosen = resolve(
        backend,
        q.device,
        op="camera_scan",
        gradients=needs_gradients(*given),
        obstacle=width_obstacle(state.shape[-1]),
    )
    form = reference.camera_scan
    if chosen == "fused":
        from sanawm_env.kernels.camera_scan import fused

        form = fused.camera_scan
    return form(*given, lengths, crossing=crossing, downscaled=downscaled, norm_eps=norm_eps, dtype=dtype)
