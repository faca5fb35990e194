"""The contact sheet holds the pictures it was given, and is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sanawm_env.errors import StorageError
from sanawm_env.evaluation.sheet import GAIN, LABEL, MARGIN, contact_sheet, save_sheet


def pictures(level: int) -> np.ndarray:
    return np.full((2, 3, 16, 20, 3), level, dtype=np.uint8)


def test_rows_are_truth_dream_and_difference() -> None:
    sheet = contact_sheet(pictures(200), pictures(190), [0, 8, 32])
    right, row = sheet.width - MARGIN - 10, 16 + MARGIN
    levels = [sheet.getpixel((right, LABEL + 8 + index * row)) for index in range(3)]
    assert levels == [(200,) * 3, (190,) * 3, (10 * GAIN,) * 3]
    assert sheet.height == LABEL + 2 * (3 * row + MARGIN)


def test_difference_is_absolute_and_clipped() -> None:
    sheet = contact_sheet(pictures(0), pictures(255), [0, 1, 2])
    assert sheet.getpixel((sheet.width - MARGIN - 10, LABEL + 8 + 2 * 20)) == (255,) * 3


def test_saved_as_png(tmp_path: Path) -> None:
    path = save_sheet(contact_sheet(pictures(9), pictures(8), [0, 1, 2]), tmp_path / "new" / "sheet.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert [entry.name for entry in path.parent.iterdir()] == ["sheet.png"]


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        save_sheet(contact_sheet(pictures(9), pictures(8), [0, 1, 2]), tmp_path / "file" / "sheet.png")
