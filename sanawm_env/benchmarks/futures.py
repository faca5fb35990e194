"""Time and memory of many futures of one instant: `sanawm bench futures`.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.benchmarks.futures device=cuda`.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import allocated, append_line, machine, peak_memory, reset_peak, synchronise, timed
from sanawm_env.benchmarks.streaming import check_finite
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import BackendError, ConfigError
from sanawm_env.placement import Precision
from sanawm_env.vector_env import SanaWMVectorEnv


@dataclass(frozen=True, kw_only=True)
class BenchFutures:
    """What to measure. futures: of one instant, a measurement each. seconds: of world time that they are rolled out, in
    whole steps. decode: latents and rewards only (the plan tier), or with pixels, or both. age: steps that the world
    has done before. repeats, warmup: forks with their rollouts that are timed, and those before them. precision,
    captured: of `bundle.load`. out: file that gets one JSON line a run.
    """

    bundle: str = "rooms"
    device: str = "cpu"
    futures: tuple[int, ...] = (256,)
    seconds: float = 1.0
    decode: tuple[bool, ...] = (False, True)
    age: int = 4
    repeats: int = 5
    warmup: int = 2
    precision: Precision = "auto"
    captured: bool | None = None
    seed: int = 10**9
    out: Path = Path("outputs/bench/futures.jsonl")

    def __post_init__(self) -> None:
        if min(self.futures, default=0) < 1 or self.repeats < 1 or self.warmup < 0 or self.age < 0:
            raise ConfigError(
                f"futures {list(self.futures)}, repeats {self.repeats}, warmup {self.warmup}, age {self.age}: expected "
                "1 or more of the first two, 0 or more of the others."
            )
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"seconds is {self.seconds}, allowed is a time above 0.")


def run(config: BenchFutures, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures everything the config asks for, appends one JSON line to `config.out` and returns it.

    `progress` gets one line of text a measurement.
    """
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("device 'cuda' was asked for, this machine has none; pass device=cpu")
    env = SanaWMEnv(
        config.bundle,
        device=config.device,
        precision=config.precision,
        captured=config.captured,
        task="goto",
        frames="none",
        arrays="torch",
    )
    env.reset(seed=config.seed)
    for _ in range(config.age):
        env.step(np.zeros(env.action_space.shape, np.float32))
    report: dict[str, Any] = {
        "benchmark": "futures",
        **machine(device),
        "bundle_sha256": env.model.fingerprint,
        "dtype": str(env.model.dtype).removeprefix("torch."),
        "captured": getattr(env.model, "captured", False),
        "rows": [],
    }
    for count in config.futures:
        for decode in config.decode:
            row = measure(env, count, decode, config)
            report["rows"].append(row)
            progress(_sentence(row))
    env.close()
    append_line(config.out, report)
    return report


def measure(env: SanaWMEnv, count: int, decode: bool, config: BenchFutures) -> dict[str, Any]:
    """One row: medians of the time to fork `count` futures and to roll them out along different actions, and memory.

    bytes_each: of a future's state, as `nbytes` says it. added_bytes: on a GPU, what forking allocates; peak_bytes: the
    most that fork and rollout have at a time, weights included (on a CPU: of the process so far).
    BackendError if the futures' latents are not finite, or if all are alike.
    """
    device = env.model.device
    steps = math.ceil(config.seconds * env.fps / env.frames_per_step - 1e-9)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, count, *(env.action_space.shape or ())))
    forks, rollouts, added, state_bytes = [], [], [], 0
    for repeat in range(config.warmup + config.repeats):
        gc.collect()
        synchronise(device)
        if repeat == config.warmup:
            reset_peak(device)
        before, futures = allocated(device), Futures(env, count, decode)
        fork_seconds = timed(futures.fork, device)
        after, state_bytes = allocated(device), futures.made.world.nbytes()["total"]
        rollout_seconds = timed(lambda futures=futures: futures.follow(actions), device)  # type: ignore[misc]
        futures.check()
        futures.made.close()
        del futures
        if repeat >= config.warmup:
            forks.append(fork_seconds)
            rollouts.append(rollout_seconds)
            added.append(None if before is None or after is None else after - before)
    median = statistics.median(rollouts)
    return {
        "futures": count,
        "decode": decode,
        "steps": steps,
        "world_seconds": round(steps * env.frames_per_step / env.fps, 3),
        "fork_ms": round(1000 * statistics.median(forks), 3),
        "rollout_ms": round(1000 * median, 3),
        "frames_per_second": round(count * steps * env.frames_per_step / median, 1),
        "bytes_each": state_bytes // count,
        "added_bytes": added[-1],
        "peak_bytes": peak_memory(device),
    }


class Futures:
    """`count` futures of an environment's instant, which `fork` makes."""

    def __init__(self, env: SanaWMEnv, count: int, decode: bool) -> None:
        self.env, self.count, self.decode = env, count, decode
        self.made: SanaWMVectorEnv

    def fork(self) -> None:
        self.made = self.env.fork(self.count, decode=self.decode)

    def follow(self, actions: np.ndarray) -> None:
        """Steps along actions [steps, count, A]."""
        for action in actions:
            self.made.step(action)

    def check(self) -> None:
        """BackendError for latents that are not finite, or equal in spite of different actions."""
        latents = self.made.last_output[1]
        assert latents is not None
        check_finite(latents, "the latents of the futures")
        if self.count > 1 and bool((latents[0] == latents[1]).all()):
            raise BackendError("futures along different actions have equal latents; run this machine's tests first")


def _sentence(row: dict[str, Any]) -> str:
    kind = "decoded" if row["decode"] else "latents only"
    return (
        f"{row['futures']} futures, {kind}: fork {row['fork_ms']:.1f} ms, {row['world_seconds']:g} s of rollout "
        f"({row['steps']} steps) {row['rollout_ms']:.0f} ms, {row['frames_per_second']:.0f} frames/s; "
        f"{row['bytes_each'] / 2**20:.2f} MiB a future, peak {row['peak_bytes'] / 2**30:.2f} GiB"
    )


def main(arguments: Sequence[str]) -> int:
    """Measures what `key=value` arguments describe; see `run_bare`."""
    return run_bare(BenchFutures, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
