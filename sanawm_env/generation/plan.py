"""What episode k of a job is: its scene, its noise and its path, from (seed, k) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sanawm_env.generation.config import Generate


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One episode before it is made. seed: of its world. path_seed: of what the explorer draws. room: its seed, or
    None; scene: a file, or None."""

    number: int
    seed: int
    path_seed: int
    room: int | None
    scene: str | None


def plan(config: Generate, number: int) -> Plan:
    """The plan of episode `number`."""
    drawn = np.random.SeedSequence([config.seed, number]).generate_state(2, np.uint64) >> np.uint64(1)
    scenes = config.scenes
    return Plan(
        number=number,
        seed=int(drawn[0]),
        path_seed=int(drawn[1]),
        room=None if scenes.files else scenes.first_room + number % scenes.rooms,
        scene=scenes.files[number % len(scenes.files)] if scenes.files else None,
    )
