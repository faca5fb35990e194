"""FP8 products: weights and what they multiply as 8-bit floats (e4m3), an fp32 scale a row of each (W8A8).

The scale of a row takes its largest value to 448, the largest of e4m3; that of x is found anew in every call, so that
nothing has to be calibrated (spec rollout.md 11). The fast form is torch's scaled matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.errors import BackendError, nearest
from sanawm_env.kernels.backend import fp8_obstacle, needs_gradients, resolve
from sanawm_env.kernels.fp8 import reference

BACKENDS = ("auto", "reference", "scaled")
# Largest difference of a bf16 output from the reference's, over the largest output.
TOLERANCE = 2**-7


def quantise(rows: Tensor, *, gelu: bool = False, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """(levels e4m3 [N, K], scales fp32 [N]) of a matrix [N, K]: each row over its scale, its largest at 448.

    gelu: of the values' GELU instead (in its form with a tanh, in fp32). BackendError where "fused" cannot run; it has
    no gradients.
    """
    if resolve(backend, rows.device, op="fp8_rows", gradients=needs_gradients(rows)) == "fused":
        from sanawm_env.kernels.fp8 import fused

        return fused.quantise(rows, gelu=gelu)
    return reference.quantise(rows, gelu=gelu)


def linear(
    x: Tensor,
    levels: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """x [..., K] times the transposed weights, plus bias [N]: [..., N] in x's dtype; sums in fp32.

    levels e4m3 [N, K] and scales fp32 [N]: of `quantise`. gelu: of x's GELU instead, as `quantise` has it. "auto" is
    "scaled", torch's product of 8-bit floats, which wants N and K to be multiples of 16; "reference" rounds the same
    and multiplies in fp32, for tests. BackendError where the device has no such product: it is never simulated unasked.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} for fp8 is unknown; {nearest(backend, BACKENDS)}")
    if backend == "reference":
        return reference.linear(x, levels, scales, bias, gelu=gelu)
    check_scaled(x.device)
    rows, given = quantise(x.reshape(-1, x.shape[-1]), gelu=gelu)
    added = None if bias is None else bias.bfloat16()
    out = torch._scaled_mm(
        rows, levels.t(), scale_a=given[:, None], scale_b=scales[None], bias=added, out_dtype=torch.bfloat16
    )
    return out.to(x.dtype).reshape(*x.shape[:-1], len(levels))


def check_scaled(device: torch.device | str) -> None:
    """BackendError where FP8 products cannot run."""
    obstacle = fp8_obstacle(torch.device(device))
    if obstacle:
        raise BackendError(
            f"precision 'fp8' cannot run on {device}: {obstacle}.\nUse 'bf16' or 'nvfp4' (weights only)."
        )
