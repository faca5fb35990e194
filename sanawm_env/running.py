"""Episodes at one instant, and what becomes of them: known geometry, reward, ends. No model is run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from gymnasium.utils import seeding

from sanawm_env.start import NO_ROOM, seconds_to_frames
from sanawm_env.state import WorldState
from sanawm_env.tasks import Columns, Drive

if TYPE_CHECKING:
    from sanawm_env.rooms import Scenes

REASONS = ("", "success", "collision", "horizon", "timeout", "model_fault", "drift")
SUCCESS, COLLISION, HORIZON, TIMEOUT, MODEL_FAULT, DRIFT = range(1, 7)
SEEDS = 10**9  # worlds reset without a seed get one below this; held-out rooms start here
TASK = "task."  # prefix of the task's columns among the rows


@dataclass(frozen=True, kw_only=True)
class Running:
    """Episodes at one instant. rows: numbers, one row a world. frames: of the latest chunk, uint8 [B, T, H, W, 3].
    latents: those that the frames were decoded from, float32 [B, t, C, h, w], where they are asked for.
    """

    world: WorldState
    rows: Columns
    frames: torch.Tensor | None
    task: Drive
    scenes: Scenes | None
    latents: torch.Tensor | None = None

    @property
    def over(self) -> np.ndarray:
        """[B] whether the episode has ended."""
        return self.rows["terminated"] | self.rows["truncated"]

    @property
    def columns(self) -> Columns:
        """The task's columns."""
        return {name.removeprefix(TASK): rows for name, rows in self.rows.items() if name.startswith(TASK)}

    def write(self, slots: list[int], fresh: Running) -> Running:
        """These episodes with those of `slots` replaced by fresh ones; no other world is touched."""
        rows = {name: kept.copy() for name, kept in self.rows.items()}
        for name, kept in rows.items():
            kept[slots] = fresh.rows[name]
        if self.scenes is None or fresh.scenes is None:
            scenes = rooms_of(rows["room"])
        else:
            scenes = self.scenes.write(slots, fresh.scenes)
        return replace(
            self,
            world=self.world.write(slots, fresh.world),
            rows=rows,
            frames=_put(self.frames, fresh.frames, slots),
            latents=_put(self.latents, fresh.latents, slots),
            scenes=scenes,
        )

    def select(self, index: list[int]) -> Running:
        """These episodes alone, in this order."""
        return replace(
            self,
            world=self.world.select(index),
            rows={name: kept[index] for name, kept in self.rows.items()},
            frames=None if self.frames is None else self.frames[index],
            latents=None if self.latents is None else self.latents[index],
            scenes=None if self.scenes is None else self.scenes.select(index),
        )


