"""How tests of the ops compare a fused form with its reference, and worlds in company with the same worlds alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def assert_close(fused: Tensor, wanted: Tensor, dtype: torch.dtype, bound: float) -> None:
    """`fused` has `dtype` and equals `wanted` (fp32): to `bound` of the largest value, and one rounding in bf16."""
    assert fused.dtype == dtype and fused.shape == wanted.shape
    allowed = bound * wanted.abs().max().clamp_min(1.0)
    if dtype == torch.bfloat16:
        # A GPU rounds to the nearest bf16, Triton's interpreter towards zero.
        allowed = allowed + wanted.abs() * (2**-8 if fused.is_cuda else 2**-7)
    assert ((fused.float() - wanted).abs() <= allowed).all(), float((fused.float() - wanted).abs().max())


def assert_same_in_any_batch(op: Callable[..., Tensor], *given: Tensor) -> None:
    """Each world's result is the same bits whether it runs with the others or alone."""
    together = op(*given)
    for world in range(len(given[0])):
        assert torch.equal(op(*(x[world : world + 1] for x in given))[0], together[world])
