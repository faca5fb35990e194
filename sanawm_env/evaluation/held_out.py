"""The held-out set: rooms and drives that training never sees, and their truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sanawm_env.camera import invert_rigid
from sanawm_env.errors import ConfigError
from sanawm_env.model.config import WorldConfig
from sanawm_env.rooms import Render, Scenes, render, sample_scenes, sample_trajectories

# Training draws rooms below this seed, evaluation from it upwards; each evaluation seed has a range of its own.
FIRST_SEED = 10**9
SEEDS_EACH = 10**6


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rooms by seed and the drives through them.

    seeds: one a scene. poses: [B, 1 + frames, 4, 4] float64 camera to world, row 0 the first picture. config: size,
    rate and intrinsics of the pictures. device: where truth is rendered.
    """

    seeds: tuple[int, ...]
    poses: Tensor
    config: WorldConfig
    device: torch.device

    def __len__(self) -> int:
        return len(self.seeds)

    @cached_property
    def scenes(self) -> Scenes:
        """The rooms, made once."""
        return sample_scenes(self.seeds, self.device)

    def intrinsics(self) -> Tensor:
        """(fx, fy, cx, cy) of every scene, [B, 4]."""
        return torch.tensor(self.config.intrinsics).expand(len(self), 4)

    def truth(self, poses: Tensor, halved: int = 1) -> Render:
        """What the ray-caster sees at poses [B, T, 4, 4]; `halved` = 2 gives pictures of half the size."""
        return self._rendered(poses, halved, geometry=True)

    def pictures(self, poses: Tensor, halved: int = 1) -> Tensor:
        """The pictures of `truth` alone, uint8 [B, T, H, W, 3], without rays for depth and instances."""
        return self._rendered(poses, halved, geometry=False).rgb

    def _rendered(self, poses: Tensor, halved: int, *, geometry: bool) -> Render:
        size = (self.config.height // halved, self.config.width // halved)
        intrinsics = shrunk_intrinsics(self.intrinsics(), halved).to(self.device)
        return render(self.scenes, poses.to(self.device), intrinsics, size, geometry=geometry)

    def part(self, first: int, last: int) -> HeldOut:
        """Scenes first .. last - 1; none where last <= first."""
        last = max(first, last)
        return HeldOut(
            seeds=self.seeds[first:last], poses=self.poses[first:last], config=self.config, device=self.device
        )

    def groups(self, size: int) -> Iterator[HeldOut]:
        """The set in parts of at most `size` scenes."""
        for first in range(0, len(self), size):
            yield self.part(first, first + size)

    def on_anothers_path(self) -> HeldOut:
        """Every scene from its own start along the drive of the next scene: the wrong camera."""
        others = self.poses.roll(-1, dims=0)
        moved = self.poses[:, :1] @ invert_rigid(others[:, :1]) @ others
        return HeldOut(seeds=self.seeds, poses=moved, config=self.config, device=self.device)


def held_out(
    config: WorldConfig, scenes: int, seed: int, frames: int, device: torch.device, kind: str | None = None
) -> HeldOut:
    """The held-out set of a seed; a scene and its drive do not depend on how many there are.

    frames: length of the drives. kind: of trajectory (rooms.sample_trajectories), the default mixture if None. Raises
    ConfigError.
    """
    if not (2 <= scenes <= SEEDS_EACH and seed >= 0):
        raise ConfigError(
            f"scenes={scenes} and seed={seed} cannot be evaluated; allowed are 2 .. {SEEDS_EACH} scenes "
            "(one scene has no other's path to be driven along) and seed >= 0."
        )
    seeds = tuple(FIRST_SEED + SEEDS_EACH * seed + index for index in range(scenes))
    drives = sample_trajectories(sample_scenes(seeds), seeds, frames, config.fps, kind)
    return HeldOut(seeds=seeds, poses=torch.as_tensor(drives.poses, dtype=torch.float64), config=config, device=device)


def shrunk_intrinsics(intrinsics: Tensor, factor: int) -> Tensor:
    """Intrinsics [..., 4] of pictures shrunk by a whole factor; pixel centres at integers in both."""
    fx, fy, cx, cy = intrinsics.unbind(-1)
    return torch.stack([fx / factor, fy / factor, (cx + 0.5) / factor - 0.5, (cy + 0.5) / factor - 0.5], dim=-1)
