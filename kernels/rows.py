"""What the fused row kernels share: tensors as rows, sizes of their tiles, and small device functions."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def silu(x):
    """x sigmoid(x) of fp32 values."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def quick_silu(x, QUICK: tl.constexpr):
    """SiLU with the hardware's reciprocal, an error of one bit or two, where it is what a kernel waits for; the
    interpreter has no such instruction (QUICK false).
    """
    if QUICK:
        one = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + tl.exp(-x)], dtype=tl.float32, is_pure=True, pack=1
        )
        return x * one
    return silu(x)


def rows(x: Tensor) -> Tensor:
    """x as [rows, lanes] whose lanes are neighbours in memory: a view where x has one, else a copy."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def whole_row(width: int) -> dict[str, int]:
    """Sizes of a kernel that holds a row in registers. They set the order of its sums, so nothing but the width may
    decide them: never the number of rows, which tells how many worlds share the batch.
    """
    lanes = triton.next_power_of_2(width)
    return {"LANES": lanes, "num_warps": min(max(lanes // 512, 1), 8)}
