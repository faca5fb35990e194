"""Camera branch of a recurrent block in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sanawm_env.kernels.encoding import downscale, encode, rms_norm
from sanawm_env.kernels.gated_delta import gated_delta, key_scale
from sanawm_env.kernels.short_convolution import short_convolution

WARP = 32  # threads that add side by side on a GPU


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
) -> tuple[Tensor, Tensor]:
    """As the package's `camera_scan`."""
    heads, raw = (beta.shape[-1], -1), q.dtype
    k = short_convolution(k, k_tail, conv_weight, lengths, crossing=crossing)
    q = functional.relu(rms_norm(q, q_weight, norm_eps).unflatten(-1, heads).float())
    k = functional.relu(rms_norm(k, k_weight, norm_eps).unflatten(-1, heads).float())
    k = k * key_scale(k.shape[-1], k.shape[2])
    v = v.unflatten(-1, heads).float()
    seen_q = encode(q, to_ray.transpose(-1, -2), cos, sin)
    seen_k, seen_v = encode(k, from_ray, cos, sin), encode(v, from_ray, cos, sin)
    if downscaled:
        seen_q, seen_k, seen_v = downscale(seen_q, q), downscale(seen_k, k), downscale(seen_v, v)
    discounted = beta / _inflation(seen_k, k).clamp_min(1.0)
    out, after = gated_delta(seen_q, seen_k, seen_v, discounted, decay, state, lengths)
    return encode(out, to_ray, cos, -sin).to(dtype or raw), after


def _inflation(seen: Tensor, plain: Tensor) -> Tensor:
    """Mean over a frame's tokens of how much the ray transform stretched the squared keys, [B, T, 1, N]."""
    stretched, before = (torch.linalg.vector_norm(x, dim=-1).clamp_min(1e-6) for x in (seen, plain))
    return _token_mean((stretched / before).square())


def _token_mean(x: Tensor) -> Tensor:
    """Mean of x [B, T, S, N] over S, [B, T, 1, N]; on a GPU too its order of additions is the same in any batch.

    Torch orders a long sum by how many there are; one that fits a warp has one order.
    """
    tokens = x.shape[2]
    x = x.transpose(2, 3)
    while x.shape[-1] > 1:
        x = functional.pad(x, (0, -x.shape[-1] % WARP)).unflatten(-1, (-1, WARP)).contiguous().sum(-1)
    return x.transpose(2, 3) / tokens
