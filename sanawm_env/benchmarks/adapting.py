"""Time and memory in which the released configuration trains, adapters or all weights, on random weights: `sanawm bench
adapting`.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.benchmarks.adapting latents=22`.
Over several GPUs: `torchrun --nproc-per-node N -m sanawm_env.benchmarks.adapting method=full`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import append_line, machine, peak_memory, reset_peak, synchronise
from sanawm_env.benchmarks.rows import Bench, BenchSanaWM
from sanawm_env.benchmarks.streaming import turning_path
from sanawm_env.errors import BackendError, ConfigError
from sanawm_env.model.config import Variant
from sanawm_env.placement import Precision, find_device
from sanawm_env.training.adapt_latents import FilmedClips
from sanawm_env.training.adapt_settings import AdaptReleased
from sanawm_env.training.adapt_tuning import Tuning
from sanawm_env.training.estimate import GIB, Estimate, adapting, training
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.scaling import Scaling
from sanawm_env.world import WorldModel

SETTINGS = ("size", "method", "latents", "rank", "checkpointed", "compiled")


@dataclass(frozen=True, kw_only=True)
class BenchAdapting:
    """variants: that are trained, one after another. size: the released one, or "tiny" to try the benchmark out.
    method, latents, rank, checkpointed, compiled: of `AdaptReleased`; one clip of noise a step on each GPU. All weights
    are sharded over the ranks that torchrun started. steps: measured, after `warmup`. device: None for CUDA where there
    is one. out: file that gets one JSON line a variant.
    """

    variants: tuple[Variant, ...] = ("teacher", "distilled")
    size: Literal["full", "tiny"] = "full"
    method: Literal["lora", "full"] = "lora"
    latents: int = 22
    rank: int = 16
    checkpointed: bool = True
    compiled: bool = False
    steps: int = 3
    warmup: int = 1
    device: str | None = None
    out: Path = Path("outputs/bench/adapting.jsonl")

    def __post_init__(self) -> None:
        if min(self.steps, self.warmup) < 1:
            raise ConfigError(f"steps is {self.steps}, warmup {self.warmup}, allowed are 1 or more; raise them.")


def run(config: BenchAdapting, progress: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Trains; appends one JSON line a variant and returns them: ms (median of the steps), tokens_per_second, peak_gib
    (of all that lies on the device, the autoencoder too; of the process on a CPU), what was estimated, and losses.
    """
    device = find_device(config.device)
    if device.type != "cuda" and config.size == "full":
        raise BackendError("size is 'full' on a CPU, allowed is a CUDA device; pass size=tiny to try the benchmark.")
    ranks = Ranks()
    if ranks.count == 1 or device.type != "cuda":
        ranks.device = device
    try:
        return [_measure(config, variant, ranks, progress) for variant in config.variants]
    finally:
        ranks.close()


def _measure(config: BenchAdapting, variant: Variant, ranks: Ranks, progress: Callable[[str], None]) -> dict[str, Any]:
    device, full = ranks.device, config.method == "full"
    # All weights learn in fp32; adapters lie beside frozen ones as they are deployed.
    precision: Precision = "fp32" if full else "auto"
    bench = Bench(BenchSanaWM(size=config.size, captured=False, precision=precision), device, progress)
    reset_peak(device)
    model = bench.world(variant)
    clips = _clips(bench, model, config.latents)
    losses, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        settings = AdaptReleased(
            data="",
            out=Path(folder),
            method=config.method,
            latents=config.latents,
            rank=config.rank,
            compiled=config.compiled,
            scaling=Scaling(checkpointed=config.checkpointed, sharded=full and ranks.count > 1),
        )
        ones = torch.ones(model.config.denoiser.in_channels, device=device)
        tuning = Tuning(settings, model, ranks, ones, shared=False)
        for _ in range(config.warmup + config.steps):
            began = time.perf_counter()
            loss, _ = tuning.step(lambda part: clips)
            losses.append(float(loss))
            synchronise(device)
            seconds.append(time.perf_counter() - began)
    taken = statistics.median(seconds[config.warmup :])
    height, width = model.config.grid
    report = {
        "benchmark": "adapting",
        **machine(device),
        "variant": variant,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "gpus": ranks.count,
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "ms": round(1e3 * taken, 1),
        "first_ms": round(1e3 * seconds[0], 1),
        "tokens_per_second": round(ranks.count * config.latents * height * width / taken),
        "peak_gib": round(peak_memory(device) / GIB, 2),
        "estimate": _estimate(config, model, ranks, settings.layers, bench.dtype.itemsize),
        "losses": losses,
    }
    if ranks.is_first:
        told = f"{report['ms']} ms a step, peak {report['peak_gib']} GiB, estimated {report['estimate']['gib']}"
        progress(f"{variant}, {config.latents} latents: {told}")
        append_line(config.out, report)
    return report


def _estimate(
    config: BenchAdapting, model: WorldModel, ranks: Ranks, layers: Sequence[str], weight_bytes: int
) -> dict[str, Any]:
    if config.method == "full":
        asked = Estimate(gpus=ranks.count, latents=config.latents, checkpointed=config.checkpointed)
        return training(model.config, asked)
    return adapting(
        model.config,
        config.rank,
        layers,
        1,
        config.latents,
        checkpointed=config.checkpointed,
        weight_bytes=weight_bytes,
    )


def _clips(bench: Bench, model: WorldModel, latents: int) -> FilmedClips:
    """One clip of noise, along a circle, with a text that says nothing."""
    config, device = model.config, bench.device
    path = turning_path(1, config.temporal_stride * (latents - 1), config.fps).float()
    poses = torch.cat([torch.eye(4).expand(1, 1, 4, 4), path], dim=1).to(device)
    shape = (1, latents, config.denoiser.in_channels, *config.grid)
    lens = torch.tensor([config.intrinsics], device=device)
    return FilmedClips(bench.normal(*shape).float(), poses, lens, text=bench.text(model))


def main(arguments: Sequence[str]) -> int:
    """Measures what `key=value` arguments describe; see `run_bare`."""
    return run_bare(BenchAdapting, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
