"""Procedural patterns averaged over the footprint of a ray, so that nothing shimmers when the camera moves.

A pattern is a grid of cells (planks, tiles, checks, stripes, bricks) of two colours with a tone of their own, joints
between them, a dot in each, plus smooth noise. Averages over a footprint are exact for cells and joints along each axis
and fade to the mean where a footprint covers more than a cell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.rooms import layout

_PRIME_U, _PRIME_V, _PRIME_SALT, _PRIME_MIX = 374761393, 668265263, 1442695041, 1274126177


def lattice_hash(column: Tensor, row: Tensor, salt: Tensor) -> Tensor:
    """Value in [0, 1] of an integer lattice point, from wrapping 32-bit arithmetic: the same on every device."""
    value = column.int() * _PRIME_U + row.int() * _PRIME_V + salt.int() * _PRIME_SALT
    value = (value ^ ((value >> 13) & 0x7FFFF)) * _PRIME_MIX
    return ((value ^ ((value >> 16) & 0xFFFF)) & 0xFFFF).float() * (1.0 / 65535.0)


def pulse_share(x: Tensor, width: Tensor, half: Tensor) -> Tensor:
    """Share of [x - width / 2, x + width / 2] within `half` of an integer."""
    low, high = x - 0.5 * width + 0.5, x + 0.5 * width + 0.5

    def covered(end: Tensor) -> Tensor:
        whole = end.floor()
        return 2.0 * half * whole + ((end - whole - 0.5).clamp(-half, half) + half)

    return ((covered(high) - covered(low)) / width).clamp(0.0, 1.0)


def edge_cover(distance: Tensor, width: Tensor) -> Tensor:
    """Share of a footprint on the inner (negative) side of an edge at a signed distance."""
    return (0.5 - distance / width).clamp(0.0, 1.0)


def _straddle(x: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells that a footprint touches, and its share in the second."""
    width = width.clamp(max=1.0)
    low, high = (x - 0.5 * width).floor(), (x + 0.5 * width).floor()
    return low, high, torch.where(high > low, (x + 0.5 * width - high) / width, torch.zeros_like(x))


def smooth_noise(u: Tensor, v: Tensor, width: Tensor, salt: Tensor) -> Tensor:
    """Lattice noise in [-0.5, 0.5], smooth, fading to 0 where a footprint covers more than a lattice cell."""
    column, row = u.floor(), v.floor()
    s, t = u - column, v - row
    s, t = s * s * (3.0 - 2.0 * s), t * t * (3.0 - 2.0 * t)
    near = torch.lerp(lattice_hash(column, row, salt), lattice_hash(column + 1, row, salt), s)
    far = torch.lerp(lattice_hash(column, row + 1, salt), lattice_hash(column + 1, row + 1, salt), s)
    return (torch.lerp(near, far, t) - 0.5) * (1.5 - width).clamp(0.0, 1.0)


def pattern(material: Tensor, u: Tensor, v: Tensor, width_u: Tensor, width_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Red, green and blue [N, R] of material rows [N, 29, R] at (u, v) metres; widths: the footprint's size in metres.

    v grows upwards on walls, where it is the height above the floor (the band is measured along it).
    """

    def column(index: int) -> Tensor:
        return material[:, index]

    cos, sin = column(layout.TURN_COS), column(layout.TURN_SIN)
    scale_u, scale_v = column(layout.SCALE_U), column(layout.SCALE_V)
    salt = column(layout.SALT)
    turned_u, turned_v = cos * u + sin * v, cos * v - sin * u
    wide_u = cos.abs() * width_u + sin.abs() * width_v
    wide_v = cos.abs() * width_v + sin.abs() * width_u
    x, y = turned_u * scale_u + column(layout.PHASE_U), turned_v * scale_v + column(layout.PHASE_V)
    wx, wy = (wide_u * scale_u).clamp(min=1e-4), (wide_v * scale_v).clamp(min=1e-4)

    row_low, row_high, row_share = _straddle(y, wy)
    sums = [torch.zeros_like(x) for _ in range(4)]
    for row, share in ((row_low, 1.0 - row_share), (row_high, row_share)):
        for index, value in enumerate(_cells(material, x + column(layout.ROW_SHIFT) * row, row, y, wx, wy, salt)):
            sums[index] = sums[index] + share * value
    parity, tone, joint, dot = sums
    fade = (2.0 - 2.0 * torch.maximum(wx, wy)).clamp(0.0, 1.0)
    blend = column(layout.PARITY) * torch.lerp(torch.full_like(parity, 0.5), parity, fade)
    blend = torch.maximum(blend, dot)
    joint = torch.maximum(joint, pulse_share(y, wy, column(layout.GROUT_V)))
    rate_u, rate_v = column(layout.NOISE_U), column(layout.NOISE_V)
    grain = smooth_noise(
        turned_u * rate_u, turned_v * rate_v, torch.maximum(wide_u * rate_u, wide_v * rate_v), salt + 77.0
    )
    gain = (1.0 + column(layout.TONE) * (tone - 0.5) * fade) * (1.0 + column(layout.NOISE) * grain)
    other = torch.maximum(joint, edge_cover(v - column(layout.BAND), width_v) * (column(layout.BAND) > 0.0))

    def channel(index: int) -> Tensor:
        cell = torch.lerp(column(layout.COLOUR_A + index), column(layout.COLOUR_B + index), blend)
        return torch.lerp(cell * gain, column(layout.COLOUR_C + index), other)

    return channel(0), channel(1), channel(2)


def _cells(
    material: Tensor, x: Tensor, row: Tensor, y: Tensor, wx: Tensor, wy: Tensor, salt: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parity, tone, joint and dot along one row of cells, averaged along x."""
    low, high, share = _straddle(x, wx)
    parity_u, parity_v = material[:, layout.PARITY_U], material[:, layout.PARITY_V]

    def odd(column: Tensor) -> Tensor:
        sum_ = column * parity_u + row * parity_v
        return sum_ - 2.0 * (0.5 * sum_).floor()

    parity = torch.lerp(odd(low), odd(high), share)
    tone = torch.lerp(lattice_hash(low, row, salt), lattice_hash(high, row, salt), share)
    joint = pulse_share(x, wx, material[:, layout.GROUT_U])
    from_middle = torch.hypot(x - x.floor() - 0.5, y - y.floor() - 0.5)
    radius = material[:, layout.DOT]
    dot = edge_cover(from_middle - radius, torch.maximum(wx, wy)) * (radius > 0.0)
    return parity, tone, joint, dot
