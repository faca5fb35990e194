"""Workers as Ray actors that hold the model; their tasks are a few episodes each, and a lost worker is replaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sanawm_env.errors import ConfigError, MissingExtraError, SanaWMError, WorkerError
from sanawm_env.generation.config import Generate
from sanawm_env.generation.local import LOOK, part, written
from sanawm_env.generation.record import STORE, finished, folders_of, settled
from sanawm_env.generation.worker import Timing, Worker

AHEAD = 2  # tasks that an actor has at most: the one that it works on, and the next
LOSSES = 3  # actors lost in a row, without one task done in between, after which the job is given up


class Actor:
    """A worker in a process of Ray's."""

    def __init__(self, config: Generate, folder: Path, device: str | None) -> None:
        self.worker = Worker(config, folder, device=device)

    def run(self, numbers: list[int]) -> Timing:
        return self.worker.run(numbers)


def launch(config: Generate, numbers: Sequence[int], parts: Path, progress: Callable[[int], object]) -> list[Timing]:
    """Makes the episodes `numbers` on the cluster that RAY_ADDRESS names, or on one of this machine that is started
    for it. `parts` must lie where every node can write.

    MissingExtraError without Ray, WorkerError when workers are lost again and again; the error of a worker where it
    raised one.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "launcher=ray needs ray, which is not installed; pip install 'sanawm-env[ray]'."
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
    fleet = Fleet(ray, config, parts)
    try:
        return fleet.run(numbers, progress)
    finally:
        fleet.end()
        if started:
            ray.shutdown()


class Fleet:
    """The actors of a job. ray: the module."""

    def __init__(self, ray: Any, config: Generate, parts: Path) -> None:
        self.ray, self.config, self.parts = ray, config, parts
        resources = ray.cluster_resources()
        self.cards = 0 if config.device == "cpu" else int(resources.get("GPU", 0))
        self.workers = config.workers or self.cards or 1
        if not self.cards and self.workers * config.threads > resources.get("CPU", 0):
            raise ConfigError(
                f"workers={self.workers} of threads={config.threads} were asked for, the cluster has "
                f"{resources.get('CPU', 0):.0f} CPUs; ask for fewer."
            )
        self.made = 0
        self.tasks: dict[Any, tuple[int, list[int]]] = {}  # by what Ray promises: whose, which episodes
        self.actors: dict[int, Any] = {}

    def run(self, numbers: Sequence[int], progress: Callable[[int], object]) -> list[Timing]:
        """Hands out the episodes and returns when all are made."""
        size = max(1, min(2 * self.config.batch, -(-len(numbers) // self.workers)))
        waiting = deque(list(numbers[first : first + size]) for first in range(0, len(numbers), size))
        timings, losses, seen = list[Timing](), 0, 0
        while waiting or self.tasks:
            self._hand_out(waiting)
            ready, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=LOOK)
            count = written(self.parts)
            progress(count - seen)
            seen = count
            for promise in ready:
                if promise not in self.tasks:  # of an actor that another promise has told of
                    continue
                try:
                    timings.append(self.ray.get(promise))
                    del self.tasks[promise]
                    losses = 0
                except self.ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, SanaWMError) else error from None
                except self.ray.exceptions.RayActorError as error:
                    losses += 1
                    if losses > LOSSES:
                        raise WorkerError(f"{losses} workers were lost in a row, the last by: {error}") from error
                    waiting.extendleft(self._bury(self.tasks[promise][0]))
        return timings

    def end(self) -> None:
        """Ends the actors; what they have stored is safe at any instant."""
        for actor in self.actors.values():
            self.ray.kill(actor)

    def _hand_out(self, waiting: deque[list[int]]) -> None:
        while len(self.actors) < min(self.workers, len(self.actors) + len(waiting)):
            self.actors[self.made] = self._make(part(self.parts, self.made))
            self.made += 1
        for _ in range(AHEAD):  # first one each, then the next ones
            for index, actor in self.actors.items():
                held = sum(owner == index for owner, _ in self.tasks.values())
                if waiting and held < AHEAD:
                    numbers = waiting.popleft()
                    self.tasks[actor.run.remote(numbers)] = (index, numbers)

    def _make(self, folder: Path) -> Any:
        kind = self.ray.remote(Actor).options(num_cpus=self.config.threads, num_gpus=1 if self.cards else 0)
        return kind.remote(self.config, folder, "cuda" if self.cards else self.config.device)

    def _bury(self, index: int) -> list[list[int]]:
        """Forgets a lost actor; what it was to do and had not finished."""
        del self.actors[index]
        done = set[int]()
        for folder in folders_of(part(self.parts, index)):
            settled(folder / STORE)  # its writers may have outlived it for a moment
            done |= finished(folder, self.config.job_id).keys()
        mine = [promise for promise, (owner, _) in self.tasks.items() if owner == index]
        left = [[number for number in self.tasks.pop(promise)[1] if number not in done] for promise in mine]
        return [numbers for numbers in left if numbers]
