"""What clips `sanawm eval world` asks of a world: held-out rooms along the benchmark's templates, or the benchmark of
80 scenes itself, as its folder lies on disk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanawm_env.errors import SceneError, StorageError
from sanawm_env.evaluation.benchmark_paths import Caps, Split, make_path, revisits, template_of
from sanawm_env.evaluation.held_out import FIRST_SEED, SEEDS_EACH, HeldOut
from sanawm_env.model.config import WorldConfig
from sanawm_env.rigid import about_vertical
from sanawm_env.rooms import sample_scenes, sample_trajectories
from sanawm_env.rooms.collision import FloorPlan
from sanawm_env.scene import prepare_image

HEADINGS = 8
BENCHMARK_SEED = 42  # of all its runs
# The benchmark's folders, by split.
FOLDERS: dict[str, str] = {"simple": "benchmark_v2_smooth_60s", "hard": "benchmark_v2_hard_60s"}


@dataclass(frozen=True, kw_only=True)
class Clips:
    """B clips to make. names, templates: of each; templates are "" where nothing says. poses: float64 [B, 1 + frames,
    4, 4] camera to world. pictures: uint8 [B, H, W, 3], the first ones. intrinsics: [B, 4]. seeds: of their noise.
    pairs: of each, the frames at which its camera is back. prompts: for models that read text. rooms: with the truth,
    where there is one."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    poses: Tensor
    pictures: Tensor
    intrinsics: Tensor
    seeds: tuple[int, ...]
    pairs: tuple[list[tuple[int, int]], ...]
    prompts: tuple[str, ...]
    rooms: HeldOut | None = None

    def __len__(self) -> int:
        return len(self.names)


def rooms_clips(
    config: WorldConfig, split: Split, numbers: Sequence[int], seed: int, frames: int, device: torch.device, caps: Caps
) -> Clips:
    """Clips of held-out rooms: number k is room k of the held-out set of `seed`, along template k of the split in turn.

    A clip depends on its number, not on who is beside it. Raises SceneError where no path fits into a room.
    """
    seeds = tuple(FIRST_SEED + SEEDS_EACH * seed + number for number in numbers)
    scenes = sample_scenes(seeds)
    starts = _headings(sample_trajectories(scenes, seeds, 1, config.fps, "still").poses[:, 0])
    # On the host, so that every machine takes the same paths.
    views = HeldOut(seeds=seeds, poses=torch.from_numpy(starts), config=config, device=torch.device("cpu"))
    depth = views.truth(views.poses, halved=4).depth.flatten(2).median(dim=-1).values.numpy()
    plan, room_height = FloorPlan.of(scenes), scenes.half_size[:, 1].double().numpy()
    templates = tuple(template_of(split, number) for number in numbers)
    paths = []
    for row, template in enumerate(templates):
        free = _Free(plan.rows(np.array([row])), room_height[row])
        told = (split, template, config.fps, frames, caps, seeds[row])
        paths.append(_longest(starts[row], depth[row], free, *told))
    poses = torch.from_numpy(np.stack(paths))
    rooms = HeldOut(seeds=seeds, poses=poses, config=config, device=device)
    return Clips(
        names=tuple(f"room {number}" for number in seeds),
        templates=templates,
        poses=poses,
        pictures=rooms.pictures(poses[:, :1])[:, 0],
        intrinsics=rooms.intrinsics(),
        seeds=seeds,
        pairs=tuple(revisits(path) for path in paths),
        prompts=("",) * len(numbers),
        rooms=rooms,
    )


@dataclass(frozen=True)
class _Free:
    """Metres that are free around points [N, 3] of a room; furniture counts at any height."""

    plan: FloorPlan
    height: float

    def __call__(self, points: np.ndarray) -> np.ndarray:
        aside = self.plan.distance(points[None, :, 0], points[None, :, 2])[0]
        near: np.ndarray = np.minimum(aside, np.minimum(-points[:, 1], self.height + points[:, 1]))
        return near


def _headings(starts: np.ndarray) -> np.ndarray:
    """Start poses [B, 4, 4] turned to eight sides, [B, 8, 4, 4]."""
    turned = np.repeat(starts[:, None], HEADINGS, axis=1)
    turns = about_vertical(np.arange(HEADINGS) * (2 * np.pi / HEADINGS))
    turned[..., :3, :3] = turns @ turned[..., :3, :3]
    return turned


