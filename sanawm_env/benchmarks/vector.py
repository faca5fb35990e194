"""Speed and memory of batches of worlds through the vector environment's own step: `sanawm bench vector`.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.benchmarks.vector device=cuda`.
"""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import allocated, append_line, machine, percentiles, timed
from sanawm_env.benchmarks.rooms import check_batch
from sanawm_env.bundle import load
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import BackendError, ConfigError
from sanawm_env.placement import Precision
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class BenchVector:
    """What to measure: every number of worlds with every kind of observation and of arrays, `steps` steps after
    `warmup`. task, autoreset_mode, resident: of `SanaWMVectorEnv`. precision: of `bundle.load`. out: file that gets one
    JSON line a run.
    """

    bundle: str = "rooms"
    device: str = "cpu"
    precision: Precision = "auto"
    num_envs: tuple[int, ...] = (1, 8, 64, 256)
    observation: tuple[Literal["last", "all", "dict"], ...] = ("last", "dict")
    arrays: tuple[Literal["torch", "numpy"], ...] = ("torch", "numpy")
    task: str = "goto"
    autoreset_mode: str = "Disabled"
    resident: int | None = None
    steps: int = 16
    warmup: int = 5
    out: Path = Path("outputs/bench/vector.jsonl")

    def __post_init__(self) -> None:
        if min(self.steps, self.warmup, *self.num_envs) < 1 or not (self.num_envs and self.observation and self.arrays):
            raise ConfigError(
                f"steps {self.steps}, warmup {self.warmup}, num_envs {self.num_envs}: expected 1 or more of each"
            )


def run(config: BenchVector, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures everything the config asks for, appends one JSON line to `config.out` and returns it.

    `progress` gets one line of text a measurement. BackendError if batches do not equal single worlds: no timing then.
    """
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("device 'cuda' was asked for, this machine has none; pass device=cpu")
    model = load(config.bundle, device=config.device, precision=config.precision)
    check_batch(model)
    report: dict[str, Any] = {"benchmark": "vector", **machine(device), "execution": model.execution}
    report |= {"captured": model.captured, "bundle_sha256": model.fingerprint, "autoreset_mode": config.autoreset_mode}
    report["state_bytes"] = model.empty_state(1).nbytes()["total"]
    # Once through, so that what a model keeps for a shape is not counted as a world's.
    report["scalar"] = scalar(model, config)
    progress(_sentence("scalar", report["scalar"]))
    report["vector"] = []
    for worlds in config.num_envs:
        for observation in config.observation:
            for arrays in config.arrays:
                row = vector(model, config, worlds, observation, arrays)
                row["times_scalar"] = round(row["frames_per_second"] / report["scalar"]["frames_per_second"], 2)
                report["vector"].append(row)
                progress(_sentence(f"{worlds} worlds, {observation}, {arrays}", row))
    append_line(config.out, report)
    return report


def scalar(model: WorldModel, config: BenchVector) -> dict[str, Any]:
    """The scalar environment's step."""
    env = SanaWMEnv(model, task=config.task, frames="last")
    env.reset(seed=0)
    return _streamed(env, np.array([0.2, 0.3], np.float32), config, 1)


def vector(model: WorldModel, config: BenchVector, worlds: int, observation: str, arrays: str) -> dict[str, Any]:
    """The vector environment's step, and the memory that a world takes on the device while nothing is computed.

    Reset once before, so that what stays with the model (graphs, tables) is there before memory is read.
    """
    options: dict[str, Any] = {"task": config.task, "frames": "none", "observation": observation, "arrays": arrays}
    options |= {"autoreset_mode": config.autoreset_mode, "resident": config.resident}
    actions = np.tile(np.array([0.2, 0.3], np.float32), (worlds, 1))
    env = SanaWMVectorEnv(worlds, model, **options)
    env.reset(seed=0)
    row = {"num_envs": worlds, "observation": observation, "arrays": arrays}
    row |= _streamed(env, actions, config, worlds)
    told = env.world.nbytes()["total"] / worlds
    gc.collect()
    before = allocated(model.device)
    shown = sum(x.nbytes for x in env.last_output if x is not None) / worlds
    env.close()
    del env
    gc.collect()
    after = allocated(model.device)
    measured = None if before is None or after is None else round((before - after) / worlds)
    memory = {"nbytes": round(told), "frames_and_latents": round(shown), "measured": measured}
    return row | {"bytes_a_world": memory}


def _streamed(env: Any, actions: np.ndarray, config: BenchVector, worlds: int) -> dict[str, Any]:
    """Frames a second and latency of `step`, and what part of it is not the model's.

    The model's own time ends when its frames are there: it is waited for in `_step`, which looks whether they are
    sound.
    """
    seconds, model = [], []
    for _ in range(config.warmup):
        env.step(actions)
    for _ in range(config.steps):
        seconds.append(timed(lambda: env.step(actions), env.model.device))
        model.append(env.last_timing["model_seconds"])
    middle = statistics.median(seconds)
    beside = [whole - inside for whole, inside in zip(seconds, model)]
    return {
        "frames_per_second": round(worlds * env.frames_per_step / middle, 1),
        "step_ms": percentiles(seconds),
        "beside_model_ms": percentiles(beside),
        "beside_model_share": round(statistics.median(beside) / middle, 4),
        "frames_per_step": env.frames_per_step,
    }


def _sentence(what: str, row: dict[str, Any]) -> str:
    latency = row["step_ms"]
    told = (
        f"{what}: {row['frames_per_second']:.1f} frames/s, step of {row['frames_per_step']} in {latency['p50']:.1f} ms "
        f"(p90 {latency['p90']:.1f}), {100 * row['beside_model_share']:.1f} % of it beside the model"
    )
    memory = row.get("bytes_a_world")
    if memory is None or memory["measured"] is None:
        return told
    return f"{told}, {memory['measured'] / 2**20:.2f} MiB a world (state {memory['nbytes'] / 2**20:.2f})"


def main(arguments: Sequence[str]) -> int:
    """Measures what `key=value` arguments describe; see `run_bare`."""
    return run_bare(BenchVector, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
