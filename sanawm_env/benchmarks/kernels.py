"""Speed of each op's reference and fused form at the sizes of the released model and of Rooms: `sanawm bench kernels`.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.benchmarks.kernels device=cuda`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import append_line, machine, timed
from sanawm_env.bundle import find_device
from sanawm_env.errors import BackendError, ConfigError
from sanawm_env.kernels import philox
from sanawm_env.kernels.backend import fused_obstacle
from sanawm_env.kernels.camera_scan import camera_scan
from sanawm_env.kernels.frame_gates import frame_gates
from sanawm_env.kernels.main_scan import main_scan

Op = Literal["frame_gates", "main_scan", "camera_scan", "philox"]
OPS: tuple[Op, ...] = ("frame_gates", "main_scan", "camera_scan", "philox")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Largest relative difference (2-norm) between the two forms on equal inputs; beyond it nothing is timed. Both forms get
# the precision under test, so in bf16 the reference's own rounding counts too.
TOLERANCE = {"bf16": 3e-2, "fp32": 1e-4}
TAPS = 4


@dataclass(frozen=True, kw_only=True)
class Size:
    """Latent frames of a call, tokens a frame, heads, lanes of a head, values of a token's latent."""

    frames: int
    tokens: int
    heads: int
    width: int
    latent: int


SIZES = {
    "full": Size(frames=3, tokens=880, heads=20, width=112, latent=128),
    "rooms": Size(frames=2, tokens=320, heads=5, width=64, latent=48),
    "tiny": Size(frames=2, tokens=5, heads=1, width=16, latent=8),
}


@dataclass(frozen=True, kw_only=True)
class BenchKernels:
    """What to measure. device: None for CUDA where there is one. size: of the model, "tiny" to try the benchmark out.

    batch: worlds at a time, one measurement each. precision: of the projections, likewise. repeats: timed calls, after
    `warmup` others. out: file that gets one JSON line a run.
    """

    device: str | None = None
    ops: tuple[Op, ...] = OPS
    size: tuple[Literal["full", "rooms", "tiny"], ...] = ("full", "rooms")
    batch: tuple[int, ...] = (1,)
    precision: tuple[Literal["bf16", "fp32"], ...] = ("bf16",)
    repeats: int = 50
    warmup: int = 3
    seed: int = 0
    out: Path = Path("outputs/bench/kernels.jsonl")

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 1 or min(self.batch, default=0) < 1:
            raise ConfigError(
                f"repeats {self.repeats}, warmup {self.warmup}, batch {self.batch}: expected 1 or more of each"
            )


