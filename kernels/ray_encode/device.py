"""The ray encoding of a tile of heads, for Triton kernels to call."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def encode_heads(
    x, matrix, cos, sin, m_row, m_column, known,
    D: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """x [ROWS, LANES] encoded; fp32 in and out, one head a row, lanes from D on are padding.

    matrix, cos, sin: [ROWS] pointers to the 4x4 transform and to the D / 4 angles of each row's token; m_row, m_column:
    strides inside a transform (exchanged, they apply its transpose). known: [ROWS], which rows to read for. INVERSE:
    turn the other way.
    """
    even, odd = tl.split(tl.reshape(x, (ROWS, LANES // 4, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    y0 = _product(x0, x1, x2, x3, matrix, m_column, known)
    y1 = _product(x0, x1, x2, x3, matrix + m_row, m_column, known)
    y2 = _product(x0, x1, x2, x3, matrix + 2 * m_row, m_column, known)
    y3 = _product(x0, x1, x2, x3, matrix + 3 * m_row, m_column, known)
    group = tl.arange(0, LANES // 4)[None, :]
    turned = group >= D // 8
    # Angles of the two pairs of a group, counted from the middle of the head.
    angle, there = 2 * group - D // 4, known[:, None] & turned & (group < D // 4)
    c, s = _wave(cos, angle, there), _wave(sin, angle, there) * (-1.0 if INVERSE else 1.0)
    z0, z1 = x0 * c - x1 * s, x0 * s + x1 * c
    c, s = _wave(cos, angle + 1, there), _wave(sin, angle + 1, there) * (-1.0 if INVERSE else 1.0)
    z2, z3 = x2 * c - x3 * s, x2 * s + x3 * c
    even = tl.join(tl.where(turned, z0, y0), tl.where(turned, z2, y2))
    odd = tl.join(tl.where(turned, z1, y1), tl.where(turned, z3, y3))
    return tl.reshape(tl.join(even, odd), (ROWS, LANES))


@triton.jit
def _product(x0, x1, x2, x3, matrix, m_column, known):
    """One row of the transform times the groups of four."""
    m0 = tl.load(matrix, mask=known, other=0.0)[:, None]
    m1 = tl.load(matrix + m_column, mask=known, other=0.0)[:, None]
    m2 = tl.load(matrix + 2 * m_column, mask=known, other=0.0)[:, None]
    m3 = tl.load(matrix + 3 * m_column, mask=known, other=0.0)[:, None]
    return m0 * x0 + m1 * x1 + m2 * x2 + m3 * x3


@triton.jit
def _wave(wave, angle, there):
    return tl.load(wave[:, None] + angle, mask=there, other=0.0)
