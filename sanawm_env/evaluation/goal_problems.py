"""Problems of goal-image navigation in Rooms, to drive to where a picture was taken, and drives that try to solve them.

A planner sees the dream, forked where it stands; what it decides is done in the truth, which judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sanawm_env.actions import heading, level
from sanawm_env.errors import ConfigError
from sanawm_env.policies.base import Policy
from sanawm_env.rigid import about_vertical, homogeneous
from sanawm_env.rooms import clearance, sample_scenes
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.wrappers.dream_beside import DreamBeside

FREE = 0.35  # metres that stay free along the straight line to a goal
TRIES = 64
METRES, ASIDE, TURN = (0.8, 1.6), 15.0, 20.0  # of goals from starts; the latter two in degrees


@dataclass(frozen=True, kw_only=True)
class GoalImages:
    """Problems, one a row. seeds: of worlds, whose rooms and starts they are. starts, goals: poses [B, 4, 4]. pictures:
    uint8 [B, H, W, 3], the truth seen from the goals."""

    seeds: tuple[int, ...]
    starts: np.ndarray
    goals: np.ndarray
    pictures: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What came of the problems: poses [B, 4, 4] and true pictures uint8 [B, H, W, 3] at the end; metres and degrees
    [B] from the goal; collision [B]; success [B]: near enough in both, without a collision."""

    poses: np.ndarray
    pictures: np.ndarray
    metres: np.ndarray
    degrees: np.ndarray
    collision: np.ndarray
    success: np.ndarray

    @property
    def rate(self) -> float:
        """Share of successes."""
        return float(self.success.mean())


def goal_images(
    truth: SanaWMVectorEnv,
    seeds: Sequence[int],
    *,
    metres: tuple[float, float] = METRES,
    aside: float = ASIDE,
    turn: float = TURN,
) -> GoalImages:
    """Problems for the worlds of these seeds, one for each of the truth's, which is reset.

    A goal lies so many metres from the start, at most `aside` degrees from where the camera looks, seen along a line
    that is free; its view is turned from the start's by at most `turn` degrees. Each depends on its seed alone. Raises
    ConfigError for a start before which there is no room for a goal.
    """
    info, starts, goals, free = _drawn(truth, seeds, metres, aside, turn)
    if not free.all():
        world = int(np.flatnonzero(~free)[0])
        raise ConfigError(
            f"world {world} (seed {seeds[world]}) has no free goal {metres[0]} .. {metres[1]} m ahead; leave the seed "
            "out, or ask for nearer goals."
        )
    truth.reset(seed=list(seeds), options={"scene": info["room"].tolist(), "pose": goals})
    return GoalImages(seeds=tuple(seeds), starts=starts, goals=goals, pictures=_pictures(truth))


def solvable(
    truth: SanaWMVectorEnv,
    seeds: Sequence[int],
    *,
    metres: tuple[float, float] = METRES,
    aside: float = ASIDE,
    turn: float = TURN,
) -> list[int]:
    """Those of the seeds, one for each of the truth's worlds, that `goal_images` finds a goal for."""
    free = _drawn(truth, seeds, metres, aside, turn)[-1]
    return [seed for seed, found in zip(seeds, free, strict=True) if found]


def _drawn(
    truth: SanaWMVectorEnv, seeds: Sequence[int], metres: tuple[float, float], aside: float, turn: float
) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]:
    """What the truth says at the starts, poses of these and of goals [B, 4, 4], and whether each goal is free [B]."""
    _, info = truth.reset(seed=list(seeds))
    starts = info["poses"][:, -1]
    rooms = sample_scenes(info["room"].tolist())
    drawn = np.stack([np.random.default_rng([seed, 4]).uniform(-1, 1, (TRIES, 3)) for seed in seeds])
    away = metres[0] + (drawn[..., 0] + 1) / 2 * (metres[1] - metres[0])
    bearing = heading(starts)[:, None] + np.radians(aside) * drawn[..., 1]
    shift = away[..., None] * level(bearing)
    line = starts[:, None, None, :3, 3] + np.linspace(0, 1, 16)[:, None] * shift[:, :, None]
    free = clearance(rooms, torch.from_numpy(line.reshape(len(starts), -1, 3))).numpy().reshape(line.shape[:3])
    # The start may itself be close to something; nearer than that the line must not come.
    fits = (free >= np.minimum(FREE, free[:, :, :1])).all(axis=2) & (free[..., -1] >= FREE)
    rows, first = np.arange(len(starts)), fits.argmax(axis=1)
    turned = about_vertical(np.radians(turn) * drawn[rows, first, 2])
    goals = homogeneous(turned @ starts[:, :3, :3], starts[:, :3, 3] + shift[rows, first])
    return info, starts, goals, np.asarray(fits.any(axis=1))


def drive_to(
    policy: Policy[Any],
    problems: GoalImages,
    truth: SanaWMVectorEnv,
    dream: SanaWMVectorEnv,
    *,
    steps: int,
    near: float = 0.3,
    degrees: float = 15.0,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> Reached:
    """Drives to the goals by a policy, in so many steps, and says who ended near enough.

    truth, dream: B worlds with a task that gives no goal away ("drive"); the policy was made with the dream. near, in
    metres, and degrees: what counts as arrived at the last step. progress: called after each step.
    """
    worlds = DreamBeside(truth, dream)
    observation, info = worlds.reset(seed=list(problems.seeds))
    state = policy.initial_state(worlds.num_envs)
    poses, pictures = info["poses"][:, -1], _pictures(truth)
    collision = np.zeros(len(poses), bool)
    for step in range(steps):
        actions, state = policy.act(observation, state)
        observation, _, terminated, _, info = worlds.step(actions)
        # After a collision a world steps on; what counts is where it hit.
        poses = np.where(collision[:, None, None], poses, info["poses"][:, -1])
        pictures = np.where(collision[:, None, None, None], pictures, _pictures(truth))
        collision = collision | terminated
        progress(step + 1, steps)
    apart = np.linalg.norm(poses[:, :3, 3] - problems.goals[:, :3, 3], axis=1)
    angle = np.degrees(np.abs(_wrapped(heading(poses) - heading(problems.goals))))
    return Reached(
        poses=poses,
        pictures=pictures,
        metres=apart,
        degrees=angle,
        collision=collision,
        success=(apart <= near) & (angle <= degrees) & ~collision,
    )


def _pictures(worlds: SanaWMVectorEnv) -> np.ndarray:
    frames = worlds.last_output[0]
    assert frames is not None
    return frames[:, -1].cpu().numpy()


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi
