"""A truth whose pictures are drawn in no time, for tests of what is around an environment."""

from __future__ import annotations

import dataclasses

from sanawm_env.model.config import tiny_config
from sanawm_env.truth import RoomsTruth


def small_truth(height: int = 16, width: int = 24) -> RoomsTruth:
    """The clock of the tiny model, a wide lens, pictures of this size."""
    lens = (0.8 * width, 0.8 * width, (width - 1) / 2, (height - 1) / 2)
    return RoomsTruth(dataclasses.replace(tiny_config(), height=height, width=width, intrinsics=lens))