@torch.no_grad()
def run(config: BenchKernels, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures everything the config asks for, appends one JSON line to `config.out` and returns it.

    A row holds the median microseconds of both forms (fused None where it cannot run; on CUDA of a graph's replays, so
    that the host's launches do not count) and their relative difference. BackendError if that is too large.
    """
    device = find_device(config.device)
    report: dict[str, Any] = {"benchmark": "kernels", **machine(device), "rows": []}
    for size in config.size:
        for precision in config.precision:
            for batch in config.batch:
                for op in config.ops:
                    torch.manual_seed(config.seed)
                    form = INPUTS[op](SIZES[size], batch, DTYPES[precision], device)
                    row: dict[str, Any] = {"op": op, "size": size, "batch": batch, "precision": precision}
                    row |= measure(form, device, config.repeats, config.warmup, TOLERANCE[precision])
                    report["rows"].append(row)
                    progress(_sentence(row))
    append_line(config.out, report)
    return report


def measure(
    form: Callable[..., Any], device: torch.device, repeats: int, warmup: int, tolerance: float
) -> dict[str, float | None]:
    """Median microseconds of an op whose inputs are bound, by backend, and the backends' relative difference."""
    measured: dict[str, float | None] = {"difference": None, "reference_us": None, "fused_us": None}
    runs = fused_obstacle(device) == ""
    if runs:
        measured["difference"] = checked(form, tolerance)
    for backend in ("reference", "fused") if runs else ("reference",):
        measured[f"{backend}_us"] = microseconds(partial(form, backend=backend), device, repeats, warmup)
    return measured


def checked(form: Callable[..., Any], tolerance: float) -> float:
    """Largest relative difference (2-norm) of the outputs of both backends; BackendError beyond `tolerance`."""
    pairs = zip(_tensors(form(backend="fused")), _tensors(form(backend="reference")), strict=True)
    largest = max(float((x.float() - y.float()).norm() / y.float().norm()) for x, y in pairs)
    if not largest <= tolerance:
        raise BackendError(
            f"the fused form differs from the reference by {largest:.1e}, allowed {tolerance:.1e}; nothing was timed. "
            "Run the tests of this machine first"
        )
    return largest


def microseconds(work: Callable[[], Any], device: torch.device, repeats: int, warmup: int) -> float:
    """Median duration of `work`, on CUDA of the replays of its graph by the device's own clock."""
    for _ in range(warmup):
        work()
    if device.type != "cuda":
        return round(1e6 * statistics.median(timed(work, device) for _ in range(repeats)), 1)
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        graph.replay()
        for begin, end in marks:
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize(device)
    return round(1e3 * statistics.median(begin.elapsed_time(end) for begin, end in marks), 1)


def _gates_inputs(size: Size, batch: int, dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
    def draw(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, device=device, dtype=dtype)

    channels, heads = size.heads * size.width, size.heads
    u = 10 * draw(batch, size.frames, size.tokens, channels)
    return partial(frame_gates, u, draw(heads, channels), draw(heads), draw(heads, channels), *draw(3, heads))


def _main_inputs(size: Size, batch: int, dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
    given = _scan_inputs(size, batch, dtype, device, size.width // 2)
    shape = (batch, size.frames, size.tokens, 3 * size.heads * size.width)
    qkv = torch.randn(shape, device=device, dtype=dtype)
    normaliser = torch.rand(batch, size.heads, size.width, device=device)
    return partial(main_scan, qkv=qkv, normaliser=normaliser, **given)


def _camera_inputs(size: Size, batch: int, dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
    given = _scan_inputs(size, batch, dtype, device, size.width // 4)
    tokens = (batch, size.frames, size.tokens)
    q, k, v = torch.randn((3, *tokens, size.heads * size.width), device=device, dtype=dtype)
    to_ray = torch.eye(4, device=device) + 0.2 * torch.randn((*tokens, 4, 4), device=device)
    given |= {"q": q, "k": k, "v": v, "to_ray": to_ray, "from_ray": to_ray.transpose(-1, -2).contiguous()}
    return partial(camera_scan, crossing=True, downscaled=False, **given)


def _scan_inputs(size: Size, batch: int, dtype: torch.dtype, device: torch.device, pairs: int) -> dict[str, Any]:
    """What both scans take; `pairs` of lanes are rotated."""
    channels = size.heads * size.width
    angle = 6 * torch.rand(batch, size.frames, size.tokens, 1, pairs, device=device)
    low = {
        "k_tail": torch.randn(batch, TAPS - 1, size.tokens, channels, device=device),
        "q_weight": torch.ones(channels, device=device),
        "k_weight": torch.ones(channels, device=device),
        "conv_weight": 0.5 * torch.randn(channels, 1, TAPS, device=device),
    }
    return {
        **{name: x.to(dtype) for name, x in low.items()},
        "cos": angle.cos(),
        "sin": angle.sin(),
        "beta": torch.rand(batch, size.frames, size.tokens, size.heads, device=device),
        "decay": 0.5 + 0.5 * torch.rand(batch, size.frames, size.heads, device=device),
        "state": 0.3 * torch.randn(batch, size.heads, size.width, size.width, device=device),
        "lengths": (size.frames,),
    }


def _noise_inputs(size: Size, batch: int, dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
    seeds = torch.arange(batch, device=device)
    return partial(philox.normal, seeds, torch.zeros_like(seeds), 0, (size.latent, size.frames, size.tokens))


INPUTS: dict[Op, Callable[[Size, int, torch.dtype, torch.device], Callable[..., Any]]] = {
    "frame_gates": _gates_inputs,
    "main_scan": _main_inputs,
    "camera_scan": _camera_inputs,
    "philox": _noise_inputs,
}


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _sentence(row: dict[str, Any]) -> str:
    fused = "cannot run" if row["fused_us"] is None else f"{row['fused_us']} us, differs by {row['difference']:.1e}"
    subject = f"{row['op']}, {row['size']}, batch {row['batch']}, {row['precision']}"
    return f"{subject}: reference {row['reference_us']} us, fused {fused}"


def main(arguments: Sequence[str]) -> int:
    """Measures what `key=value` arguments describe; see `run_bare`."""
    return run_bare(BenchKernels, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
