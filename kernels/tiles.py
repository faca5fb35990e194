"""What `encoding` does to tensors, done to a tile of a Triton kernel: TOKENS tokens by LANES lanes of one head.

D lanes are in use; the others, and tokens beyond the S of the frame, are zero and stay zero.
"""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

# Products of fp32 values: three passes of the matrix units, whose error is near that of fp32.
PRECISION = tl.constexpr("tf32x3")
# Tokens of a frame that one program takes; more are taken in several parts.
PART = 448


class TilePlan(NamedTuple):
    """How the tokens of a frame are spread over programs, a function of D, S and dtype alone, so that sums have one
    order whatever shares the batch.

    parts: programs a frame and head that write; blocks: tiles of each; readers: programs that read, of a tile each;
    dtype: of the operands of products; sizes: what the kernels are compiled with.
    """

    parts: int
    blocks: int
    readers: int
    dtype: torch.dtype
    sizes: dict[str, Any]

    def launch(self, num_warps: int, num_stages: int = 1) -> dict[str, Any]:
        """What a kernel is compiled and launched with; warps and stages are those of bf16, found by trying."""
        low = self.dtype == torch.bfloat16
        return self.sizes | {"num_warps": num_warps if low else 8, "num_stages": num_stages if low else 1}


def plan_tiles(width: int, tokens: int, dtype: torch.dtype) -> TilePlan:
    """The plan for heads of `width` lanes, `tokens` tokens a frame and projections of a dtype."""
    low = dtype == torch.bfloat16
    # Tiles of fp32 take twice the shared memory, and the parts of their products more registers.
    size = 64 if low else 32
    parts = triton.cdiv(tokens, PART)
    blocks = triton.cdiv(triton.cdiv(tokens, parts), size)
    sizes = {"D": width, "TOKENS": size, "LANES": lanes(width), "OPERAND": tl.bfloat16 if low else tl.float32}
    return TilePlan(parts, blocks, triton.cdiv(tokens, size), torch.bfloat16 if low else torch.float32, sizes)


def lanes(width: int) -> int:
    """Lanes of a tile for heads of `width` lanes: a power of two, 16 at least as products need."""
    return max(16, triton.next_power_of_2(width))


@triton.jit
def load_tile(x, row, token, S, D: tl.constexpr, LANES: tl.constexpr):
    """Tokens `token` of one frame and head as stored; x points at its first value, `row` values before the next's."""
    lane = tl.arange(0, LANES)
    inside = (token < S)[:, None] & (lane < D)[None, :]
    return tl.load(x + token[:, None] * row + lane[None, :], mask=inside, other=0.0)


@triton.jit
def load_normed(x, row, scale, weight, factor, token, S, D: tl.constexpr, LANES: tl.constexpr):
    """ReLU of the normed tokens, times a factor > 0; scale: 1 / rms of each token, weight: of the head's lanes."""
    lane = tl.arange(0, LANES)
    tile = load_tile(x, row, token, S, D, LANES).to(tl.float32)
    tile *= (tl.load(scale + token, mask=token < S, other=0.0) * factor)[:, None]
    tile *= tl.load(weight + lane, mask=lane < D, other=0.0).to(tl.float32)[None, :]
    # Not the maximum with 0, which would hide NaN.
    return tl.where(tile < 0.0, 0.0, tile)


@triton.jit
def load_wave(wave, token, S, FIRST: tl.constexpr, COUNT: tl.constexpr, LANES: tl.constexpr):
    """Cosines or sines of the lane pairs FIRST .. FIRST + COUNT - 1, zero elsewhere."""
    pair = tl.arange(0, LANES // 2)[None, :] - FIRST
    inside = (token < S)[:, None] & (pair >= 0) & (pair < COUNT)
    return tl.load(wave + token[:, None] * COUNT + pair, mask=inside, other=0.0)


@triton.jit
def rotated(x, cos, sin, TOKENS: tl.constexpr, LANES: tl.constexpr):
    """Each pair of lanes (2j, 2j + 1) rotated by angle j; cos, sin: [TOKENS, LANES / 2]."""
    even, odd = tl.split(tl.reshape(x, (TOKENS, LANES // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (TOKENS, LANES))


@triton.jit
def _row_of_product(matrix, x0, x1, x2, x3, token, S, COLUMN: tl.constexpr):
    """One row of each token's matrix times groups of four; matrix points at the row's first entry of token 0."""
    known = token < S
    y = tl.load(matrix + token * 16, mask=known, other=0.0)[:, None] * x0
    y += tl.load(matrix + token * 16 + COLUMN, mask=known, other=0.0)[:, None] * x1
    y += tl.load(matrix + token * 16 + 2 * COLUMN, mask=known, other=0.0)[:, None] * x2
    y += tl.load(matrix + token * 16 + 3 * COLUMN, mask=known, other=0.0)[:, None] * x3
    return y


@triton.jit
def transformed(x, matrix, token, S, TRANSPOSED: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr):
    """Groups of four lanes multiplied by each token's 4x4 matrix, or its transpose."""
    ROW: tl.constexpr = 1 if TRANSPOSED else 4
    COLUMN: tl.constexpr = 4 if TRANSPOSED else 1
    outer, inner = tl.split(tl.reshape(x, (TOKENS, LANES // 4, 2, 2)))
    x0, x2 = tl.split(outer)
    x1, x3 = tl.split(inner)
    y0 = _row_of_product(matrix, x0, x1, x2, x3, token, S, COLUMN)
    y1 = _row_of_product(matrix + ROW, x0, x1, x2, x3, token, S, COLUMN)
    y2 = _row_of_product(matrix + 2 * ROW, x0, x1, x2, x3, token, S, COLUMN)
    y3 = _row_of_product(matrix + 3 * ROW, x0, x1, x2, x3, token, S, COLUMN)
    return tl.reshape(tl.join(tl.join(y0, y2), tl.join(y1, y3)), (TOKENS, LANES))


@triton.jit
def encoded(
    x, matrix, cos, sin, token, S,
    TRANSPOSED: tl.constexpr, INVERSE: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """First half of the D lanes by each token's ray matrix, second half rotated, by the negative angles if INVERSE."""
    lane = tl.arange(0, LANES)
    seen = transformed(x, matrix, token, S, TRANSPOSED, TOKENS, LANES)
    c = load_wave(cos, token, S, D // 4, D // 4, LANES)
    s = load_wave(sin, token, S, D // 4, D // 4, LANES)
    turned = rotated(x, c, -s if INVERSE else s, TOKENS, LANES)
    return tl.where((lane < D // 2)[None, :], seen, turned)


@triton.jit
def downscaled(seen, plain, D: tl.constexpr):
    """`seen` shrunk, a token at a time, so that its RMS does not exceed that of `plain`."""
    before = tl.sqrt(tl.sum(plain * plain, 1) / D + 1e-6)
    after = tl.sqrt(tl.sum(seen * seen, 1) / D + 1e-6)
    return seen * tl.minimum(before / tl.maximum(after, 1e-6), 1.0)[:, None]
