"""Worlds streamed chunk by chunk and timed: what the benchmarks of all world models share."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanawm_env.benchmarks.machine import allocated, peak_memory, percentiles, reset_peak, timed
from sanawm_env.errors import BackendError
from sanawm_env.world import WorldModel, initial, step

# Largest difference of one step's latents between a batch and a single world, relative to their size.
BATCH_TOLERANCE = {
    "cpu": {torch.float32: 0.0, torch.bfloat16: 0.0},
    "cuda": {torch.float32: 1e-5, torch.bfloat16: 1e-3},
}


def stream(
    model: WorldModel,
    batch: int,
    chunks: int,
    warmup: int,
    *,
    decode: bool = True,
    text: Mapping[str, Tensor] | None = None,
    marks: Sequence[int] = (),
) -> dict[str, Any]:
    """Frames a second and latency of `world.step` for `batch` worlds in step, after `warmup` chunks.

    With decode=False only latents are made, as a planner does. Latency is of one chunk, in milliseconds. text: of a
    model that reads it. marks: after how many chunks, warm-up included, memory is read; with any, the result holds
    `memory`, one reading a mark, and `memory_flat`, whether all are equal. BackendError if the latents are not finite.
    """
    state, _ = initial(model, pictures(model, batch), seeds=list(range(batch)), text=text)
    state = state if decode else state.plan()
    frames = model.config.frames_per_chunk
    path = turning_path(batch, frames * (warmup + chunks), model.config.fps)
    seconds, memory = [], []
    latents = torch.empty(0)
    reset_peak(model.device)
    for k in range(warmup + chunks):

        def advance(poses: Tensor = path[:, k * frames : (k + 1) * frames]) -> None:
            nonlocal state, latents
            state, output = step(model, state, poses, decode=decode)
            latents = output.latents

        seconds.append(timed(advance, model.device))
        if k + 1 in marks:
            gc.collect()
            reading = {"allocated_bytes": allocated(model.device), "state_bytes": state.nbytes()["total"]}
            memory.append({"chunks": k + 1, **reading})
    check_finite(latents, "the latents of the last chunk")
    seconds = seconds[warmup:]
    row = {
        "batch": batch,
        "decode": decode,
        "frames_per_second": round(batch * frames / statistics.median(seconds), 2),
        "chunk_ms": percentiles(seconds),
        "frames_per_chunk": frames,
        "peak_memory_bytes": peak_memory(model.device),
    }
    if memory:
        readings = {(reading["allocated_bytes"], reading["state_bytes"]) for reading in memory}
        row |= {"memory": memory, "memory_flat": len(readings) == 1}
    return row


def check_finite(x: Tensor, what: str) -> None:
    """BackendError unless every value is finite: the speed of NaN is no speed."""
    if not bool(torch.isfinite(x).all()):
        raise BackendError(f"{what} hold NaN or infinity; run the tests of this machine, or pass precision=fp32")


def batch_tolerance(model: WorldModel) -> float:
    """How far one step's latents of a world in a batch may be from those of the same world alone."""
    return BATCH_TOLERANCE[model.device.type][model.dtype]


def relative_difference(x: Tensor, reference: Tensor) -> float:
    """Largest difference of two tensors of one shape, relative to the largest value of the reference."""
    return float((x.float() - reference.float()).abs().max() / reference.float().abs().max())


def pictures(model: WorldModel, batch: int) -> np.ndarray:
    """First pictures [batch, H, W, 3]: smooth colours, different a world; speed does not depend on what they show."""
    height, width = model.config.height, model.config.width
    y, x = np.mgrid[:height, :width]
    shown = [np.stack([x + 7 * i, y + 3 * i, x + y], -1) * 255 // (height + width + 7 * batch) for i in range(batch)]
    return np.stack(shown).astype(np.uint8)


def turning_path(batch: int, frames: int, fps: float) -> Tensor:
    """Poses [batch, frames, 4, 4] of a camera on a circle, 0.3 m/s and 0.3 rad/s, the same for every world."""
    angle = 0.3 * torch.arange(1, frames + 1, dtype=torch.float64) / fps
    poses = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    poses[:, 0, 0], poses[:, 0, 2] = angle.cos(), -angle.sin()
    poses[:, 2, 0], poses[:, 2, 2] = angle.sin(), angle.cos()
    poses[:, 0, 3], poses[:, 2, 3] = angle.cos() - 1, angle.sin()
    return poses.expand(batch, frames, 4, 4)
