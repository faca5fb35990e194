"""Speed, memory and sameness of the released configuration at full size, on random weights: `sanawm bench sana-wm`.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.benchmarks.sana_wm`. Needs torch,
numpy, safetensors and diffusers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sanawm_env.bare import run_bare
from sanawm_env.benchmarks import ours, peers
from sanawm_env.benchmarks.machine import append_line, machine
from sanawm_env.benchmarks.rows import PARTS, Bench, BenchSanaWM, Part
from sanawm_env.errors import BackendError
from sanawm_env.placement import find_device
from sanawm_env.released import FPS

MEASURE: dict[Part, Callable[[Bench], None]] = {
    "distilled": ours.measure_distilled,
    "refiner": ours.measure_refiner,
    "teacher": ours.measure_teacher,
    "bidirectional": ours.measure_bidirectional,
    "diffusers": peers.measure_diffusers,
    "sglang": peers.measure_sglang,
    "check": ours.measure_check,
}


@torch.no_grad()
def run(config: BenchSanaWM, progress: Callable[[str], None] = lambda line: print(line, flush=True)) -> dict[str, Any]:
    """Measures the parts that the config asks for, and returns what it found; each part is a JSON line in `config.out`.

    `progress` gets one line of text a measurement, as it comes. What failed stands under `failed`.
    """
    device = find_device(config.device)
    if device.type != "cuda" and config.size == "full":
        raise BackendError(
            "size is 'full' on a CPU, allowed is a CUDA device: one pass would take minutes; pass device=cuda on a "
            "machine with a GPU, or size=tiny to try the benchmark out."
        )
    bench = Bench(config, device, progress)
    # Where files lie on this machine is nobody's business elsewhere, and changes no figure.
    settings = {name: value for name, value in asdict(config).items() if not isinstance(value, Path)}
    told = {
        "benchmark": "sana_wm",
        **machine(device),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "settings": json.loads(json.dumps(settings)),
        "skipped": [name for name in PARTS if name not in config.parts],
    }
    for name in PARTS:
        if name not in config.parts:
            progress(f"{name}: skipped, parts does not name it")
            continue
        rows, failed = len(bench.rows), len(bench.failed)
        bench.part(name, MEASURE[name])
        # As soon as it is there: a run that is cut off has measured all the same.
        new = dict(list(bench.rows.items())[rows:])
        append_line(config.out, told | {"rows": new, "failed": bench.failed[failed:]})
    return told | {"rows": bench.rows, "real_time_factor": real_time_factors(bench.rows), "failed": bench.failed}


def real_time_factors(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Seconds of video a second of computing, one stage after another, as far as its stages were measured."""
    decoded = rows.get("distilled.decoded", {})
    chunk, without = 1000 * decoded.get("frames_per_chunk", 0) / FPS, decoded.get("chunk_ms", {}).get("p50")
    refining = rows.get("refiner.block", {}).get("ms", {}).get("p50")
    factors = {}
    if without is not None:
        factors["without_refiner"] = round(chunk / without, 3)
        if refining is not None:
            factors["with_refiner"] = round(chunk / (without + refining), 3)
    return factors


def main(arguments: Sequence[str]) -> int:
    """Measures what `key=value` arguments describe; see `run_bare`."""
    return run_bare(BenchSanaWM, run, arguments, failed=lambda report: report["failed"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
