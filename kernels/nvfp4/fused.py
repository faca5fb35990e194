"""Product with NVFP4 weights in Triton: the weights are read in 4 bits and become numbers on the chip (W4A16)."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# The same for any number of rows, so that a row's sums have one order whatever shares the call.
ROWS, LANES = 64, 64
NARROW, WIDE = 64, 128


@triton.jit
def _linear_kernel(
    x, codes, scales, tensor_scale, bias, out, M, N, K,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """out [ROWS, COLUMNS] of one tile; K is a multiple of 16."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside, known = row < M, column < N
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, K, LANES):
        lane = begin + tl.arange(0, LANES)
        pair = begin // 2 + tl.arange(0, LANES // 2)
        group = begin // 16 + tl.arange(0, LANES // 16)
        values = tl.load(x + row[:, None] * K + lane[None, :], mask=inside[:, None] & (lane < K)[None, :], other=0.0)
        packed = tl.load(
            codes + column[:, None] * (K // 2) + pair[None, :], mask=known[:, None] & (pair < K // 2)[None, :], other=0
        ).to(tl.int32)
        scale = tl.load(
            scales + column[:, None] * (K // 16) + group[None, :], mask=known[:, None] & (group < K // 16)[None, :],
            other=0,
        ).to(tl.int32)  # fmt: skip
        code = tl.interleave(packed & 15, packed >> 4)
        # e2m1 in halves: 0 1 2 3 4 6 8 12, in integers because their bits are few.
        exponent, last = (code >> 1) & 3, code & 1
        halves = tl.where(exponent == 0, last, (2 + last) << tl.maximum(exponent - 1, 0))
        level = tl.where(code >= 8, -halves, halves).to(tl.float32) * 0.5
        # e4m3 by its bits: cards before Ada have no such number. Exponents below 1 are those of subnormals.
        high, low = (scale >> 3) & 15, scale & 7
        power = ((tl.maximum(high, 1) - 10 + 127) << 23).to(tl.float32, bitcast=True)
        factor = tl.where(high == 0, low, 8 + low).to(tl.float32) * power
        # Six significant bits: the product is exact in bf16 too. The tensor's scale waits until the sum is done.
        blocks = tl.reshape(level, (COLUMNS, LANES // 16, 16)) * factor[:, :, None]
        weight = tl.reshape(blocks, (COLUMNS, LANES)).to(values.dtype)
        total = tl.dot(values, tl.trans(weight), total, input_precision="ieee")
    total = total * tl.load(tensor_scale)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
    tl.store(out + row[:, None] * N + column[None, :], total, mask=inside[:, None] & known[None, :])


def linear(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """As the package's `linear`."""
    width, count = x.shape[-1], len(codes)
    rows = x.reshape(-1, width).contiguous()
    out = rows.new_empty((len(rows), count))
    columns = WIDE if count >= 1024 else NARROW
    grid = (triton.cdiv(len(rows), ROWS), triton.cdiv(count, columns))
    if len(rows):
        _linear_kernel[grid](
            rows,
            codes,
            scales.view(torch.uint8),
            tensor_scale,
            tensor_scale if bias is None else bias,
            out,
            len(rows),
            count,
            width,
            HAS_BIAS=bias is not None,
            ROWS=ROWS,
            COLUMNS=columns,
            LANES=LANES,
        )
    return out.unflatten(0, x.shape[:-1]) if x.ndim != 2 else out
