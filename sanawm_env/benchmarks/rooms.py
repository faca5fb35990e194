"""Speed of the Rooms world and of its ray-caster: `sanawm bench rooms`.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.benchmarks.rooms device=cuda`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import append_line, machine, timed
from sanawm_env.benchmarks.streaming import batch_tolerance, pictures, relative_difference, stream, turning_path
from sanawm_env.bundle_choice import BundleChoice
from sanawm_env.errors import BackendError, ConfigError
from sanawm_env.rooms import render, sample_scenes
from sanawm_env.world import WorldModel, initial, step

# Metres above the floor of a room, whose y axis points down.
EYE_HEIGHT = 1.0


@dataclass(frozen=True, kw_only=True)
class BenchRooms(BundleChoice):
    """What to measure. bundle, variant, refiner: see `BundleChoice`. batch: worlds at a time, one measurement each.
    precision: likewise. chunks: timed steps.

    decode: with pixels, or latents only (what a planner pays), or both. captured: of `bundle.load`. renderer: whether
    the ray-caster is timed too, over `renderer_frames` frames of 8 rooms. out: file that gets one JSON line a run.
    """

    device: str = "cpu"
    batch: tuple[int, ...] = (1,)
    precision: tuple[Literal["bf16", "fp32"], ...] = ("bf16", "fp32")
    decode: tuple[bool, ...] = (True, False)
    chunks: int = 16
    warmup: int = 5
    captured: bool | None = None
    renderer: bool = True
    renderer_frames: int = 2
    renderer_repeats: int = 3
    out: Path = Path("outputs/bench/rooms.jsonl")

    def __post_init__(self) -> None:
        if self.chunks < 1 or self.warmup < 1 or min(self.batch, default=0) < 1:
            raise ConfigError(
                f"chunks {self.chunks}, warmup {self.warmup}, batch {self.batch}: expected 1 or more of each"
            )


def run(config: BenchRooms, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures everything the config asks for, appends one JSON line to `config.out` and returns it.

    `progress` gets one line of text a measurement. BackendError if batches do not equal single worlds: no timing then.
    """
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("device 'cuda' was asked for, this machine has none; pass device=cpu")
    report: dict[str, Any] = {"benchmark": "rooms", **machine(device), "worlds": []}
    for precision in config.precision:
        model = config.load(device=config.device, precision=precision, captured=config.captured)
        report["captured"] = model.captured
        report["bundle_sha256"] = model.fingerprint
        check_batch(model)
        for batch in config.batch:
            for decode in config.decode:
                row = {"precision": precision, **stream(model, batch, config.chunks, config.warmup, decode=decode)}
                report["worlds"].append(row)
                progress(_sentence(row))
        report.setdefault("state_bytes", model.empty_state(1).nbytes())
    if config.renderer:
        report["renderer"] = ray_caster(model, config.renderer_frames, config.renderer_repeats)
        rates = report["renderer"]["frames_per_second"]
        progress(f"ray-caster: {rates['pictures']:.1f} frames/s, with depth and instances {rates['with_geometry']:.1f}")
    append_line(config.out, report)
    return report


def ray_caster(model: WorldModel, frames: int, repeats: int) -> dict[str, Any]:
    """Frames a second of the ground truth at the model's size, pictures alone and with depth and instances.

    8 rooms of `frames` frames a call, compiled on a GPU; the first call is not counted.
    """
    config, device = model.config, model.device
    scenes = sample_scenes(range(8), device=device)
    poses = turning_path(8, frames, config.fps).clone().to(device)
    poses[:, :, 1, 3] = -EYE_HEIGHT
    rates = {}
    for name, geometry in (("pictures", False), ("with_geometry", True)):

        def work(geometry: bool = geometry) -> None:
            render(scenes, poses, config.intrinsics, (config.height, config.width), geometry=geometry)

        work()
        seconds = [timed(work, device) for _ in range(repeats)]
        rates[name] = round(8 * frames / statistics.median(seconds), 1)
    return {"frames_per_second": rates, "frames_per_call": 8 * frames, "compiled": device.type == "cuda"}


def check_batch(model: WorldModel) -> None:
    """Whether two worlds in a batch do what each does alone; BackendError otherwise, so that nothing wrong is timed."""
    images, poses = pictures(model, 2), turning_path(2, model.config.frames_per_chunk, model.config.fps)
    both, _ = initial(model, images, seeds=[0, 1])
    _, together = step(model, both, poses, decode=False)
    for row in range(2):
        single, _ = initial(model, images[row : row + 1], seeds=[row])
        _, alone = step(model, single, poses[row : row + 1], decode=False)
        difference = relative_difference(together.latents[row], alone.latents[0])
        allowed = batch_tolerance(model)
        if not difference <= allowed:
            raise BackendError(
                f"world {row} of a batch differs from the same world alone by {difference:.1e}, allowed {allowed:.1e}; "
                "nothing was timed. Run the tests of this machine first"
            )


def _sentence(row: dict[str, Any]) -> str:
    kind = "decoded" if row["decode"] else "latents only"
    latency = row["chunk_ms"]
    return (
        f"batch {row['batch']}, {row['precision']}, {kind}: {row['frames_per_second']:.1f} frames/s, chunk of "
        f"{row['frames_per_chunk']} in {latency['p50']:.1f} ms (p90 {latency['p90']:.1f}, p99 {latency['p99']:.1f}), "
        f"peak memory {row['peak_memory_bytes'] / 2**20:.0f} MiB"
    )


def main(arguments: Sequence[str]) -> int:
    """Measures what `key=value` arguments describe; see `run_bare`."""
    return run_bare(BenchRooms, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
