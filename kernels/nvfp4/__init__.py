"""NVFP4 weights: 4-bit floats (e2m1), two a byte, a scale of 8 bits (e4m3) for 16 of them, one fp32 scale a tensor.

A weight is code * scales[block] * tensor_scale, 4.5 bits each. Only weights are stored so; what they multiply keeps its
precision (W4A16, spec rollout.md 11). The format is that of nvidia-modelopt's NVFP4QTensor, bit for bit.
"""

from __future__ import annotations

from torch import Tensor

from sanawm_env.errors import ConfigError
from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.nvfp4 import reference
from sanawm_env.kernels.nvfp4.reference import BLOCK as BLOCK

# Largest difference between the backends in fp32 over the largest output: the order of a sum.
TOLERANCE = 1e-5


def quantise(weight: Tensor, *, fitted: bool = False, moments: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(codes uint8 [N, K / 2], scales e4m3 [N, K / 16], tensor_scale fp32 []) of a matrix [N, K].

    Codes of columns 2j and 2j + 1 are the low and the high half of byte j. Values round to the nearest, halves to the
    even code; the largest of the tensor becomes 6 * 448 * tensor_scale. A block's scale takes its largest value to 6,
    as nvidia-modelopt's does; fitted: it is the one of eight near by with the least squared error, a quarter less on
    weights like ours. moments: [K, K], sum of x x^T over typical inputs x: columns are rounded in turn, each loss taken
    over by later columns so that products with such inputs change least. ConfigError unless K is a multiple of 16.
    """
    if weight.ndim != 2 or weight.shape[1] % BLOCK:
        raise ConfigError(
            f"a weight of shape {tuple(weight.shape)} has no NVFP4 form; allowed are matrices whose rows are multiples "
            f"of {BLOCK} long: keep it in high precision."
        )
    return reference.quantise(weight, fitted=fitted, moments=moments)


def dequantise(codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    """The matrix fp32 [N, K] that `quantise`'s result stands for."""
    return reference.dequantise(codes, scales, tensor_scale)


def linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """x [..., K] times the transposed weights, plus bias [N]: [..., N] in x's dtype.

    codes, scales, tensor_scale: of `quantise`. The fused form keeps nothing but them in memory, adds in fp32, and gives
    a row the same result whatever other rows there are. BackendError where "fused" cannot run; it has no gradients.
    """
    given = (x,) if bias is None else (x, bias)
    if resolve(backend, x.device, op="nvfp4", gradients=needs_gradients(*given)) == "fused":
        from sanawm_env.kernels.nvfp4 import fused

        return fused.linear(x, codes, scales, tensor_scale, bias)
    return reference.linear(x, codes, scales, tensor_scale, bias)
