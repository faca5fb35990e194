"""Contact sheet: truth, dream and their difference, a column a frame."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sanawm_env.errors import StorageError

MARGIN, LABEL = 4, 14
ROWS = ("truth", "dream", "difference x4")
GAIN = 4
BACKGROUND, INK = (24, 24, 28), (230, 230, 230)


def contact_sheet(truth: np.ndarray, dream: np.ndarray, frames: Sequence[int]) -> Image.Image:
    """One picture with three rows a scene (truth, dream, four times their difference) and a labelled column a frame.

    truth, dream: uint8 [scenes, columns, H, W, 3]. frames: number of each column's frame.
    """
    scenes, columns, height, width, _ = truth.shape
    difference = np.minimum(np.abs(truth.astype(np.int16) - dream) * GAIN, 255).astype(np.uint8)
    cell = (width + MARGIN, height + MARGIN)
    left = MARGIN + 6 * len(ROWS[-1]) + MARGIN
    size = (left + columns * cell[0], LABEL + scenes * (len(ROWS) * cell[1] + MARGIN))
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, frame in enumerate(frames):
        draw.text((left + column * cell[0], 1), f"frame {frame}", fill=INK)
    for scene in range(scenes):
        top = LABEL + scene * (len(ROWS) * cell[1] + MARGIN)
        for row, (name, pictures) in enumerate(zip(ROWS, (truth, dream, difference))):
            y = top + row * cell[1]
            draw.text((MARGIN, y + height // 2 - 6), name, fill=INK)
            for column in range(columns):
                sheet.paste(Image.fromarray(pictures[scene, column]), (left + column * cell[0], y))
    return sheet


def stacked(rows: Sequence[np.ndarray]) -> Image.Image:
    """One picture of rows uint8 [H, W, 3] of one width, below one another."""
    gap = np.full((MARGIN, rows[0].shape[1], 3), BACKGROUND, np.uint8)
    return Image.fromarray(np.concatenate([part for row in rows for part in (row, gap)][:-1]))


def save_sheet(sheet: Image.Image, path: str | Path) -> Path:
    """Writes the sheet as PNG, whole or not at all; makes the folder. Raises StorageError."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StorageError(
            f"contact sheet {path} cannot be written: {error}; free some space or choose another path."
        ) from error
    return path
