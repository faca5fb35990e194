"""The figures that this project set out to reach, beside the arithmetic floor and the best public implementations.

Public figures: one H200, 704x1280, as shipped / with torch.compile on the blocks, measured on 2026-11-21 (SGLang
0.5.23; refiner and bidirectional pass: diffusers 0.42.1). Floor: multiplications at the card's measured rate alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2**30
# The newest line of a benchmark, by its name and, where it has one, its precision.
Lines = Mapping[str, Mapping[str, Any]]
Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """what: is measured, in `unit`. line, path: where the figure stands in the benchmarks' JSON; of several paths the
    sum. public, floor: None where there is none. goal: to reach; at_least: whether more is better.
    """

    what: str
    unit: str
    line: str
    paths: tuple[Path, ...]
    goal: float
    public: str = ""
    floor: float | None = None
    at_least: bool = False
    scale: float = 1.0

    def measured(self, lines: Lines) -> float | None:
        """The figure, None where it was not measured."""
        parts = [_at(lines.get(self.line), path) for path in self.paths]
        return None if any(part is None for part in parts) else self.scale * sum(part for part in parts if part)

    def reached(self, value: float) -> bool:
        return value >= self.goal if self.at_least else value <= self.goal


def _p50(row: str, key: str = "ms") -> tuple[Path, ...]:
    return (("rows", row, key, "p50"),)


def _state(*parts: str) -> tuple[Path, ...]:
    return tuple(("rows", "distilled.memory", "state_bytes", part) for part in parts)


def _kernel(op: str) -> tuple[Path, ...]:
    return (("rows", {"op": op, "size": "full", "batch": 1, "precision": "bf16"}, "fused_us"),)  # type: ignore[return-value]


def _worlds(**like: Any) -> tuple[Path, ...]:
    return (("worlds", like, "frames_per_second"),)  # type: ignore[return-value]


GOALS: tuple[Goal, ...] = (
    Goal(what="stage 1, a chunk of 24 frames (4 steps and commit)", unit="ms", public="699 / 366", floor=95, goal=160,
         line="sana_wm bfloat16", paths=_p50("distilled.latents", "chunk_ms")),
    Goal(what="stage 1, one denoising step", unit="ms", public="139 / 73", floor=19, goal=32,
         line="sana_wm bfloat16", paths=_p50("distilled.denoiser_pass")),
    Goal(what="GDN scan, T = 3, state in and out", unit="us", public="224", floor=12, goal=50,
         line="kernels", paths=_kernel("main_scan")),
    Goal(what="GDN camera scan, T = 3", unit="us", public="640", floor=22, goal=90,
         line="kernels", paths=_kernel("camera_scan")),
    Goal(what="causal decoding, 24 frames", unit="ms", public="97", floor=34, goal=60,
         line="sana_wm bfloat16", paths=_p50("distilled.decode")),
    Goal(what="refiner, one block (3 steps and capture)", unit="ms", public="830 / 670", floor=431, goal=520,
         line="sana_wm bfloat16", paths=_p50("refiner.block")),
    Goal(what="real-time factor without refiner", unit="x", public="1.9 / 3.2", goal=6.5, at_least=True,
         line="sana_wm bfloat16", paths=(("real_time_factor", "without_refiner"),)),
    Goal(what="real-time factor with refiner", unit="x", public="0.9 / 1.3", goal=2.0, at_least=True,
         line="sana_wm bfloat16", paths=(("real_time_factor", "with_refiner"),)),
    Goal(what="bidirectional pass, 11 latents", unit="ms", public="461 / 261", floor=71, goal=110,
         line="sana_wm bfloat16", paths=_p50("bidirectional.11")),
    Goal(what="bidirectional pass, 121 latents", unit="ms", public="6660", floor=1950, goal=3000,
         line="sana_wm bfloat16", paths=_p50("bidirectional.121")),
    Goal(what="state of one world, stage 1", unit="GiB", public="0.71 (6 frames)", goal=0.95, scale=1 / GIB,
         line="sana_wm bfloat16", paths=_state("recurrent", "tails", "window", "other")),
    Goal(what="state of one world, decode cache", unit="GiB", goal=0.56, scale=1 / GIB,
         line="sana_wm bfloat16", paths=_state("decoder")),
    Goal(what="fp8: stage 1, a chunk of 24 frames", unit="ms", goal=144,
         line="sana_wm fp8", paths=_p50("distilled.latents", "chunk_ms")),
    Goal(what="fp8: refiner, one block (3 steps and capture)", unit="ms", goal=330,
         line="sana_wm fp8", paths=_p50("refiner.block")),
    Goal(what="fp8: real-time factor with refiner", unit="x", goal=2.7, at_least=True,
         line="sana_wm fp8", paths=(("real_time_factor", "with_refiner"),)),
    Goal(what="Rooms on an H200, one world, decoded", unit="frames/s", goal=240, at_least=True,
         line="rooms cuda", paths=_worlds(precision="bf16", batch=1, decode=True)),
    Goal(what="Rooms on an H200, 256 worlds, decoded", unit="frames/s", goal=5000, at_least=True,
         line="rooms cuda", paths=_worlds(precision="bf16", batch=256, decode=True)),
    Goal(what="Rooms on two CPU cores with native bf16, decoded", unit="frames/s", goal=10, at_least=True,
         line="rooms cpu", paths=_worlds(precision="bf16", batch=1, decode=True)),
    Goal(what="training of Rooms' denoiser, compiled against plain torch", unit="x", goal=1.5, at_least=True,
         line="training", paths=(("speedup",),)),
)  # fmt: skip


def _at(told: Any, path: tuple[Any, ...]) -> float | None:
    """The number at a path; a mapping in it picks the first member of a list that has all its values."""
    for step in path:
        if isinstance(step, Mapping) and isinstance(told, list):
            told = next((row for row in told if all(row.get(key) == value for key, value in step.items())), None)
        elif isinstance(told, Mapping):
            told = told.get(step)
        else:
            return None
    return float(told) if isinstance(told, int | float) else None
