"""One worker: a model, a folder of its own to write to, and the loop in which episodes join and leave a batch."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Sequence, Set
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from sanawm_env import bundle
from sanawm_env.errors import ConfigError
from sanawm_env.generation.config import Generate
from sanawm_env.generation.explorers import Explorer, action_mode, make_explorer
from sanawm_env.generation.plan import Plan, plan
from sanawm_env.generation.starts import Starts
from sanawm_env.generation.writing import Done, Writing, count_writers, make_writing
from sanawm_env.placement import find_device, host_threads
from sanawm_env.start import ResetOptions, Start, make_start
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.recorded import recorded

Timing = dict[str, float]
PLANNERS = 2  # processes that draw paths ahead for one GPU


class Worker:
    """Makes episodes of a job. A context manager; its end closes the store.

    folder: of its store and record, which it alone writes; its writers, where it has some, have folders of their own
    beside it (`record.folders_of`). device: takes the place of the config's. done: called with
    the record's line of each episode, from another thread.
    """

    def __init__(
        self,
        config: Generate,
        folder: Path,
        *,
        device: str | None = None,
        model: WorldModel | None = None,
        done: Done = lambda line: None,
    ) -> None:
        self.config = config
        where = place_of(config, device, model)
        # Their processes start while the model is read.
        self._planner = _planner(config, where)
        self._writing: Writing = make_writing(config, folder, count_writers(config, where), done)
        try:
            opened = open_model(config, device) if model is None else (model, None)
            self.model: WorldModel = opened[0]
            self.prompts: Any = opened[1]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the store; an episode that is not over leaves nothing."""
        self._writing.close()
        if self._planner is not None:
            self._planner.shutdown(cancel_futures=True)

    def run(self, numbers: Sequence[int]) -> Timing:
        """Makes these episodes, and returns once they are stored.

        Seconds, from when its processes are up: of all ("wall"), in `world.step` ("step"), in `world.initial`
        ("start"), on paths and rooms or waiting for them ("paths"), waiting for what is written ("waiting").
        """
        plans = [plan(self.config, number) for number in numbers]
        with host_threads(self.model.device, self.config.threads):
            # On a GPU the size of a batch decides how the decoder rounds, so there it never changes.
            fixed = self.model.device.type != "cpu"
            worlds = self.config.batch if fixed else min(self.config.batch, len(numbers))
            env = self._make(worlds, action_mode(self.config))
            explorer = make_explorer(self.config, env, self._planner)
            # Rooms are furnished and rendered for a GPU beside its steps; on a CPU the worlds need every core.
            with ThreadPoolExecutor(1, "starts") if fixed else nullcontext() as ahead:
                batch = Batch(env, explorer, self._writing, plans, fixed=fixed, ahead=ahead)
                self._writing.open(recorded(env))
                began = time.perf_counter()
                with self._writing.run(worlds):
                    batch.run()
        wall, waited = time.perf_counter() - began, self._writing.waited
        return {"wall": wall, **batch.spent, "waiting": waited, "episodes": float(len(numbers))}

    def _make(self, worlds: int, action_mode: str) -> SanaWMVectorEnv:
        config = self.config
        return SanaWMVectorEnv(
            worlds,
            self.model,
            # Writers get the frames from the device, and paths need no observation: neither is waited for.
            frames="none",
            arrays="torch" if config.policy is None else "numpy",
            task=config.task,
            horizon=config.frames,
            action_map=config.action_map,
            action_options=config.action_options,
            action_mode=action_mode,
            latents=config.keep != "frames",
            observation=config.observation,
            prompts=self.prompts,
        )


