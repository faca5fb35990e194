"""Episodes as rollouts for a recording: rows of a tape or a store, alone or two of them side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.pictures import sharpness
from sanawm_env.wrappers.indicators import fidelity, pose_distance
from sanawm_env.wrappers.rerun_layout import Contents
from sanawm_env.wrappers.rerun_recording import INFO, WARN, Event, Recording, Rollout
from sanawm_env.wrappers.rerun_sink import Sink
from sanawm_env.wrappers.rows import Rows

ROW_PLOTS = ("actions", "reward", "sharpness")
TIMING, SECONDS = "timing", "step or reset (s)"
DIFFERENCE_GAIN = 4
DIFFERENCE = f"difference x{DIFFERENCE_GAIN}"
Points = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """Rollouts that are over, by the name of their track. fps, frames_per_chunk: as of `Recording`. text: Markdown."""

    tracks: Mapping[str, Rollout]
    fps: float
    frames_per_chunk: int
    text: str = ""


def picture_plots(frames: np.ndarray, first_sharpness: float) -> dict[str, dict[str, np.ndarray]]:
    """Plots of frames uint8 [T, H, W, 3]. first_sharpness: of the episode's first frame."""
    return {
        "sharpness": {"of the first frame's": sharpness(torch.as_tensor(frames)).numpy() / max(first_sharpness, 1e-6)}
    }


def row_plots(
    rows: Rows, columns: Sequence[str], units: Sequence[str], first_sharpness: float, score: float = 0.0
) -> dict[str, dict[str, np.ndarray]]:
    """Plots of rows of an episode: those of `ROW_PLOTS`. score: the return before them."""
    named = [f"{name} ({unit})" for name, unit in zip(columns, units)]
    return {
        "actions": {name: rows["actions"][:, index] for index, name in enumerate(named)},
        "reward": {"reward": rows["rewards"], "return": score + np.cumsum(rows["rewards"])},
        **picture_plots(rows["frames"], first_sharpness),
    }


def of_episode(rows: Rows, info: StoreInfo, reason: str = "") -> Rollout:
    """An episode of T - 1 rows as `EpisodeStore` or `EpisodeTape` gives it, with the row of its start before them.

    reason: why it has ended, "" where it went on.
    """
    frames = _whole(rows, "frames")
    plots: dict[str, Any] = row_plots(
        rows, info.action_columns, info.action_units, float(sharpness(torch.as_tensor(frames[:1])))
    )
    if "step_seconds" in rows:
        plots[TIMING] = {SECONDS: rows["step_seconds"]}
    told = f"ended: {reason}" if reason else "stopped while it went on"
    return Rollout(
        poses=_whole(rows, "poses"),
        intrinsics=rows["start_intrinsics"],
        frames=frames,
        depth=_whole(rows, "truth_depth") if "truth_depth" in rows else None,
        plots=plots,
        events=[Event(row=len(frames) - 1, text=told, level=INFO if reason in ("", "success") else WARN)],
    )


def of_truth(rows: Rows) -> Rollout | None:
    """The ground truth of an episode, None where it is not known."""
    if "truth_frames" not in rows:
        return None
    poses = _whole(rows, "poses")
    return Rollout(poses=poses, intrinsics=rows["start_intrinsics"], frames=_whole(rows, "truth_frames"))


def compare(first: Rollout, second: Rollout, names: tuple[str, str]) -> dict[str, Rollout]:
    """Two rollouts by name, side by side on one time line, the first with what sets them apart: a video of the
    difference, PSNR and distance of the cameras, as long as both go on.

    ConfigError when their pictures differ in size or their names are the same.
    """
    shapes = [rollout.frames.shape[1:] for rollout in (first, second)]
    if shapes[0] != shapes[1] or names[0] == names[1]:
        raise ConfigError(
            f"rollouts {names[0]!r} of {shapes[0]} and {names[1]!r} of {shapes[1]} cannot be compared; take two with "
            "pictures of one size, and give them different names."
        )
    both = min(len(first), len(second))
    measured = {
        "agreement": fidelity(first.frames[:both], second.frames[:both]),
        "cameras apart": pose_distance(first.poses[:both], second.poses[:both]),
    }
    alone = np.full(len(first) - both, np.nan)
    plots = {
        plot: {name: np.concatenate([values, alone]) for name, values in series.items()}
        for plot, series in measured.items()
    }
    videos = {**first.videos, DIFFERENCE: difference(first.frames[:both], second.frames[:both])}
    return {names[0]: dataclasses.replace(first, videos=videos, plots={**plots, **first.plots}), names[1]: second}


def difference(frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How far apart frames uint8 [T, H, W, 3] are, `DIFFERENCE_GAIN` times brighter; the same shape."""
    apart = np.abs(frames.astype(np.int16) - others) * DIFFERENCE_GAIN
    return np.minimum(apart, 255).astype(np.uint8)


def record(sink: Sink, finished: Finished, points: Points | None = None) -> None:
    """Logs all of it, points of the world among it (see `Recording.points`), and closes the sink. StorageError when a
    file cannot be written."""
    first = next(iter(finished.tracks.values()))
    plots = dict.fromkeys(plot for rollout in finished.tracks.values() for plot in rollout.plots)
    contents = Contents(
        tracks=tuple(finished.tracks),
        videos=tuple(first.videos),
        depth=first.depth is not None,
        plots=tuple(plots),
        text=finished.text,
        start=first.poses[0],
    )
    with Recording(sink, contents, fps=finished.fps, frames_per_chunk=finished.frames_per_chunk) as recording:
        for name, rollout in finished.tracks.items():
            recording.append(rollout, name)
        for name, (positions, colours) in (points or {}).items():
            recording.points(name, positions, colours)


def _whole(rows: Rows, key: str) -> np.ndarray:
    return np.concatenate([rows[f"start_{key}"][None], rows[key]])
