"""Counter-based random numbers, vectorised over seeds: row i depends on seeds[i] alone, never on the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mix(value: Tensor) -> Tensor:
    """SplitMix64 finaliser: int64 to int64, every input bit spread over every output bit."""
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


class Draws:
    """A stream of draws for each seed; the order of the calls is the only state (a counter shared by all rows)."""

    def __init__(self, seeds: Tensor, domain: int):
        """seeds: int64 [B]. domain: separates streams that use the same seeds (scenes, trajectories)."""
        self._keys = mix(mix(seeds + _GOLDEN) + torch.tensor(domain) * _GOLDEN)
        self._counter = 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 [B, *shape], uniform in [low, high), 24 random bits each."""
        count = math.prod(shape)
        steps = torch.arange(self._counter + 1, self._counter + 1 + count)
        self._counter += count
        bits = mix(self._keys[:, None] + steps * _GOLDEN)
        unit = _shift_right(bits, 40).float() * 2.0**-24
        return (low + (high - low) * unit).reshape(len(self._keys), *shape)

    def integers(self, *shape: int, high: int) -> Tensor:
        """int64 [B, *shape], uniform in [0, high)."""
        return (self.uniform(*shape) * high).long()

    def chance(self, *shape: int, probability: float) -> Tensor:
        """bool [B, *shape], true with the given probability."""
        return self.uniform(*shape) < probability

    def permutation(self, count: int) -> Tensor:
        """int64 [B, count], a uniform permutation of range(count)."""
        return self.uniform(count).argsort(dim=-1, stable=True)
