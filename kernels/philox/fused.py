"""Philox4x32-10 in Triton: the integers of reference.py, and their normals in one pass."""

# Triton takes annotations of kernel arguments for its own types, so kernels carry none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit
def _philox(seed, chunk, draw, block):
    """Four uint32 words of each counter (block, draw, chunk low, chunk high) under the key (seed low, seed high)."""
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = tl.zeros_like(c0) + (draw & 0xFFFFFFFF).to(tl.uint32)
    c2 = tl.zeros_like(c0) + (chunk & 0xFFFFFFFF).to(tl.uint32)
    c3 = tl.zeros_like(c0) + ((chunk >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        product_0 = c0.to(tl.uint64) * 0xD2511F53
        product_1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = (product_1 & 0xFFFFFFFF).to(tl.uint32)
        c3 = (product_0 & 0xFFFFFFFF).to(tl.uint32)
        # Key words wrap at 32 bits; going through 64 keeps the interpreter free of overflow warnings.
        k0 = ((k0.to(tl.uint64) + 0x9E3779B9) & 0xFFFFFFFF).to(tl.uint32)
        k1 = ((k1.to(tl.uint64) + 0xBB67AE85) & 0xFFFFFFFF).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _box_muller(first, second):
    radius = tl.sqrt(-2.0 * tl.log((first.to(tl.float64) + 0.5) * 2.3283064365386963e-10))
    angle = (second.to(tl.float64) + 0.5) * 1.4629180792671596e-09
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _words_kernel(seeds, chunks, draw, out, blocks, BLOCK: tl.constexpr):
    world = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = _philox(tl.load(seeds + world), tl.load(chunks + world), tl.load(draw), block)
    at = out + (world * blocks + block) * 4
    inside = block < blocks
    tl.store(at, w0.to(tl.int64), mask=inside)
    tl.store(at + 1, w1.to(tl.int64), mask=inside)
    tl.store(at + 2, w2.to(tl.int64), mask=inside)
    tl.store(at + 3, w3.to(tl.int64), mask=inside)


@triton.jit
def _normal_kernel(seeds, chunks, draw, out, count, BLOCK: tl.constexpr):
    world = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = _philox(tl.load(seeds + world), tl.load(chunks + world), tl.load(draw), block)
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    element = block * 4
    at = out + world * count + element
    tl.store(at, z0.to(tl.float32), mask=element < count)
    tl.store(at + 1, z1.to(tl.float32), mask=element + 1 < count)
    tl.store(at + 2, z2.to(tl.float32), mask=element + 2 < count)
    tl.store(at + 3, z3.to(tl.float32), mask=element + 3 < count)


def words(seeds: Tensor, chunk: Tensor, draw: int, blocks: int) -> Tensor:
    """Integers of one draw: int64 [B, blocks, 4]. seeds, chunk: int64 [B]; the layout is the package's."""
    out = torch.empty(len(seeds), blocks, 4, dtype=torch.int64, device=seeds.device)
    if out.numel():
        grid = (len(seeds), triton.cdiv(blocks, BLOCK))
        _words_kernel[grid](seeds.contiguous(), chunk.contiguous(), _draw(draw, seeds), out, blocks, BLOCK=BLOCK)
    return out


def normal(seeds: Tensor, chunk: Tensor, draw: int, count: int) -> Tensor:
    """Standard normals of one draw: float32 [B, count]."""
    out = torch.empty(len(seeds), count, dtype=torch.float32, device=seeds.device)
    if out.numel():
        grid = (len(seeds), triton.cdiv(count, 4 * BLOCK))
        _normal_kernel[grid](seeds.contiguous(), chunk.contiguous(), _draw(draw, seeds), out, count, BLOCK=BLOCK)
    return out


def _draw(draw: int, seeds: Tensor) -> Tensor:
    """The draw as data, so that its value never specialises the kernel (Triton compiles 0, 1 and others apart)."""
    return torch.full((1,), draw, dtype=torch.int64, device=seeds.device)
