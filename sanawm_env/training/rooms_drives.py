"""Drives through rooms as an episode store, drawn by the ray-caster: `sanawm record rooms`.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.training.rooms_drives out=x.zarr`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sanawm_env import __version__, bundle
from sanawm_env.actions import Pose, pose_vector
from sanawm_env.bare import run_bare
from sanawm_env.config import from_mapping
from sanawm_env.datasets.provenance import Provenance, StoreInfo
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import ConfigError
from sanawm_env.model.config import WorldConfig
from sanawm_env.placement import find_device
from sanawm_env.rooms import sample_scenes, sample_trajectories
from sanawm_env.training.frames import Picture, rendered
from sanawm_env.training.paths import HELD_OUT_SEEDS

ACTIONS = Pose(mode="delta")


@dataclass(frozen=True, kw_only=True)
class RecordRooms:
    """out: the store. episodes: one a room, of seeds first_seed and on, which stay below the held-out ones. frames:
    that follow an episode's first. style: of `sample_scenes`. bundle: whose clock, frame size and lens it gets. batch:
    rooms drawn at once.
    """

    out: Path
    episodes: int = 64
    frames: int = 128
    first_seed: int = 200_000_000
    style: str = "day"
    bundle: str = "rooms"
    batch: int = 8
    device: str | None = None

    def __post_init__(self) -> None:
        last = self.first_seed + self.episodes - 1
        if min(self.episodes, self.frames, self.batch) < 1 or self.first_seed < 0 or last >= HELD_OUT_SEEDS:
            raise ConfigError(
                f"episodes is {self.episodes}, frames {self.frames}, batch {self.batch}, first_seed {self.first_seed}; "
                f"allowed are counts >= 1 and seeds below {HELD_OUT_SEEDS}, from where on they are held out."
            )


def record(config: RecordRooms) -> dict[str, Any]:
    """Adds the drives that the store does not have yet; called again, it goes on where it was cut off. StorageError:
    the store is another one."""
    world = from_mapping(WorldConfig, bundle.description(config.bundle)["config"])
    picture = Picture(height=world.height, width=world.width, intrinsics=world.intrinsics, fps=world.fps)
    device = find_device(config.device)
    info = StoreInfo(fps=world.fps, frames_per_step=1, action_columns=ACTIONS.columns, action_units=ACTIONS.units)
    with EpisodeWriter(config.out, info) as writer:
        wanted = range(config.first_seed, config.first_seed + config.episodes)
        seeds = [seed for seed in wanted if _identity(config, seed) not in writer]
        with tqdm(total=len(seeds), unit="episode", desc="record", disable=None) as bar:
            for first in range(0, len(seeds), config.batch):
                rooms = seeds[first : first + config.batch]
                paths = sample_trajectories(sample_scenes(rooms), rooms, config.frames, world.fps).poses
                frames = rendered(picture, rooms, paths, device, style=config.style).cpu().numpy()
                for seed, poses, seen in zip(rooms, paths, frames, strict=True):
                    _add(writer, config, world, seed, poses, seen)
                    bar.update()
        return {"store": str(config.out), "episodes": len(writer), "recorded": len(seeds)}


def _identity(config: RecordRooms, seed: int) -> bytes:
    """16 bytes by which a drive that is stored already is known."""
    return f"{config.style[:4]:4}{config.frames:04x}{seed:08x}".encode()[:16]


def _add(
    writer: EpisodeWriter, config: RecordRooms, world: WorldConfig, seed: int, poses: np.ndarray, frames: np.ndarray
) -> None:
    """An episode of poses [T + 1, 4, 4] and frames [T + 1, H, W, 3]; its actions are the camera's moves."""
    steps = len(poses) - 1
    lens = np.asarray(world.intrinsics, np.float32)
    writer.add(
        {
            "start_frames": frames[0], "start_poses": poses[0], "start_intrinsics": lens,
            "frames": frames[1:], "poses": poses[1:], "intrinsics": np.tile(lens, (steps, 1)),
            "actions": pose_vector(np.linalg.inv(poses[:-1]) @ poses[1:]).astype(np.float32),
            "rewards": np.zeros(steps), "terminated": np.zeros(steps, bool),
            "truncated": np.arange(steps) == steps - 1, "valid": np.ones(steps, bool),
        },
        seed=seed,
        room=seed,
        reason="horizon",
        provenance=Provenance(
            bundle=f"{world.name}-truth", action_map=repr(ACTIONS), intrinsics_source="bundle", units_per_metre=1.0,
            package_version=__version__, extra={"style": config.style},
        ),
        identity=_identity(config, seed),
    )  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Records what `key=value` arguments describe; see `run_bare`."""
    return run_bare(RecordRooms, record, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
