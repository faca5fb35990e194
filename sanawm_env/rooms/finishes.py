"""Colours and patterns of the surfaces: floors, walls, ceilings and furniture. Rows of the material table."""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.rooms import layout, palette
from sanawm_env.rooms.draws import Draws
from sanawm_env.rooms.furnishing import SECOND_COLOUR, Furniture

WHITE = torch.tensor([0.94, 0.93, 0.90])
_COMPOSITE_COLOURS = torch.tensor([palette.NAMES.index(name) for name in ("brown", "white", "grey", "black")])


def _row(batch: int, a: Tensor, b: Tensor, c: Tensor, **columns: Tensor | float) -> Tensor:
    """A material row [B, 29]; columns by their names in layout.py, lower case; zero where not given, no turn."""
    row = torch.zeros(batch, layout.MATERIAL_COLUMNS)
    row[:, layout.TURN_COS] = 1.0
    for start, colour in ((layout.COLOUR_A, a), (layout.COLOUR_B, b), (layout.COLOUR_C, c)):
        row[:, start : start + 3] = colour
    for name, value in columns.items():
        row[:, getattr(layout, name.upper())] = value
    return row


def _pick(table: Tensor, draws: Draws) -> Tensor:
    return table[draws.integers(high=len(table))]


def _choose(rows: list[Tensor], which: Tensor) -> Tensor:
    """rows[which[b]][b]"""
    return torch.stack(rows, dim=1)[torch.arange(len(which)), which]


def _finish_salt(row: Tensor, draws: Draws) -> Tensor:
    row[:, layout.SALT] = draws.integers(high=1 << 16).float()
    return row


def floor(draws: Draws) -> Tensor:
    """Planks, tiles, checker or carpet."""
    batch = len(draws.uniform())
    wood = palette.jitter(_pick(palette.WOODS, draws), draws.uniform(3), 0.03)
    stone, other = _pick(palette.STONES, draws), _pick(palette.STONES, draws)
    carpet, stripe = _pick(palette.CARPETS, draws), _pick(palette.CARPETS, draws)
    size, wide = draws.uniform(low=0.45, high=0.85), draws.uniform(low=0.20, high=0.34)
    quarter = draws.integers(high=2).float()
    phase = {"phase_u": draws.uniform(), "phase_v": draws.uniform()}
    along = {"turn_cos": 1 - quarter, "turn_sin": quarter}
    planks = _row(
        batch, wood, wood, wood * 0.6, scale_u=1 / 1.5, scale_v=1 / wide, row_shift=0.38, tone=0.36,
        grout_u=0.008, grout_v=0.03, noise=0.18, noise_u=0.8, noise_v=5.0, **along, **phase,
    )  # fmt: skip
    tiles = _row(
        batch, stone, stone, stone * 0.7, scale_u=1 / size, scale_v=1 / size, tone=0.2,
        grout_u=0.03, grout_v=0.03, noise=0.12, noise_u=2.0, noise_v=2.0, **phase,
    )  # fmt: skip
    diagonal = draws.integers(high=2).float() * (torch.pi / 4)
    contrast = torch.where((stone - other).abs().sum(1, keepdim=True) > 0.3, other, 0.62 * stone)
    checker = _row(
        batch, stone, contrast, stone, scale_u=1 / size, scale_v=1 / size, parity=1.0, parity_u=1, parity_v=1,
        tone=0.10, noise=0.10, noise_u=2.5, noise_v=2.5, turn_cos=diagonal.cos(), turn_sin=diagonal.sin(), **phase,
    )  # fmt: skip
    rug = _row(
        batch, carpet, stripe, carpet, scale_u=1 / (1.2 * size), parity=0.8, parity_u=1,
        noise=0.22, noise_u=3.0, noise_v=3.0, **along, **phase,
    )  # fmt: skip
    return _finish_salt(_choose([planks, tiles, checker, rug], draws.integers(high=4)), draws)


