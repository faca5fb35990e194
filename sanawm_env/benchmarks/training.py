"""How fast the Rooms denoiser trains, its blocks compiled and in plain torch: `sanawm bench training`.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.benchmarks.training device=cuda`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sanawm_env import bundle
from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import append_line, machine
from sanawm_env.errors import ConfigError
from sanawm_env.training.denoiser import DenoiserStage, DenoiserTraining
from sanawm_env.training.ranks import Ranks
from sanawm_env.world import WorldModel

FORMS = {"plain": False, "compiled": True}


@dataclass(frozen=True, kw_only=True)
class BenchTraining:
    """bundle: where training starts. steps: measured, after `warmup` in which the compiled form is compiled. batch,
    latents: clips a step, and latent frames of a clip. out: file that gets one JSON line a run.
    """

    bundle: str = "rooms"
    steps: int = 30
    warmup: int = 10
    batch: int = 16
    latents: int = 17
    out: Path = Path("outputs/bench/training.jsonl")

    def __post_init__(self) -> None:
        if min(self.steps, self.warmup, self.batch) < 1:
            raise ConfigError(
                f"steps is {self.steps}, warmup {self.warmup}, batch {self.batch}, allowed are 1 or more; raise them."
            )


def run(config: BenchTraining, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains the same clips with the same random numbers in both forms; appends one JSON line and returns it.

    Of each form: milliseconds a step (median) and tokens/s, a token being one place of one latent frame, and the loss
    of every step. speedup: of the compiled form. loss_difference: largest between the two, relative.
    """
    model = bundle.load(config.bundle, device="cpu", precision="fp32")
    ranks = Ranks()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, compiled in FORMS.items():
            rows[name] = _train(config, model, ranks, Path(folder) / name, compiled=compiled)
            progress(f"{name}: {rows[name]['ms']:.1f} ms a step, {rows[name]['tokens_per_second']:.0f} tokens/s")
    plain, fast = rows["plain"], rows["compiled"]
    pairs = list(zip(plain["losses"], fast["losses"], strict=True))
    report = {
        "benchmark": "training",
        **machine(ranks.device),
        "rows": rows,
        "speedup": round(plain["ms"] / fast["ms"], 3),
        "loss_difference": max(abs(a - b) / abs(a) for a, b in pairs),
    }
    progress(f"compiled is {report['speedup']}x as fast, losses differ by {report['loss_difference']:.1%} at most")
    append_line(config.out, report)
    return report


def _train(config: BenchTraining, model: WorldModel, ranks: Ranks, out: Path, *, compiled: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    settings = DenoiserTraining(
        out=out,
        batch=config.batch,
        bank=config.batch,
        source_batch=config.batch,
        latents=config.latents,
        total_minutes=1e6,  # so long a schedule that all steps are of its first part
        mixture_share=0.0,
        workers=0,
        compiled=compiled,
    )
    stage = DenoiserStage(settings, model, ranks)
    bank, weight = stage.new_bank()
    losses, seconds = [], []
    torch.manual_seed(1)
    for _ in range(config.warmup + config.steps):
        began = time.perf_counter()
        loss, _ = stage.step(bank, bank.draw(config.batch), weight)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - began)
    taken = statistics.median(seconds[config.warmup :])
    height, width = model.config.grid
    tokens = config.batch * config.latents * height * width
    return {"ms": round(1e3 * taken, 2), "tokens_per_second": round(tokens / taken), "losses": losses}


def main(arguments: Sequence[str]) -> int:
    """Measures what `key=value` arguments describe; see `run_bare`."""
    return run_bare(BenchTraining, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
