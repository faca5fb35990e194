"""What logging to Rerun costs a step of a world: `sanawm bench logging`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sanawm_env.benchmarks.machine import append_line, machine
from sanawm_env.errors import ConfigError

ACTION = [0.05, 0.2]


@dataclass(frozen=True, kw_only=True)
class BenchLogging:
    """steps: of each turn. turns: of each of the two, plain and logged. out: file that gets one JSON line a run."""

    bundle: str = "rooms"
    device: str = "cpu"
    steps: int = 4
    turns: int = 10
    out: Path = Path("outputs/bench/logging.jsonl")

    def __post_init__(self) -> None:
        if min(self.steps, self.turns) < 1:
            raise ConfigError(f"steps is {self.steps} and turns {self.turns}, allowed are 1 or more; raise them.")


def run(config: BenchLogging, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Steps the same world plain and logged, in turns, so that both meet the same machine; appends one JSON line to
    `config.out` and returns it.

    Medians over the turns, in milliseconds a step, of time and of processor time, which other work on the machine moves
    less: "plain", "logged" (until everything is written), and "logging", a step logged alone with nothing stepped.
    overhead: logged beyond plain, as a part of plain; processor_overhead: logging as a part of plain.
    """
    import gymnasium as gym
    import torch

    import sanawm_env  # noqa: F401  (registers the environments)
    from sanawm_env.wrappers.rerun_log import LogToRerun

    def make() -> Any:
        return gym.make("sanawm_env/Rooms-v0", bundle=config.bundle, device=config.device, task="drive")

    with tempfile.TemporaryDirectory() as folder:
        plain, logged = make(), LogToRerun(make(), Path(folder) / "a.rrd")
        for env in (plain, logged):
            env.reset(seed=0)
            env.step(ACTION)
        result = logged.step(ACTION)
        work: dict[str, Callable[[], Any]] = {
            "plain": lambda: plain.step(ACTION),
            "logged": lambda: logged.step(ACTION),
            "logging": lambda: logged.log.step(lambda: result, [ACTION], scalar=True),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
        for turn in range(config.turns):
            for name in sorted(work, reverse=bool(turn % 2)):
                taken[name].append(_each(work[name], logged.log.flush, config.steps))
        logged.close()
    wall, processor = ({name: median(row[i] for row in rows) for name, rows in taken.items()} for i in (0, 1))
    report = {
        "benchmark": "logging",
        **machine(torch.device(config.device)),
        "milliseconds": wall,
        "processor_milliseconds": processor,
        "overhead": wall["logged"] / wall["plain"] - 1,
        "processor_overhead": processor["logging"] / processor["plain"],
        "turns": taken,
    }
    progress(
        f"a step takes {wall['plain']:.0f} ms ({processor['plain']:.0f} of processors), logged {wall['logged']:.0f}; "
        f"logging alone {processor['logging']:.0f} of processors"
    )
    append_line(config.out, report)
    return report


def _each(work: Callable[[], Any], finish: Callable[[], None], steps: int) -> tuple[float, float]:
    """Milliseconds of each step of a piece of work, everything written: time, and that of processors."""
    begun = time.perf_counter(), time.process_time()
    for _ in range(steps):
        work()
    finish()
    return (time.perf_counter() - begun[0]) * 1000 / steps, (time.process_time() - begun[1]) * 1000 / steps
