"""Trajectories through ever new scenes, planned ahead by worker processes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from concurrent.futures import Executor, Future, ProcessPoolExecutor

import numpy as np
import torch

from sanawm_env.rooms import sample_scenes, sample_trajectories

HELD_OUT_SEEDS = 10**9


def plan_paths(seeds: list[int], frames: int, fps: float) -> np.ndarray:
    """Camera-to-world poses [len(seeds), frames + 1, 4, 4] float64 of one trajectory in each scene; runs in worker
    processes.
    """
    torch.set_num_threads(1)
    return sample_trajectories(sample_scenes(seeds), seeds, frames, fps).poses


class PathPlanner:
    """Scenes that are never repeated and never held out, `batch` a call, each with one trajectory.

    frames: steps of a trajectory. workers: processes that plan ahead; 0 plans in place.
    """

    def __init__(self, *, batch: int, frames: int, fps: float, first_seed: int, workers: int) -> None:
        self.batch, self.frames, self.fps = batch, frames, fps
        self.first_seed = self.next_seed = first_seed
        # spawn: a forked child of a process that uses CUDA or threads cannot be trusted.
        context = multiprocessing.get_context("spawn")
        self.pool: Executor | None = ProcessPoolExecutor(workers, mp_context=context) if workers else None
        self.ahead: deque[tuple[list[int], Future[np.ndarray]]] = deque()
        for _ in range(3 * workers):
            self._plan()

    def next(self) -> tuple[list[int], np.ndarray]:
        """Seeds of the next scenes and the poses of `plan_paths` in them. ValueError when they would be held out."""
        if self.pool is None:
            seeds = self._take_seeds()
            return seeds, plan_paths(seeds, self.frames, self.fps)
        seeds, future = self.ahead.popleft()
        self._plan()
        return seeds, future.result()

    @property
    def used(self) -> tuple[int, int]:
        """First seed, and the one behind the last that was planned or is being planned."""
        return self.first_seed, self.next_seed

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)

    def _plan(self) -> None:
        if self.pool is not None:
            seeds = self._take_seeds()
            self.ahead.append((seeds, self.pool.submit(plan_paths, seeds, self.frames, self.fps)))

    def _take_seeds(self) -> list[int]:
        seeds = list(range(self.next_seed, self.next_seed + self.batch))
        if seeds[-1] >= HELD_OUT_SEEDS:
            raise ValueError(f"training seed {seeds[-1]} would be held out; start below {HELD_OUT_SEEDS}")
        self.next_seed += self.batch
        return seeds
