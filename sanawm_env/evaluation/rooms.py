"""How faithful a world model is to Rooms, the ray-caster it was trained on: `sanawm eval rooms`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.held_out import HeldOut, held_out
from sanawm_env.evaluation.metrics import mean_where_finite, psnr, ssim
from sanawm_env.evaluation.pose_error import Renderer, magnitude, refine, uncertainty
from sanawm_env.evaluation.rollout import Dream, Progress, dream, reconstruction
from sanawm_env.evaluation.sheet import contact_sheet, save_sheet
from sanawm_env.evaluation.streaming import streaming_error
from sanawm_env.evaluation.visibility import enough_seen, visible
from sanawm_env.world import WorldModel

HORIZONS = (1, 8, 16, 32, 64)
RETURNS = (128, 256)
POSE_HORIZONS = (8, 32, 64)
UNSURE = 1.0  # degrees by which the pose of a frame may be uncertain that is asked for it
SHEET_SCENES = 4


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many scenes take part in what is slow, and how many run together.

    group: worlds of one batch. stray: scenes of `wrong_camera`, a second rollout. ceiling: scenes of `autoencoder`,
    which needs the truth of every frame. pose: scenes of the pose error, which needs dozens of renders a frame.
    returns: scenes of there-and-back.
    """

    group: int
    stray: int
    ceiling: int
    pose: int
    returns: int


# On a CPU a larger batch is no faster, and a rendered frame costs about as much as a dreamt one.
BUDGETS = {
    "cpu": Budget(group=4, stray=8, ceiling=4, pose=8, returns=4),
    "cuda": Budget(group=32, stray=10**6, ceiling=64, pose=64, returns=8),
}
# Values of every scene by the name of their measure: [B, horizons].
Table = dict[str, list[Tensor]]


