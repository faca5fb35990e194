"""A structure with a scale as an episode of a store: actions from poses, and where everything comes from."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sanawm_env import __version__
from sanawm_env.actions import Pose, pose_vector
from sanawm_env.annotate.footage import Footage
from sanawm_env.annotate.scale import Scale
from sanawm_env.annotate.shots import Shot
from sanawm_env.annotate.structure import Structure
from sanawm_env.datasets.provenance import Provenance, StoreInfo
from sanawm_env.datasets.trajectory import Trajectory
from sanawm_env.wrappers.rows import package_commit

ACTIONS = Pose(mode="delta")


def store_info(footage: Footage) -> StoreInfo:
    """Of a store of such episodes: one frame a step."""
    return StoreInfo(fps=footage.fps, frames_per_step=1, action_columns=ACTIONS.columns, action_units=ACTIONS.units)


def trajectory(
    footage: Footage, shot: Shot, structure: Structure, scale: Scale, licence: str, facts: Mapping[str, Any]
) -> Trajectory:
    """The episode. Action k moves the camera from frame k to frame k + 1, as the action map `pose` takes it. facts:
    kept with the provenance, beside the quality figures."""
    poses = structure.poses.copy()
    poses[:, :3, 3] *= scale.factor
    moves = pose_vector(np.linalg.inv(poses[:-1]) @ poses[1:])
    first, count = shot.first + structure.first, len(structure)
    figures = {**shot.figures, **structure.figures, **scale.figures}
    source = Provenance(
        action_map=repr(_reaching(moves)),
        intrinsics_source="given" if facts["settings"]["intrinsics"] else "estimated",
        units_per_metre=1.0 if scale.metric else None,
        package_version=__version__,
        package_commit=package_commit(),
        licences=(licence,),
        synthetic=False,
        extra={
            "annotated_by": "structure from motion",
            "frames": [first, first + count],
            "scale_source": scale.source,
            "lens": {"model": structure.camera.model_name, "parameters": structure.camera.params.tolist()},
            "figures": {name: round(value, 6) for name, value in figures.items()},
            **facts,
        },
    )

    def frames() -> Iterator[np.ndarray]:
        return map(structure.rectify, footage.frames(first, count))

    steps = count - 1
    return Trajectory(
        frames=frames,
        poses=poses,
        intrinsics=np.tile(structure.intrinsics, (count, 1)),
        actions=moves.astype(np.float32),
        rewards=np.zeros(steps),
        terminated=np.zeros(steps, bool),
        truncated=np.arange(steps) == steps - 1,
        told={"reason": ""},
        source=source.mapping(),
    )


def _reaching(moves: np.ndarray) -> Pose:
    """The action map whose limits hold all moves: the default one unless a frame takes the camera farther."""
    far, turned = np.abs(moves[:, :3]).max(), np.abs(moves[:, 3:]).max()
    return dataclasses.replace(
        ACTIONS,
        max_linear=float(np.ceil(far)) if far > 1 else None,
        max_angular=float(np.ceil(turned)) if turned > 1 else None,
    )


def taken(footage: Footage, shot: Shot, structure: Structure) -> Iterator[np.ndarray]:
    """The frames of a structure as they were taken."""
    return itertools.islice(footage.frames(shot.first + structure.first), len(structure))
