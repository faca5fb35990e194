"""Pictures of futures that were stepped without any: made later, of those that are asked for, by stepping them again.

Kept are the worlds as they were when they were forked and the way of each future since, a few numbers a frame. The
steps are those that were taken, bit for bit, so the pictures are those that would have been seen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sanawm_env.errors import StateError

if TYPE_CHECKING:
    from sanawm_env.episodes import Episodes


@dataclass(frozen=True, kw_only=True)
class Undecoded:
    """How B futures came about. origin: the episodes that were forked, at that instant. rows: [B] which of them each
    began as. taken: of every step since, poses [B, F, 4, 4] and seeds [B]."""

    origin: Episodes
    rows: np.ndarray
    taken: tuple[tuple[np.ndarray, Tensor], ...] = ()

    @classmethod
    def of(cls, episodes: Episodes) -> Undecoded:
        """Of futures of these episodes, one each; StateError where they have no decoder to begin with."""
        if episodes.later is not None:
            return episodes.later
        if episodes.now.world.decoder is None:
            raise StateError("these worlds have no decoder left (decode=False); fork from ones that have it.")
        origin = copy.copy(episodes)
        origin.running = replace(episodes.now, world=episodes.now.world.clone())
        return cls(origin=origin, rows=np.arange(episodes.batch))

    def stepped(self, poses: np.ndarray, seeds: Tensor) -> Undecoded:
        """After one more step."""
        return replace(self, taken=(*self.taken, (poses.copy(), seeds.clone())))

    def select(self, index: Sequence[int] | np.ndarray) -> Undecoded:
        """Of these futures alone; one may come more than once."""
        rows = np.asarray(index, np.int64)
        taken = tuple((poses[rows], seeds[torch.from_numpy(rows)]) for poses, seeds in self.taken)
        return replace(self, rows=self.rows[rows], taken=taken)

    def frames(self) -> Tensor:
        """uint8 [B, k F, H, W, 3], of the k steps since."""
        if not self.taken:
            raise StateError("these futures have not been stepped yet; the picture of this instant is their origin's.")
        playing = self.origin.select(self.rows.tolist())
        seen = []
        for poses, seeds in self.taken:
            playing.now.world.seed = seeds.clone()
            shown = playing.move(poses)[1]
            assert shown.frames is not None
            seen.append(shown.frames)
        return torch.cat(seen, dim=1)