def evaluate(
    model: WorldModel,
    *,
    scenes: int = 32,
    seed: int = 0,
    device: torch.device | str | None = None,
    frames: int = 64,
    returns: Sequence[int] = RETURNS,
    sheet: str | Path | None = None,
) -> dict[str, Any]:
    """Fidelity on held-out rooms and drives, as a mapping that JSON can hold.

    Rooms have seeds from 10^9 upwards, drives are of the default mixture. Maps go from frames ahead, as text, to the
    mean over scenes: PSNR in dB (of each scene, then the mean) on the pixels visible from frame 0 (`psnr_visible`,
    and so `autoencoder`, the ceiling of any dream; `copy_first`; `wrong_camera`, the dream along another scene's
    path) and on all (`psnr_all`, `there_and_back_db`), `ssim_all`, `visible_share`; and `pose_error_degrees`,
    `pose_error_metres` on the first few scenes, of the frames that tell their pose (`telling`), as many as
    `pose_error_frames` says.

    scenes: at least 2. device: of the ray-caster, the model's if None. frames: length of the drives, rounded up to
    whole chunks. returns: frames after which the camera is back at its first pose, multiples of the first of them.
    sheet: a PNG to write, with the first scenes. Raises ConfigError and StorageError. Progress goes to standard
    error.
    """
    where = model.device if device is None else torch.device(device)
    chunk = model.config.frames_per_chunk
    drives = held_out(model.config, scenes, seed, math.ceil(frames / chunk) * chunk, where)
    if any(k % returns[0] or k % chunk for k in returns):
        raise ConfigError(
            f"returns={tuple(returns)}; allowed are multiples of the first and of a chunk's {chunk} frames"
        )
    few = min(scenes, BUDGETS[model.device.type].returns)
    back = held_out(model.config, few, seed, returns[0] // 2, where, "there_and_back") if returns else None
    horizons = [k for k in HORIZONS if k <= drives.poses.shape[1] - 1]
    driven = len(drives) + min(len(drives), BUDGETS[model.device.type].stray)
    work = driven * (drives.poses.shape[1] - 1) + (len(back) * returns[-1] if back else 0)
    with tqdm(total=work, unit="frame", desc="eval rooms") as bar:
        report, pictures = _fidelity(model, drives, horizons, bar.update)
        if back is not None:
            report["there_and_back_db"] = _there_and_back(model, back, returns, bar.update)
            report["there_and_back_scenes"] = few
    if sheet is not None:
        save_sheet(contact_sheet(*pictures, [0, *horizons]), sheet)
    return _headline(model, scenes, seed, drives.poses.shape[1] - 1) | report


def _headline(model: WorldModel, scenes: int, seed: int, frames: int) -> dict[str, Any]:
    config, device = model.config, model.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return {
        "bundle": config.name,
        "bundle_sha256": model.fingerprint,
        "device": device.type,
        "machine": machine,
        "precision": model.execution,
        "resolution": [config.height, config.width],
        "scenes": scenes,
        "seed": seed,
        "frames": frames,
    }


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A group's dream with truth beside it. truth: frames 0 and horizons. seen: what frame 0 shows of the horizons."""

    own: Dream
    truth: Tensor
    seen: Tensor


def _fidelity(
    model: WorldModel, drives: HeldOut, horizons: list[int], progress: Progress
) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """The measures along the drives, and truth and dream of the first scenes for the sheet."""
    table: Table = defaultdict(list)
    size = BUDGETS[model.device.type].group
    made: list[Judged] = []
    for group, stray in zip(drives.groups(size), drives.on_anothers_path().groups(size), strict=True):
        made.append(_judge(model, group, horizons, table, progress))
        _judge_stray(model, stray, made[-1], horizons, table, progress)
        _judge_ceiling(model, group, made[-1], horizons, table)
        _judge_poses(model, group, made[-1], horizons, table)
    pose = _pose_errors(table.pop("pose", []), [k for k in horizons if k in POSE_HORIZONS])
    joined = {name: torch.cat(rows) for name, rows in table.items()}
    counts = {f"{name}_scenes": len(joined[name]) for name in ("wrong_camera", "autoencoder")}
    report = {name: _by_horizon(values, horizons) for name, values in joined.items()} | counts | pose
    report["streaming_error"] = _streaming(model, drives, made[0].own)
    report["fps"] = sum(judged.own.made for judged in made) / sum(judged.own.seconds for judged in made)
    pairs = zip(*((judged.truth[:SHEET_SCENES], judged.own.frames[:SHEET_SCENES]) for judged in made))
    truth, dreamt = (torch.cat(rows)[:SHEET_SCENES].cpu().numpy() for rows in pairs)
    return report, (truth, dreamt)


def _judge(model: WorldModel, group: HeldOut, horizons: list[int], table: Table, progress: Progress) -> Judged:
    """Appends what is measured for every scene."""
    poses = group.poses[:, [0, *horizons]]
    truth = group.truth(poses)
    first, target = truth.rgb[:, 0], truth.rgb[:, 1:]
    seen = visible(truth.depth[:, 1:], poses[:, 1:], truth.depth[:, 0], poses[:, 0], group.intrinsics())
    own = dream(model, first, group.seeds, group.poses, [0, *horizons], progress)
    dreamt = own.frames[:, 1:].to(target.device)
    table["psnr_visible"].append(psnr(dreamt, target, seen))
    table["psnr_all"].append(psnr(dreamt, target))
    table["ssim_all"].append(ssim(dreamt, target))
    table["copy_first"].append(psnr(first[:, None].expand_as(target), target, seen))
    table["visible_share"].append(seen.double().mean((-2, -1)))
    return Judged(own=own, truth=truth.rgb, seen=seen)


def _judge_stray(
    model: WorldModel, stray: HeldOut, judged: Judged, horizons: list[int], table: Table, progress: Progress
) -> None:
    """Appends the wrong camera: the dream along another path against the truth of the own."""
    few = _rest(stray, BUDGETS[model.device.type].stray, table["wrong_camera"])
    if len(few):
        wrong = dream(model, judged.truth[: len(few), 0], few.seeds, few.poses, horizons, progress).frames
        target, seen = judged.truth[: len(few), 1:], judged.seen[: len(few)]
        table["wrong_camera"].append(psnr(wrong.to(target.device), target, seen))


def _judge_ceiling(model: WorldModel, group: HeldOut, judged: Judged, horizons: list[int], table: Table) -> None:
    """Appends what the autoencoder alone makes of the truth."""
    few = _rest(group, BUDGETS[model.device.type].ceiling, table["autoencoder"])
    if len(few):
        video = few.pictures(few.poses)
        rebuilt = reconstruction(model, video)[:, horizons].to(video.device)
        table["autoencoder"].append(psnr(rebuilt, video[:, horizons], judged.seen[: len(few)]))


def _judge_poses(model: WorldModel, group: HeldOut, judged: Judged, horizons: list[int], table: Table) -> None:
    """Appends the offsets of dreamt frames from the poses they were asked for."""
    few = _rest(group, BUDGETS[model.device.type].pose, table["pose"])
    columns = [index for index, k in enumerate(horizons) if k in POSE_HORIZONS]
    if len(few) and columns:
        seen = judged.seen[: len(few), columns]
        dreamt = judged.own.frames[: len(few), 1:][:, columns].to(seen.device)
        poses = few.poses[:, [horizons[column] for column in columns]]
        truth = judged.truth[: len(few), 1:][:, columns]
        offsets = pose_offsets(few, dreamt, truth, seen, poses)
        table["pose"].append(offsets.where(telling(few, seen, poses)[..., None], math.nan))


def _rest(group: HeldOut, limit: int, measured: list[Tensor]) -> HeldOut:
    """The scenes of a group that are still to be measured when `limit` scenes of the set are."""
    return group.part(0, limit - sum(len(rows) for rows in measured))


def pose_offsets(few: HeldOut, dreamt: Tensor, truth: Tensor, seen: Tensor, poses: Tensor) -> Tensor:
    """Offsets [B, T, 6] of dreamt frames from their poses [B, T, 4, 4], compared at half size.

    dreamt, truth: uint8 [B, T, H, W, 3], truth at the poses. seen: bool [B, T, H, W], the pixels to compare.
    """
    poses, renderer = poses.to(truth.device), _renderer(few)
    # Textures are filtered by the size of a pixel: what that changes at the right pose must not count as an offset.
    halved = _halved(dreamt.float()) - _halved(truth.float()) + renderer(poses)
    return refine(halved, poses, renderer, _compared(seen))


def telling(few: HeldOut, seen: Tensor, poses: Tensor) -> Tensor:
    """Frames bool [B, T] that tell the poses they were taken from, whatever a model makes of them: the first picture
    has shown enough of what they show, and that has structure enough. Arguments as of `pose_offsets`.
    """
    return enough_seen(seen) & (uncertainty(poses.to(seen.device), _renderer(few), _compared(seen)) < UNSURE)


def _renderer(few: HeldOut) -> Renderer:
    return lambda poses: few.pictures(poses, halved=2).float()


def _compared(seen: Tensor) -> Tensor:
    """The pixels [B, T, h, w] of pictures of half the size that were seen as a whole."""
    return _halved(seen[..., None].float())[..., 0] == 1


def _halved(pictures: Tensor) -> Tensor:
    """Pictures [B, T, H, W, C] at half the size, each pixel the mean of four."""
    flat = functional.avg_pool2d(pictures.flatten(0, 1).movedim(-1, 1), 2)
    return flat.movedim(1, -1).unflatten(0, pictures.shape[:2])


def _pose_errors(offsets: list[Tensor], horizons: list[int]) -> dict[str, Any]:
    if not offsets:
        return {}
    degrees, metres = magnitude(torch.cat(offsets))
    return {
        "pose_error_degrees": _by_horizon(degrees, horizons),
        "pose_error_metres": _by_horizon(metres, horizons),
        "pose_error_frames": {str(k): int(count) for k, count in zip(horizons, degrees.isfinite().sum(0))},
    }


def _streaming(model: WorldModel, group: HeldOut, own: Dream) -> float:
    """The streamed and the one-pass denoiser on the first scene's dream."""
    first = group.part(0, 1)
    return streaming_error(model, own.latents[:1], first.poses[:, 0], first.poses[:, 1:], first.intrinsics())


def _there_and_back(model: WorldModel, drives: HeldOut, returns: Sequence[int], progress: Progress) -> dict[str, Any]:
    return _by_horizon(returned(model, drives, returns, progress), list(returns))


def returned(model: WorldModel, drives: HeldOut, returns: Sequence[int], progress: Progress) -> Tensor:
    """PSNR [B, returns] of the frames at which the camera is back at its first pose, going out and back again and
    again. drives: there-and-back ones, of half the first of `returns`."""
    out = drives.poses[:, 1:]
    lap = torch.cat([out, out[:, :-1].flip(1), drives.poses[:, :1]], dim=1)
    poses = torch.cat([drives.poses[:, :1], *[lap] * (returns[-1] // returns[0])], dim=1)
    first = drives.pictures(poses[:, :1])
    made = dream(model, first[:, 0], drives.seeds, poses, returns, progress).frames
    return psnr(made.to(first.device), first.expand(-1, len(returns), -1, -1, -1))


def _by_horizon(values: Tensor, horizons: Sequence[int]) -> dict[str, float | None]:
    """Mean over scenes of values [B, horizons], rounded; None where no scene has one."""
    means = (mean_where_finite(column) for column in values.unbind(1))
    return {str(k): None if math.isnan(mean) else round(mean, 4) for k, mean in zip(horizons, means)}
