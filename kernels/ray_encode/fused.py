"""Encoding of heads by rays in Triton: a program takes a few heads of neighbouring tokens."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sanawm_env.kernels.ray_encode.device import encode_heads
from sanawm_env.kernels.rows import rows

ROWS = 16


@triton.jit
def _ray_encode_kernel(
    x, matrix, cos, sin, out, count, N, x_token, x_head, m_token, m_row, m_column, cos_token, sin_token,
    D: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, INVERSE: tl.constexpr, SHRINK: tl.constexpr,
):  # fmt: skip
    row, lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, LANES)
    token, known = row // N, row < count
    inside = known[:, None] & (lane < D)[None, :]
    at = x + (token * x_token + row % N * x_head)[:, None] + lane[None, :]
    plain = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    matrix, cos, sin = matrix + token * m_token, cos + token * cos_token, sin + token * sin_token
    encoded = encode_heads(plain, matrix, cos, sin, m_row, m_column, known, D, ROWS, LANES, INVERSE)
    if SHRINK:
        before = tl.sqrt(tl.sum(plain * plain, 1) / D + 1e-6)
        after = tl.sqrt(tl.sum(encoded * encoded, 1) / D + 1e-6)
        encoded *= tl.minimum(before / after, 1.0)[:, None]
    tl.store(out + row[:, None] * D + lane[None, :], encoded, mask=inside)


def ray_encode(
    x: Tensor, matrix: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False, shrink: bool = False
) -> Tensor:
    """As the package's `ray_encode`."""
    heads, width = x.shape[3:]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, heads, width)
    flat = flat if flat.stride(-1) == 1 else flat.contiguous()
    matrices = matrix.expand(*x.shape[:3], 4, 4).reshape(-1, 4, 4)
    cosines, sines = (rows(y.expand(*x.shape[:3], 1, width // 4)) for y in (cos, sin))
    strides = *flat.stride()[:2], *matrices.stride(), cosines.stride(0), sines.stride(0)
    count = len(flat) * heads
    sizes = {"D": width, "ROWS": ROWS, "LANES": triton.next_power_of_2(width)}
    _ray_encode_kernel[(triton.cdiv(count, ROWS),)](
        flat, matrices, cosines, sines, out, count, heads, *strides, INVERSE=inverse, SHRINK=shrink, **sizes
    )
    return out
