"""What an environment tells at a reset and at a step, as the rows that an episode store keeps of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sanawm_env import __version__
from sanawm_env.datasets.provenance import Provenance, StoreInfo
from sanawm_env.errors import ConfigError
from sanawm_env.wrappers.recorded import Recorded

ALL_FRAMES = "info has not all frames, which a store keeps; build the environment with frames='all'."
Rows = dict[str, np.ndarray]
# What is read of `info` here, frames and latents apart.
START_FACTS = ("poses", "intrinsics", "seed", "room", "intrinsics_source", "calibrated")
STEP_FACTS = ("poses", "rewards", "end_index", "valid_frames", "termination_reason", "truncation_reason")


def start_rows(info: Mapping[str, Any], world: int | None = None) -> Rows:
    """The arrays of an episode's start by key of `datasets.schema.TABLE`. info: of a reset, of one world, or with a row
    a world."""
    told = _of(info, world)
    frames = told.get("frames")
    if frames is None:
        raise ConfigError(ALL_FRAMES)
    return {
        # Of some worlds of a batch, a reset shows the picture as often as the others have frames.
        "start_frames": np.array(frames[0]),
        "start_frame_digests": digests(frames[:1])[0],
        "start_poses": np.array(told["poses"][0], np.float64),
        "start_intrinsics": np.array(told["intrinsics"], np.float32),
        **({"start_latents": np.array(told["latents"][0])} if "latents" in told else {}),
    }


def step_rows(
    info: Mapping[str, Any], actions: np.ndarray, intrinsics: np.ndarray, seconds: float, world: int | None = None
) -> Rows:
    """The F rows of a step by key. actions: [F, A], those that were used. intrinsics: [4]. seconds: of the step."""
    told = _of(info, world)
    frames = _frames(told)
    count = len(frames)
    ended = np.arange(count) == told["end_index"]
    return {
        "frames": frames.copy(),
        "frame_digests": digests(frames),
        "poses": np.array(told["poses"], np.float64),
        "intrinsics": np.tile(np.asarray(intrinsics, np.float32), (count, 1)),
        "actions": np.array(actions, np.float32),
        "rewards": np.array(told["rewards"], np.float64),
        "terminated": ended & bool(told["termination_reason"]),
        "truncated": ended & bool(told["truncation_reason"]),
        "valid": np.arange(count) < told["valid_frames"],
        "step_seconds": np.full(count, seconds, np.float32),
        **({"latents": _finite(told["latents"])[None]} if "latents" in told else {}),
    }


def digests(frames: np.ndarray) -> np.ndarray:
    """int64 [T] that stand for the pixels of frames uint8 [T, H, W, 3], whatever a picture codec does to them."""
    hashed = [hashlib.sha256(np.ascontiguousarray(frame).data).digest()[:8] for frame in frames]
    return np.array([int.from_bytes(one, "little", signed=True) for one in hashed], np.int64)


def end_reason(info: Mapping[str, Any], world: int | None = None) -> str:
    """Why the episode has ended, "" while it goes on."""
    told = _of(info, world)
    return str(told["termination_reason"] or told["truncation_reason"])


def used_actions(world: Recorded, given: Any, poses: np.ndarray) -> np.ndarray:
    """Actions of every frame within their limits, float32 [B, F, A].

    given: as the environment took them, with a row a world. poses: [B, 4, 4], where each world was before the step.
    """
    rows = _of_each(world, given, len(poses))
    inside, _ = world.action_map.limit(rows)
    return _held(world, inside, poses).astype(np.float32)


def given_actions(world: Recorded, given: Any, poses: np.ndarray) -> np.ndarray:
    """Actions of every frame as they were given, beyond their limits too, float64 [B, F, A]; as `used_actions`."""
    return _held(world, _of_each(world, given, len(poses)), poses)


def store_info(world: Recorded, *, picture_codec: str = "jpeg", picture_quality: int = 95) -> StoreInfo:
    """What a store of this environment's episodes says of all of them."""
    return StoreInfo(
        fps=world.fps,
        frames_per_step=world.frames_per_step,
        action_columns=tuple(world.action_map.columns),
        action_units=tuple(world.action_map.units),
        picture_codec=picture_codec,
        picture_quality=picture_quality,
    )


def provenance(
    world: Recorded, info: Mapping[str, Any], *, licences: Sequence[str] = (), extra: Mapping[str, Any] | None = None
) -> Provenance:
    """Where an episode comes from. info: of its reset, of one world. licences: of its picture, beside the weights'."""
    return Provenance(
        bundle=world.config.name,
        bundle_sha256=world.fingerprint,
        variant=world.config.variant,
        refiner=world.refiner,
        precision=world.precision,
        action_map=repr(world.action_map),
        task=world.task,
        intrinsics_source=str(info["intrinsics_source"]),
        units_per_metre=world.config.units_per_metre if info["calibrated"] else None,
        package_version=__version__,
        package_commit=package_commit(),
        licences=tuple(filter(None, (world.licence, *licences))),
        extra=dict(extra or {}),
    )


def truth_rows(room: int, poses: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> Rows:
    """What a camera sees in the room of this seed, by key: truth_frames, truth_depth, truth_instances, T rows each.

    poses: [T, 4, 4]. intrinsics: [4], pixels. size: height, width.
    """
    import torch

    from sanawm_env.rooms import render, sample_scenes

    scenes, lens = sample_scenes([room]), torch.as_tensor(np.asarray(intrinsics, np.float32))[None]
    seen = render(scenes, torch.as_tensor(np.asarray(poses))[None], lens, size)
    return {
        "truth_frames": seen.rgb[0].numpy(),
        "truth_depth": seen.depth[0].numpy(),
        "truth_instances": seen.instance[0].numpy(),
    }


def _of_each(world: Recorded, given: Any, count: int) -> np.ndarray:
    return np.asarray(world.action_map.read(given), np.float64).reshape(count, -1, world.action_map.size)


def _held(world: Recorded, rows: np.ndarray, poses: np.ndarray) -> np.ndarray:
    frames = world.frames_per_step
    return rows if rows.shape[1] == frames else world.action_map.hold(poses, rows[:, 0], frames)


@functools.cache  # a process asks git once, not at every reset
def package_commit() -> str | None:
    """Commit of this package's sources, None outside a git checkout."""
    from sanawm_env.benchmarks.machine import commit

    return commit()


def _of(info: Mapping[str, Any], world: int | None) -> Mapping[str, Any]:
    return info if world is None else {key: rows[world] for key, rows in info.items() if not key.startswith("_")}


def _finite(latents: np.ndarray) -> np.ndarray:
    """With zeros for what a faulty model has left: no frame of such a chunk is valid, and a store holds no NaN."""
    return np.where(np.isfinite(latents), latents, np.float32(0))


def _frames(told: Mapping[str, Any]) -> np.ndarray:
    frames = told.get("frames")
    if frames is None or len(frames) != len(told["poses"]):
        raise ConfigError(ALL_FRAMES)
    return np.asarray(frames)
