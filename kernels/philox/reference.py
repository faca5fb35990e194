"""Philox4x32-10 in plain torch integer arithmetic, on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
ROUNDS = 10
# Round multipliers less 2**32: with |multiplier| < 2**31 a product with a 32-bit word never overflows int64.
MULTIPLIER_0 = 0xD2511F53 - 2**32
MULTIPLIER_1 = 0xCD9E8D57 - 2**32
# What the two key words grow by from round to round.
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
# Rows are padded to whole vector registers, so that no element of a world is computed by a remainder loop, whose
# logarithms may differ in the last bit: then the batch around a world cannot change its noise.
ROW_BLOCKS = 16


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The four output words of each counter. All tensors int64 that hold 32-bit words, and broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high_0, low_0 = _multiply(c0, MULTIPLIER_0)
        high_1, low_1 = _multiply(c2, MULTIPLIER_1)
        c0, c1, c2, c3 = high_1 ^ (c1 ^ k0), low_1, high_0 ^ (c3 ^ k1), low_0
        k0, k1 = (k0 + WEYL_0) & MASK, (k1 + WEYL_1) & MASK
    return [c0, c1, c2, c3]


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of word * (multiplier + 2**32), where -2**31 < multiplier < 0 <= word < 2**32."""
    product = word * multiplier
    return ((product >> 32) + word).bitwise_and_(MASK), product & MASK


def words(seeds: Tensor, chunk: Tensor, draw: int, blocks: int) -> Tensor:
    """Integers of one draw: int64 [B, blocks, 4]. seeds, chunk: int64 [B]; the layout is the package's."""
    return torch.stack(_blocks(seeds, chunk, draw, blocks), dim=-1)


def normal(seeds: Tensor, chunk: Tensor, draw: int, count: int) -> Tensor:
    """Standard normals of one draw: float32 [B, count]."""
    blocks = -(-count // 4)
    padded = -(-blocks // ROW_BLOCKS) * ROW_BLOCKS
    w0, w1, w2, w3 = _blocks(seeds, chunk, draw, padded)
    values = torch.empty(len(seeds), padded, 4, dtype=torch.float32, device=seeds.device)
    for column, (first, second) in enumerate(((w0, w1), (w2, w3))):
        cosine, sine = box_muller(first, second)
        values[..., 2 * column] = cosine
        values[..., 2 * column + 1] = sine
    return values.flatten(1)[:, :count].contiguous()


def box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent float64 normals from two tensors of 32-bit words."""
    radius = (first.double() + 0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = (second.double() + 0.5).mul_(2.0**-32 * 2.0 * math.pi)
    return radius * angle.cos(), radius * angle.sin()


def _blocks(seeds: Tensor, chunk: Tensor, draw: int, blocks: int) -> list[Tensor]:
    """Four words of each block, each int64 [B, blocks]."""
    seeds, chunk = seeds[:, None], chunk[:, None]
    block = torch.arange(blocks, device=seeds.device)[None].expand(len(seeds), -1)
    draws = torch.full_like(seeds, draw)
    counter = (block, draws, chunk & MASK, (chunk >> 32) & MASK)
    return philox(counter, (seeds & MASK, (seeds >> 32) & MASK))