def _longest(
    starts: np.ndarray,
    depths: np.ndarray,
    free: _Free,
    split: Split,
    template: str,
    fps: float,
    frames: int,
    caps: Caps,
    seed: int,
) -> np.ndarray:
    """The path to the side that lets it travel farthest, the own one first among equals."""
    best: tuple[float, np.ndarray] | None = None
    for start, depth in zip(starts, depths, strict=True):
        made = make_path(split, template, start, float(depth), frames, fps, seed=seed, clearance=free, caps=caps)
        if made is not None and (best is None or made[1] * depth > best[0] + 1e-6):
            best = made[1] * float(depth), made[0]
    if best is None:
        raise SceneError(
            f"template {template!r} comes nearer than {caps.margin} m to something in room {seed} to every side; take "
            "another seed, or a smaller caps.margin or caps.depth_share."
        )
    return best[1]


def folder_rows(folder: Path, split: Split) -> list[dict[str, Any]]:
    """Rows of the run_manifest.jsonl of a split in the benchmark's folder. StorageError where it is not as expected."""
    path = folder / FOLDERS[split] / "sanawm_export_v2" / "run_manifest.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not rows or not all({"id", "image_path", "camera_path"} <= set(row) for row in rows):
            raise ValueError("its lines must be objects with id, image_path and camera_path")
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"{path} cannot be read: {error}; benchmark= takes the folder of SANA-WM-Bench, which holds images and "
            f"{', '.join(FOLDERS.values())}."
        ) from error
    return rows


def folder_clips(config: WorldConfig, folder: Path, split: Split, numbers: Sequence[int], frames: int) -> Clips:
    """Clips of the benchmark of 80 scenes, at the model's rate: frame i has the pose of the nearest given one.

    Pictures cover the model's frame and are cropped in the middle, intrinsics with them. StorageError, SceneError.
    """
    rows = [folder_rows(folder, split)[number] for number in numbers]
    shots = [_shot(folder, row, config, frames) for row in rows]
    told = _told_pairs(folder / FOLDERS[split] / "scene_trajectories_v2.json")
    return Clips(
        names=tuple(str(row["id"]) for row in rows),
        templates=("",) * len(rows),
        poses=torch.from_numpy(np.stack([shot[0] for shot in shots])),
        pictures=torch.from_numpy(np.stack([shot[1] for shot in shots])),
        intrinsics=torch.tensor([shot[2] for shot in shots], dtype=torch.float32),
        seeds=(BENCHMARK_SEED,) * len(rows),
        pairs=tuple(
            _resampled(told.get(str(row["id"])), shot[3], frames) or revisits(shot[0]) for row, shot in zip(rows, shots)
        ),
        prompts=tuple(str(row.get("prompt", "")) for row in rows),
    )


def _shot(
    folder: Path, row: dict[str, Any], config: WorldConfig, frames: int
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...], float]:
    """Poses [1 + frames, 4, 4], first picture and its intrinsics, and given frames a frame of the model."""
    from PIL import Image

    try:
        with np.load(folder / row["camera_path"], allow_pickle=False) as file:
            given, matrix, fps = file["c2w"].astype(np.float64), file["intrinsics"][0], float(file["fps"])
        with Image.open(folder / row["image_path"]) as image:
            focal = (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
            picture, intrinsics = prepare_image(image, config.height, config.width, focal)
    except (OSError, KeyError, ValueError) as error:
        raise StorageError(
            f"scene {row['id']!r} of {folder} cannot be read: {error}; download the benchmark again"
        ) from error
    pace = fps / config.fps
    index = np.round(np.arange(frames + 1) * pace).astype(int)
    if index[-1] >= len(given):
        raise SceneError(
            f"scene {row['id']!r} has {len(given)} poses at {fps:g} frames/s, {frames} frames at {config.fps:g} need "
            f"{index[-1] + 1}; ask for {int((len(given) - 1) / pace)} frames at most."
        )
    assert intrinsics is not None
    return given[index], picture, intrinsics, pace


def _told_pairs(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Revisit pairs that the benchmark names, by scene, in its frames; none where the file is missing."""
    if not path.exists():
        return {}
    try:
        scenes = json.loads(path.read_text(encoding="utf-8"))["scenes"]
        return {
            str(one["scene_id"]): [(int(pair["frame_a"]), int(pair["frame_b"])) for pair in one["evaluation_pairs"]]
            for one in scenes
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} cannot be read: {error!r}; download the benchmark again") from error


def _resampled(pairs: list[tuple[int, int]] | None, pace: float, frames: int) -> list[tuple[int, int]]:
    """Pairs of given frames as frames of the model; those beyond the clip are left out."""
    moved = [(round(one / pace), round(other / pace)) for one, other in pairs or []]
    return [pair for pair in moved if max(pair) <= frames]