class Shown(NamedTuple):
    """What there is to see of a chunk: `Running.frames` and `Running.latents`."""

    frames: torch.Tensor | None
    latents: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A chunk as the task sees it, one row a world: rewards [B, F], zero after the end, index of the frame at which
    the episode ended (-1 while it goes on), and how many frames of the chunk belong to the episode."""

    rewards: np.ndarray
    end_index: np.ndarray
    valid_frames: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step gave: reward float64 [B], terminated and truncated bool [B], facts for `info` with B rows each."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, np.ndarray]


def fresh_rows(motion: np.ndarray, rooms: np.ndarray, lines: np.ndarray) -> Columns:
    """Rows of episodes that begin. motion: [B, k] at rest. rooms: [B] seeds of their rooms. lines: [B, 2] first seed of
    the world and how many episodes it has had since, from which the seed of its next episode follows."""
    count = len(rooms)
    return {
        "line": lines,
        "motion": motion,
        "velocity": np.zeros((count, 6)),
        "room": rooms,
        "terminated": np.zeros(count, bool),
        "truncated": np.zeros(count, bool),
        "reason": np.zeros(count, np.int64),
    }


def new_seeds(world: WorldState, n: int, purpose: int = 3) -> torch.Tensor:
    """Seeds for n different futures of each world, drawn from its seed and its age, others for another purpose."""
    drawn = [
        np.random.SeedSequence([int(seed), int(chunk), purpose, row % n]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
        for row, (seed, chunk) in enumerate(zip(world.seed.tolist(), world.chunk.tolist(), strict=True))
    ]
    return torch.tensor([int(seed) for seed in drawn], dtype=torch.int64)


def fresh_lines(seeds: Sequence[int]) -> np.ndarray:
    """[B, 2] lines of worlds that begin with these seeds."""
    return np.array([[seed, 0] for seed in seeds], np.int64).reshape(-1, 2)


def next_in_line(line: np.ndarray) -> tuple[int, np.ndarray]:
    """Seed of a world's next episode and the line [2] it then has: what resets of a single environment, seeded once,
    would draw one after another."""
    first, episodes = line.tolist()
    drawn = seeding.np_random(first)[0].integers(0, SEEDS, size=episodes + 1)
    return int(drawn[-1]), np.array([first, episodes + 1], np.int64)


def judge(now: Running, before: np.ndarray, poses: np.ndarray, fps: float) -> tuple[Judged, Columns]:
    """Reward and ends of a chunk and the rows after it; a world that had ended before stays as it is, without reward.

    before: [B, 4, 4] pose ahead of the chunk. poses: [B, F, 4, 4].
    """
    verdict = now.task.evaluate(now.columns, before, poses, clearance_of(now, poses))
    frames, over = poses.shape[1], now.over
    number = now.world.frame.numpy()[:, None] + np.arange(1, frames + 1)
    horizon = now.world.horizon.numpy()[:, None]
    limit = seconds_to_frames(now.task.time_limit, fps)
    code = np.zeros(number.shape, np.int64)
    if limit is not None:
        code[number >= limit] = TIMEOUT
    code[(horizon >= 0) & (number >= horizon)] = HORIZON
    code[verdict.collision] = COLLISION
    code[verdict.success] = SUCCESS
    ended = (code > 0).any(axis=1) & ~over
    first = (code > 0).argmax(axis=1)
    reason = np.where(ended, code[np.arange(len(code)), first], now.rows["reason"])
    valid = np.where(over, 0, np.where(ended, first + 1, frames))
    rows = now.rows | {
        "terminated": np.isin(reason, (SUCCESS, COLLISION)),
        "truncated": np.isin(reason, (HORIZON, TIMEOUT, MODEL_FAULT, DRIFT)),
        "reason": reason,
    }
    for name, changed in verdict.columns.items():
        kept = over.reshape(-1, *[1] * (changed.ndim - 1))
        rows[TASK + name] = np.where(kept, rows[TASK + name], changed)
    rewards = np.where(np.arange(frames) < valid[:, None], verdict.reward, 0.0)
    return Judged(rewards=rewards, end_index=np.where(ended, first, -1), valid_frames=valid), rows


def drop_faulty(now: Running, judged: Judged, sound: np.ndarray) -> tuple[Running, Judged]:
    """Cuts worlds whose latents are not finite any more (`sound` [B] is false): this chunk does not count for them."""
    broken = ~sound & (judged.valid_frames > 0)
    rows = now.rows | {
        "terminated": now.rows["terminated"] & ~broken,
        "truncated": now.rows["truncated"] | broken,
        "reason": np.where(broken, MODEL_FAULT, now.rows["reason"]),
    }
    kept = Judged(
        rewards=np.where(broken[:, None], 0.0, judged.rewards),
        end_index=np.where(broken, 0, judged.end_index),
        valid_frames=np.where(broken, 0, judged.valid_frames),
    )
    return replace(now, rows=rows), kept


def end_drifted(now: Running, judged: Judged, drifted: np.ndarray) -> tuple[Running, Judged]:
    """Cuts the episodes of worlds that `drifted` [B] and were still going on, behind the last frame of this chunk."""
    ended = drifted & ~now.over
    rows = now.rows | {
        "truncated": now.rows["truncated"] | ended,
        "reason": np.where(ended, DRIFT, now.rows["reason"]),
    }
    last = judged.rewards.shape[1] - 1
    return replace(now, rows=rows), replace(judged, end_index=np.where(ended, last, judged.end_index))


def rooms_of(rooms: np.ndarray) -> Scenes | None:
    """Geometry of the worlds with these room seeds, one row each; None when no world has any."""
    if (rooms == NO_ROOM).all():
        return None
    from sanawm_env.rooms import sample_scenes

    # Worlds without geometry hold a row too, which `clearance_of` ignores.
    different, row = np.unique(np.maximum(rooms, 0), return_inverse=True)
    return sample_scenes(different.tolist()).select(row.tolist())


def clearance_of(now: Running, poses: np.ndarray) -> np.ndarray:
    """[B, F] metres from each camera to the nearest surface, infinite for worlds without geometry."""
    if now.scenes is None:
        return np.full(poses.shape[:2], np.inf)
    from sanawm_env.rooms import clearance

    free = clearance(now.scenes, torch.from_numpy(poses[:, :, :3, 3].copy())).numpy().astype(np.float64)
    return np.where((now.rows["room"] == NO_ROOM)[:, None], np.inf, free)


def _put(kept: torch.Tensor | None, fresh: torch.Tensor | None, slots: list[int]) -> torch.Tensor | None:
    """Pictures [B, T, ...] with those that begin [n, 1, ...] in the place of some worlds', repeated T times."""
    if kept is None or fresh is None:
        return None
    written = kept.clone()
    written[slots] = fresh.to(written.device).expand(-1, written.shape[1], -1, -1, -1)
    return written