def _wallpaper(draws: Draws, colour: Tensor, accent: Tensor, skirting: Tensor) -> Tensor:
    """Plain with wainscot, stripes, dots, diamonds or bricks in the given colours."""
    batch = len(colour)
    soft = 0.5 * colour + 0.5 * accent
    wide, phase = draws.uniform(low=0.3, high=0.6), draws.uniform(2)
    base: dict[str, Tensor | float] = {"band": 0.12, "phase_u": phase[:, 0], "phase_v": phase[:, 1]}
    noise = {"noise": 0.10, "noise_u": 1.3, "noise_v": 1.3}
    plain = _row(batch, colour, colour, accent, **{**base, **noise, "band": draws.uniform(low=0.7, high=1.1)})
    stripes = _row(
        batch, colour, soft, skirting, scale_u=1 / wide, parity=1.0, parity_u=1, **base, noise=0.06, noise_u=1.0,
        noise_v=1.0,
    )  # fmt: skip
    dots = _row(
        batch,
        colour,
        accent,
        skirting,
        scale_u=0.9 / wide,
        scale_v=0.9 / wide,
        row_shift=0.5,
        dot=0.24,
        **base,
        **noise,
    )
    half = 0.5**0.5
    diamonds = _row(
        batch, colour, soft, skirting, scale_u=0.75 / wide, scale_v=0.75 / wide, parity=1.0, parity_u=1, parity_v=1,
        turn_cos=half, turn_sin=half, **base, **noise,
    )  # fmt: skip
    bricks = _row(
        batch, accent, accent, 0.3 * accent + 0.6 * colour, scale_u=1 / 0.62, scale_v=1 / 0.26, row_shift=0.5,
        tone=0.28, grout_u=0.02, grout_v=0.05, **{**base, "band": 0.0}, **noise,
    )  # fmt: skip
    return _choose([plain, stripes, dots, diamonds, bricks], draws.integers(high=5))


def walls(draws: Draws) -> list[Tensor]:
    """The four walls: one scheme, and in two scenes of three one wall of another."""
    main = palette.jitter(_pick(palette.WALLS, draws), draws.uniform(3), 0.04)
    accent = palette.jitter(_pick(palette.ACCENTS, draws), draws.uniform(3), 0.04)
    other = palette.jitter(_pick(palette.WALLS, draws), draws.uniform(3), 0.04)
    dark = draws.chance(probability=0.4)
    skirting = torch.where(dark[:, None], accent * 0.6, WHITE)
    common = _wallpaper(draws, main, accent, skirting)
    special = _wallpaper(draws, other, _pick(palette.ACCENTS, draws), skirting)
    odd = torch.where(
        draws.chance(probability=0.67), draws.integers(high=4), torch.full_like(dark, 9, dtype=torch.int64)
    )
    rows = []
    for wall in range(4):
        row = torch.where((odd == wall)[:, None], special, common)
        rows.append(_finish_salt(row.clone(), draws))
    return rows


def ceiling(draws: Draws) -> Tensor:
    """Pale panels or beams."""
    batch = len(draws.uniform())
    pale = palette.jitter(WHITE.expand(batch, 3), draws.uniform(3), 0.03)
    size, wood = draws.uniform(low=0.9, high=1.5), _pick(palette.WOODS, draws)
    panels = _row(
        batch, pale, pale, pale * 0.72, scale_u=1 / size, scale_v=1 / size, tone=0.08, grout_u=0.03, grout_v=0.03
    )
    beams = _row(batch, pale, pale, wood, scale_u=1 / size, grout_u=0.09, noise=0.05, noise_u=1.0, noise_v=1.0)
    return _finish_salt(_choose([panels, beams], draws.integers(high=2)), draws)


def _object_row(draws: Draws, main: Tensor, second: Tensor) -> Tensor:
    """Plain, striped or chequered, in metres of the object's own frame."""
    batch, deep = len(main), main * 0.55
    plain = _row(batch, main, main, deep, noise=0.16, noise_u=2.5, noise_v=2.5)
    bands = _row(batch, main, second, deep, scale_u=4.0, parity=1.0, parity_u=1, noise=0.08, noise_u=2.0, noise_v=2.0)
    checks = _row(batch, main, second, deep, scale_u=3.6, scale_v=3.6, parity=1.0, parity_u=1, parity_v=1, tone=0.06)
    which = (draws.uniform() * 3.6).long().clamp(max=3) % 3
    return _choose([plain, bands, checks], which)


def objects(draws: Draws, furniture: Furniture) -> tuple[Tensor, list[Tensor]]:
    """Colour numbers of the objects, int64 [B, objects] into palette.NAMES, and the material row of every primitive.

    Crates, drums and balls of a scene have different vivid colours, so that a colour and a kind name one object.
    """
    batch = len(furniture.kind)
    vivid = draws.permutation(palette.VIVID)
    neutral = _COMPOSITE_COLOURS[draws.integers(layout.OBJECTS, high=len(_COMPOSITE_COLOURS))]
    sofa = torch.where(draws.chance(probability=0.7), vivid[:, 7], neutral[:, 0])
    colour = neutral.clone()
    movable = [*range(layout.CRATE, layout.PARTITION), layout.DRUM, layout.DRUM + 1, layout.BALL, layout.BALL + 1]
    colour[:, movable] = vivid[:, : len(movable)]
    composites = slice(0, layout.COMPOSITES)
    colour[:, composites] = torch.where(furniture.composite == 1, sofa[:, None], colour[:, composites])
    colour[:, layout.PARTITION] = palette.NAMES.index("white")
    colour[:, layout.PLANT] = palette.NAMES.index("green")
    colour[:, layout.LAMP] = palette.NAMES.index("yellow")
    main = palette.jitter(palette.TABLE[colour], draws.uniform(layout.OBJECTS, 3), 0.05)
    second = torch.where(draws.chance(layout.OBJECTS, probability=0.6)[..., None], WHITE, main * 0.45)

    rows = []
    for primitive, owner in enumerate(layout.OWNER):
        if owner < layout.COMPOSITES:
            role = torch.tensor(SECOND_COLOUR)[furniture.composite[:, owner], primitive % layout.PARTS]
            shade = torch.where((role == 1)[:, None], second[:, owner], main[:, owner])
            row = _row(batch, shade, shade, shade * 0.6, noise=0.2, noise_u=1.0, noise_v=4.0)
        else:
            row = _object_row(draws, main[:, owner], second[:, owner])
        rows.append(_finish_salt(row, draws))
    _details(rows, main, batch)
    return colour, rows


def _details(rows: list[Tensor], main: Tensor, batch: int) -> None:
    """Pots, poles, shades, leaves and the partition, in place of the drawn patterns."""
    first_round = layout.BOXES
    clay, metal = torch.tensor([0.62, 0.36, 0.24]), torch.tensor([0.30, 0.30, 0.33])
    rows[first_round + 2] = _row(batch, clay, clay, clay)
    rows[first_round + 3] = _row(batch, metal, metal, metal)
    leaf = main[:, layout.PLANT]
    salt = rows[first_round + layout.CYLINDERS + 2][:, layout.SALT].clone()
    rows[first_round + layout.CYLINDERS + 2] = _row(
        batch, leaf, leaf, leaf, noise=0.7, noise_u=6.0, noise_v=6.0, salt=salt
    )
    shade = 0.5 * main[:, layout.LAMP] + 0.5 * WHITE
    rows[first_round + layout.CYLINDERS + 3] = _row(batch, shade, shade, shade, glow=0.75)
    plaster = WHITE * 0.9
    rows[layout.BOXES - 1] = _row(batch, plaster, plaster, plaster * 0.6, noise=0.1, noise_u=1.3, noise_v=1.3)