class Batch:
    """Worlds that step together, each in an episode of its own. plans: of all episodes. fixed: keeps worlds that
    nothing waits for. ahead: makes starts in rooms before they are needed (`starts.Starts`). spent: seconds in the
    model."""

    def __init__(
        self,
        env: SanaWMVectorEnv,
        explorer: Explorer,
        writing: Writing,
        plans: Sequence[Plan],
        *,
        fixed: bool,
        ahead: Executor | None,
    ) -> None:
        self.fixed = fixed
        self._waiting = deque(plans)
        self._starts = Starts(self._start, env.num_envs, ahead)
        self.env, self.explorer, self.writing = env, explorer, writing
        self.spent: Timing = {"step": 0.0, "start": 0.0, "paths": 0.0, "frames": 0.0}
        self._observation: Any = None
        explorer.expect(plans)
        self._starts.expect([one for one in plans if one.room is not None])

    def run(self) -> None:
        """Steps until no episode is running and none is waiting; a slot that is free takes the next one."""
        free, waiting = set(range(self.env.num_envs)), self._waiting
        while waiting or len(free) < self.env.num_envs:
            slots = sorted(free)[: len(waiting)]
            self._begin(slots, [waiting.popleft() for _ in slots], whole=len(free) == self.env.num_envs)
            free -= set(slots)
            if free and not self.fixed:
                self._drop(free)
                free = set()
            free |= set(np.flatnonzero(self._step()).tolist())

    def _begin(self, slots: Sequence[int], plans: Sequence[Plan], *, whole: bool) -> None:
        """Episodes begin in free slots; those in pictures one scene at a time. whole: no world is in an episode."""
        for number, scene in enumerate(sorted({one.scene for one in plans}, key=str)):
            rows = [row for row, one in enumerate(plans) if one.scene == scene]
            # Then every world starts, a copy where no episode does: worlds of one age are computed as one batch.
            fill = whole and number == 0
            self._reset([slots[row] for row in rows], [plans[row] for row in rows], first=fill)

    def _reset(self, slots: Sequence[int], plans: Sequence[Plan], *, first: bool) -> None:
        mask = np.zeros(self.env.num_envs, bool)
        mask[list(slots)] = True
        own = dict(zip(slots, plans))
        members = [own.get(slot, plans[0]) for slot in range(self.env.num_envs) if first or mask[slot]]
        began = time.perf_counter()
        options: dict[str, Any] = {"scene": plans[0].scene if plans[0].room is None else self._starts.take(members)}
        self.explorer.begin(slots, plans)
        self.spent["paths"] += time.perf_counter() - began
        if not first:
            options["reset_mask"] = mask
        seeds = [own[slot].seed if slot in own else plans[0].seed if first else None for slot in range(len(mask))]
        self._observation, info = self.env.reset(seed=seeds, options=options)
        timing = self.env.last_timing
        self.spent["start"] += timing["model_seconds"]
        frames, _ = self.env.last_output
        assert frames is not None
        self.writing.begin(_on_host(info), slots, plans, timing["reset_seconds"], frames)

    def _start(self, plans: Sequence[Plan]) -> Start:
        """Of episodes in rooms; what decides it is known before they begin, and it is made in any thread."""
        options = ResetOptions(scene=[one.room for one in plans], pose=self.explorer.poses(plans))
        model = self.env.model
        return make_start(options, [one.seed for one in plans], model.config, model.device)

    def _drop(self, free: Set[int]) -> None:
        """Goes on without slots that nothing waits for."""
        kept = [slot for slot in range(self.env.num_envs) if slot not in free]
        self.env = self.env.select(kept)
        self.explorer.select(kept)
        self._observation = self.env.observe()[0]
        self.writing.select(kept)

    def _step(self) -> np.ndarray:
        """One step of all worlds; which of them are over [B]."""
        actions = self.explorer.act(self._observation, self.env.num_envs)
        self._observation, _, terminated, truncated, info = self.env.step(actions)
        timing, (frames, latents) = self.env.last_timing, self.env.last_output
        assert frames is not None and latents is not None
        self.spent["step"] += timing["model_seconds"]
        self.spent["frames"] += float(np.sum(info["valid_frames"]))
        self.writing.step(_on_host(info), actions, timing["step_seconds"], frames, latents)
        over: np.ndarray = terminated | truncated
        return over


def _on_host(info: dict[str, Any]) -> dict[str, Any]:
    """What a store takes of `info`: latents, where they are kept, as an array."""
    latents = info.get("latents")
    return info | {"latents": latents.cpu().numpy()} if isinstance(latents, torch.Tensor) else info


def place_of(config: Generate, device: str | None, model: WorldModel | None) -> torch.device:
    """Where a worker's worlds compute; device, model: as of `Worker`."""
    return find_device(config.device if device is None else device) if model is None else model.device


def _planner(config: Generate, where: torch.device) -> ProcessPoolExecutor | None:
    """Processes that draw paths ahead for a GPU; on a CPU the worlds need every core themselves."""
    if where.type == "cpu" or config.policy is not None:
        return None
    # spawn: a forked child of a process that uses CUDA cannot be trusted.
    planner = ProcessPoolExecutor(PLANNERS, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
    planner.submit(torch.get_num_threads)
    return planner


def open_model(config: Generate, device: str | None = None) -> tuple[WorldModel, Any]:
    """The job's model on a device, and what reads prompts for it (None for one that reads none)."""
    where = config.device if device is None else device
    if config.sana_wm is None:
        model, prompts = bundle.load(config.bundle, device=where, precision=config.precision), None
    else:
        from sanawm_env.sana_wm import open_sana_wm

        model, prompts = open_sana_wm(**{"device": where, "precision": config.precision, **config.sana_wm})
    if prompts is None and model.reads_text:
        raise ConfigError(
            f"bundle {config.bundle!r} reads text; name its release under sana_wm (sana_wm.open_sana_wm)."
        )
    return model, prompts
