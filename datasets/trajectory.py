"""An episode as other formats see it: what is observed at an instant stands beside the action taken there.

A store keeps an action in the row of the frame that it led to, and the picture of `reset` apart. Here frame 0 is that
picture and action k is taken at frame k and leads to frame k + 1, so T actions go with T + 1 frames.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import StorageError

FIELDS = {
    "poses": "float64",
    "intrinsics": "float32",
    "actions": "float32",
    "rewards": "float64",
    "terminated": "bool",
    "truncated": "bool",
}


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """An episode up to its end, with T actions.

    frames: gives the T + 1 frames uint8 [H, W, 3] one after the other, from the first again at each call. poses:
    [T + 1, 4, 4] camera to world, OpenCV axes, metres. intrinsics: [T + 1, 4] fx, fy, cx, cy in pixels. actions:
    [T, A]. rewards, terminated, truncated: [T], of the step from frame k to frame k + 1; an episode that was stopped
    while it still went on is truncated at its last step. told: seed, room, reason, seconds and id as
    `EpisodeStore.describe` has them. source: mapping of its provenance.
    """

    frames: Callable[[], Iterator[np.ndarray]]
    poses: np.ndarray
    intrinsics: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    told: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps, shapes = len(self.actions), {name: getattr(self, name).shape for name in FIELDS}
        ends = dict.fromkeys(("rewards", "terminated", "truncated"), (steps,))
        expected = {"poses": (steps + 1, 4, 4), "intrinsics": (steps + 1, 4), **ends}
        if steps < 1 or self.actions.ndim != 2 or any(shapes[name] != shape for name, shape in expected.items()):
            raise StorageError(
                f"an episode has arrays {shapes}; expected actions [T, A] with T of 1 or more, {expected}"
            )

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def states(self) -> np.ndarray:
        """float32 [T + 1, 12]: the upper three rows of each pose, row by row, as an environment observes it."""
        return self.poses[:, :3].reshape(-1, 12).astype(np.float32)


def of_store(store: EpisodeStore, index: int) -> Trajectory | None:
    """Episode `index` of a store; None where no frame of it is valid (the model failed in its first step)."""
    count = int(np.count_nonzero(store.stored("valid", index)))
    if not count:
        return None
    both = {
        key: np.concatenate([store.stored(f"start_{key}", index), store.stored(key, index)[:count]])
        for key in ("poses", "intrinsics")
    }
    told = store.describe(index)
    truncated = store.stored("truncated", index)[:count].copy()
    truncated[-1] |= not told["reason"]
    return Trajectory(
        frames=lambda: _frames(store, index, count),
        **both,
        actions=store.stored("actions", index)[:count],
        rewards=store.stored("rewards", index)[:count],
        terminated=store.stored("terminated", index)[:count],
        truncated=truncated,
        told={name: told[name] for name in ("id", "seed", "room", "reason", "seconds")},
        source=store.sources[int(store.meta["episode_sources"][index])],
    )


def _frames(store: EpisodeStore, index: int, count: int) -> Iterator[np.ndarray]:
    yield store.stored("start_frames", index)[0]
    yield from itertools.islice(itertools.chain.from_iterable(store.pieces("frames", index)), count)


def identity(trajectory: Trajectory, origin: str, index: int) -> bytes:
    """16 bytes that are the same whenever this episode is imported again. origin: what it came from, in words."""
    content = hashlib.blake2b(f"{origin} {index} {trajectory.told.get('id', '')}".encode(), digest_size=16)
    for name in FIELDS:
        content.update(np.ascontiguousarray(getattr(trajectory, name)).tobytes())
    content.update(next(trajectory.frames(), np.zeros(0)).tobytes())  # the same path may lead through two places
    return content.digest()


def add(writer: EpisodeWriter, trajectory: Trajectory, unique: bytes) -> int:
    """Appends an episode to a store and returns its index. unique: its id.

    Rows that fill the last step of F frames repeat the last one and are not valid. StorageError: other than T + 1
    frames, or arrays that do not fit the store.
    """
    told, per_step, count = trajectory.told, writer.info.frames_per_step, len(trajectory)
    reason = str(told.get("reason", "other" if trajectory.terminated[-1] else ""))
    frames = trajectory.frames()
    with writer.begin(
        {
            "start_frames": _next(frames, 0, count),
            "start_poses": trajectory.poses[0],
            "start_intrinsics": trajectory.intrinsics[0],
        },
        seed=int(told.get("seed", -1)),
        room=int(told.get("room", -1)),
        provenance=trajectory.source,
        identity=unique,
    ) as episode:
        rows = _rows(trajectory, reason)
        for begin in range(0, count, per_step):
            step = np.arange(begin, begin + per_step)
            inside = np.minimum(step, count - 1)
            pictures = [_next(frames, k + 1, count) for k in range(begin, min(begin + per_step, count))]
            pictures += [pictures[-1]] * (per_step - len(pictures))
            valid, kept = step < count, {key: values[inside] for key, values in rows.items()}
            for key in ("rewards", "terminated", "truncated"):
                kept[key] = np.where(valid, kept[key], np.zeros_like(kept[key]))
            episode.append({"frames": np.stack(pictures), "valid": valid, **kept})
        if next(frames, None) is not None:
            raise StorageError(f"an episode has more pictures than the {count + 1} that its {count} actions lead to")
        return episode.commit(reason=reason, seconds=float(told.get("seconds", 0.0)))


def _rows(trajectory: Trajectory, reason: str) -> dict[str, np.ndarray]:
    return {
        "poses": trajectory.poses[1:],
        "intrinsics": trajectory.intrinsics[1:],
        "actions": trajectory.actions,
        "rewards": trajectory.rewards,
        "terminated": trajectory.terminated,
        "truncated": trajectory.truncated & bool(reason),  # one that was only stopped is not truncated in a store
    }


def _next(frames: Iterator[np.ndarray], index: int, count: int) -> np.ndarray:
    picture = next(frames, None)
    if picture is None:
        raise StorageError(
            f"an episode has {index} pictures, expected the {count + 1} that its {count} actions lead to"
        )
    return picture
