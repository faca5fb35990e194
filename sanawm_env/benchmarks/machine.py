"""On what a number was measured, and how."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sanawm_env.errors import StorageError
from sanawm_env.kernels.backend import native_bf16


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, versions and commit; the GPU's name where the device is one."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "native_bf16": native_bf16(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str | None:
    """Commit of the sources in use, "+" appended when files differ from it; None outside a git checkout."""
    folder = Path(__file__).parent
    try:
        name, changes = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+" if changes else "")


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `work` takes, the device's queue empty before and after."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile in milliseconds."""
    values = np.percentile(seconds, (50, 90, 99)) * 1000
    return {name: round(float(value), 3) for name, value in zip(("p50", "p90", "p99"), values)}


def peak_memory(device: torch.device) -> int:
    """Bytes: most that was allocated on the GPU since `reset_peak`, or the process's largest resident size so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def allocated(device: torch.device) -> int | None:
    """Bytes that tensors hold on the GPU now; None on a CPU, where torch keeps no such count.

    As asked for: what the allocator hands out is up to a MiB a tensor more, depending on what it has at hand.
    """
    return torch.cuda.memory_stats(device)["requested_bytes.all.current"] if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def append_line(path: Path, report: Mapping[str, Any]) -> None:
    """One JSON line more at the end of a file, to which other processes may append. StorageError if it cannot be
    written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:  # one write, so that lines of several processes stay whole
            file.write(json.dumps(report).encode() + b"\n")
    except OSError as error:
        raise StorageError(f"cannot append to {path}: {error.strerror}; choose another file with out=PATH") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What `append_line` has written; nothing where there is no file. StorageError if it holds something else."""
    try:
        return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read ({error}); give another file.") from error


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
