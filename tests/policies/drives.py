"""What the tests of imitation share: small rooms as they are, drawn in an instant or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanawm_env.rooms import Scenes
from sanawm_env.truth import RoomsTruth, RoomsTruthVectorEnv

TRUTH = RoomsTruthVectorEnv.episodes_kind.open("rooms", device="cpu")
LENS = tuple((value + 0.5) / 4 - 0.5 if place > 1 else value / 4 for place, value in enumerate(TRUTH.config.intrinsics))
SMALL = replace(TRUTH.config, height=32, width=40, intrinsics=LENS)


class Undrawn(RoomsTruth):
    """The truth without pictures, for drivers that look at none."""

    def look(self, scenes: Scenes, poses: np.ndarray, intrinsics: Tensor) -> Tensor:
        return torch.zeros(*poses.shape[:2], self.config.height, self.config.width, 3, dtype=torch.uint8)


def rooms(worlds: int, kind: type[RoomsTruth] = RoomsTruth, **options: Any) -> RoomsTruthVectorEnv:
    """Worlds of 32x40 pixels with task `goto`, as they are collected from."""
    return RoomsTruthVectorEnv(
        worlds, kind(SMALL), **{"observation": "dict", "task": "goto", "frames": "all", **options}
    )
