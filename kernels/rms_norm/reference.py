"""RMS norm and rotary rotation in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from sanawm_env.kernels import encoding
from sanawm_env.kernels.encoding import rotate


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    epsilon: float,
    rotation: tuple[Tensor, Tensor] | None = None,
    *,
    split: bool = False,
) -> Tensor:
    """As the package's `rms_norm`."""
    normed = encoding.rms_norm(x, weight, epsilon)
    if rotation is None:
        return normed
    heads = normed.unflatten(-1, (-1, 2 * rotation[0].shape[-1]))
    return rotate(heads, *rotation, split=split).flatten(-2).to(x.dtype)
