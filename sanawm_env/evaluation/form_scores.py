"""What an ablation is judged by: scores of a world on each of a few held-out rooms, as JSON holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.clip_scores import Shown, camera_scores, pixel_scores
from sanawm_env.evaluation.held_out import HeldOut, held_out
from sanawm_env.evaluation.metrics import psnr
from sanawm_env.evaluation.pose_estimators import by_rendering, numbers_of
from sanawm_env.evaluation.rollout import dream
from sanawm_env.evaluation.rooms import returned
from sanawm_env.evaluation.visibility import visible
from sanawm_env.evaluation.world_clips import Clips
from sanawm_env.evaluation.world_figures import Measure
from sanawm_env.rooms import Render
from sanawm_env.world import WorldModel

HORIZONS = (8, 32, 64)
GROUPS = {"cpu": 4, "cuda": 16}  # rooms of a batch
MEASURES = (
    Measure("psnr_8", "PSNR of visible pixels, 8 frames ahead, dB", 2),
    Measure("psnr_32", "PSNR, 32 frames ahead, dB", 2),
    Measure("psnr_64", "PSNR, 64 frames ahead, dB", 2),
    Measure("sharpness_unseen", "sharpness of unseen areas over the truth's", 3, ideal=1.0),
    Measure("back", "PSNR back at frame 0, dB", 2),
    Measure("rot_err_first", "RotErr, degrees", 2, -1),
    Measure("trans_err_first", "TransErr, m", 3, -1),
)
Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Judging:
    """scenes: held-out rooms, 2 or more; seed: of the held-out set. frames: of the drives, whole chunks, by the mixture
    of drives that training sees. back: frames of a drive there and back, of so many of the rooms as `back_scenes` says;
    0 for none. pose_every: frames between two whose pose is estimated, 0 for none.
    """

    scenes: int = 32
    seed: int = 7
    frames: int = 64
    back: int = 128
    back_scenes: int = 16
    pose_every: int = 8

    def __post_init__(self) -> None:
        if min(self.back, self.back_scenes, self.pose_every) < 0 or self.back % 2 or self.frames < 1:
            raise ConfigError(
                f"back is {self.back}, back_scenes {self.back_scenes}, pose_every {self.pose_every}, frames "
                f"{self.frames}; allowed are an even number, whole numbers >= 0, and frames >= 1."
            )


class Drive(NamedTuple):
    """A group of rooms, what is seen on the way through them, and which of its pixels [B, T, H, W] the first picture
    shows.
    """

    rooms: HeldOut
    truth: Render
    seen: Tensor


def drives_of(model: WorldModel, asked: Judging) -> list[Drive]:
    """The drives that worlds of the size, rate and device of this one are judged on. ConfigError: they are no whole
    chunks.
    """
    chunk = model.config.frames_per_chunk
    if asked.frames % chunk or asked.back % chunk:
        raise ConfigError(f"frames is {asked.frames}, back {asked.back}; allowed are whole chunks of {chunk} frames.")
    drives = []
    everything = held_out(model.config, asked.scenes, asked.seed, asked.frames, model.device)
    for rooms in everything.groups(GROUPS[model.device.type]):
        truth = rooms.truth(rooms.poses)
        poses = rooms.poses.to(truth.depth.device)
        seen = visible(truth.depth, poses, truth.depth[:, 0], poses[:, 0], rooms.intrinsics())
        drives.append(Drive(rooms, truth, seen))
    return drives


def judge(model: WorldModel, asked: Judging, drives: list[Drive] | None = None) -> list[Line]:
    """Scores of each room, {"clip": number, "scores": by the names of `MEASURES`}; None, or no score, where there is
    nothing to measure. drives: of `drives_of` another world of the same size, rate and device. ConfigError: drives are
    no whole chunks."""
    config, device = model.config, model.device
    lines: list[Line] = []
    for drive in drives_of(model, asked) if drives is None else drives:
        scored = _driven(model, drive, asked)
        lines += [{"clip": len(lines) + row, "scores": scores} for row, scores in enumerate(scored)]
    few = min(asked.scenes, asked.back_scenes)
    if few and asked.back:
        there = held_out(config, max(2, few), asked.seed, asked.back // 2, device, "there_and_back")
        values = [
            value
            for group in there.groups(GROUPS[device.type])
            for value in returned(model, group, (asked.back,), lambda done: None)[:, 0].tolist()
        ]
        for line, value in zip(lines, values, strict=False):
            line["scores"]["back"] = _plain(value)
    return lines


@torch.no_grad()
def _driven(model: WorldModel, drive: Drive, asked: Judging) -> list[Line]:
    """Scores of a group along its drives."""
    group, told, seen = drive
    frames, horizons = group.poses.shape[1] - 1, [k for k in HORIZONS if k < group.poses.shape[1]]
    made = dream(model, told.rgb[:, 0], group.seeds, group.poses, range(frames + 1), lambda done: None)
    shown = made.frames.to(told.rgb.device)
    levels = psnr(shown[:, horizons], told.rgb[:, horizons], seen[:, horizons])
    estimates: Sequence[Any] = [None] * len(group)
    if asked.pose_every:
        numbers = numbers_of(frames, asked.pose_every)
        estimates = by_rendering(_clips(group, told.rgb[:, 0]), shown, told.rgb, seen, numbers)
    scores = []
    for row, estimate in enumerate(estimates):
        clip = Shown(
            frames=shown[row],
            truth=told.rgb[row],
            seen=seen[row],
            picture=told.rgb[row, 0],
            pairs=[],
            chunk=model.config.frames_per_chunk,
        )
        found = {f"psnr_{k}": float(level) for k, level in zip(horizons, levels[row], strict=True)}
        found |= pixel_scores(clip) | camera_scores(estimate, group.poses[row])
        scores.append({name.key: _plain(found[name.key]) for name in MEASURES if name.key in found})
    return scores


def _clips(group: HeldOut, pictures: Tensor) -> Clips:
    count = len(group)
    return Clips(
        names=tuple(f"room {seed}" for seed in group.seeds),
        templates=("",) * count,
        poses=group.poses,
        pictures=pictures,
        intrinsics=group.intrinsics(),
        seeds=group.seeds,
        pairs=([],) * count,
        prompts=("",) * count,
        rooms=group,
    )


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 5)
