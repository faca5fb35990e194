"""Main branch of a recurrent block in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sanawm_env.kernels.encoding import rms_norm, rotate
from sanawm_env.kernels.gated_delta import key_scale, normalised_gated_delta
from sanawm_env.kernels.short_convolution import short_convolution


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
) -> tuple[Tensor, Tensor, Tensor]:
    """As the package's `main_scan`."""
    heads = (beta.shape[-1], -1)
    q, k, v = qkv.chunk(3, dim=-1)
    k = short_convolution(k, k_tail, conv_weight, lengths, crossing=True)
    q = functional.relu(rms_norm(q, q_weight, norm_eps).unflatten(-1, heads).float())
    k = functional.relu(rms_norm(k, k_weight, norm_eps).unflatten(-1, heads).float())
    k = k * key_scale(k.shape[-1], k.shape[2])
    out, after, normaliser_after = normalised_gated_delta(
        q,
        k,
        rotate(q, cos, sin),
        rotate(k, cos, sin),
        v.unflatten(-1, heads),
        beta,
        decay,
        state,
        normaliser,
        lengths,
    )
    return out.to(dtype or qkv.dtype), after, normaliser_after
