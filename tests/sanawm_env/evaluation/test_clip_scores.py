"""Scores of a clip against cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sanawm_env.evaluation.clip_scores import PARTS, Shown, camera_scores, learned_scores, pixel_scores, score
from sanawm_env.evaluation.perceptual import NOT_AVAILABLE, Perceptual
from sanawm_env.evaluation.pictures import sharpness
from sanawm_env.evaluation.pose_estimators import Estimate
from sanawm_env.rigid import homogeneous, rotation_from_vector

FRAMES = 40


def stripes(strength: np.ndarray) -> torch.Tensor:
    """Grey frames [T, 16, 16, 3] with upright stripes of 128 +- strength [T]."""
    column = np.where(np.arange(16) % 2, 1, -1)
    grey = 128 + strength[:, None, None] * column[None, None]
    return torch.from_numpy(np.broadcast_to(grey[..., None], (len(strength), 16, 16, 3)).astype(np.uint8).copy())


def clip(frames: torch.Tensor, truth: torch.Tensor | None, **other: Any) -> Shown:
    seen = None
    if truth is not None:
        seen = torch.zeros(truth.shape[:3], dtype=torch.bool)
        seen[:, :, :8] = True
    told = {"frames": frames, "truth": truth, "seen": seen, "picture": frames[0], "pairs": [], "chunk": 8, **other}
    return Shown(**told)


def test_a_perfect_clip_scores_perfectly() -> None:
    frames = stripes(20 + np.arange(FRAMES + 1) ** 2 % 40)
    found = pixel_scores(clip(frames, frames, pairs=[(0, 0), (3, 3)]))
    assert found["psnr"] > 97 and found["ssim"] == pytest.approx(1) and found["revisit"] == found["revisit_truth"] > 97
    assert found["sharpness"] == found["sharpness_seen"] == found["sharpness_unseen"] == found["flicker"] == 1
    assert found["delta_iq"] == 0 and found["visible_share"] == 0.5
    assert len(found["psnr_curve"]) == PARTS


def test_sharpness_is_told_apart_by_what_was_seen_and_over_time() -> None:
    truth = stripes(np.full(FRAMES + 1, 40.0))
    frames = truth.clone()
    frames[:, :, 8:] = stripes(np.full(FRAMES + 1, 10.0))[:, :, 8:]
    found = pixel_scores(clip(frames, truth))
    assert found["sharpness_seen"] == 1 and found["sharpness_unseen"] == pytest.approx(0.25)
    assert found["psnr"] > 97 > 30 > found["psnr_all"]
    fading = stripes(np.concatenate([[40.0], np.repeat([40.0, 30.0, 20.0, 10.0], FRAMES // 4)]))
    assert pixel_scores(clip(fading, truth))["delta_iq"] == pytest.approx(0.75)
    alone = pixel_scores(clip(fading, None))
    assert alone["delta_iq"] == pytest.approx(0.75) and "psnr" not in alone


def test_flicker_and_seams_are_found() -> None:
    truth = stripes(30 + np.arange(FRAMES + 1) % 2 * 2.0)
    frames = stripes(30 + np.arange(FRAMES + 1) % 2 * 6.0)
    assert pixel_scores(clip(frames, truth))["flicker"] == pytest.approx(3)
    jumps = stripes(30 + np.arange(FRAMES + 1) % 2 + 10.0 * ((np.arange(FRAMES + 1) + 7) // 8 % 2))
    assert pixel_scores(clip(jumps, truth))["seam"] > 2


def test_masked_sharpness_counts_neighbours_inside_alone() -> None:
    frames = stripes(np.array([30.0]))
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    assert bool(sharpness(frames, mask).isnan())
    mask[:, :, :3] = True  # 2 pairs across of 60 grey levels and 45 down of none, in rows of three
    assert float(sharpness(frames, mask)) == pytest.approx(60 * 32 / (32 + 45))
    assert float(sharpness(frames, torch.ones_like(mask))) == float(sharpness(frames))


def path(speed: float) -> np.ndarray:
    angle = np.linspace(0, 2, 21)
    places = speed * np.stack([1 - np.cos(angle), np.zeros(21), np.sin(angle)], axis=-1)
    return homogeneous(rotation_from_vector(angle[:, None] * [0.0, 1.0, 0.0]), places)


def test_half_the_speed_scores_the_same_only_when_aligned_by_scale() -> None:
    asked, frames = torch.from_numpy(path(1.0)), np.arange(0, 21, 4)
    exact, half = (
        camera_scores(Estimate(frames=frames, poses=path(speed)[frames], metric=True), asked) for speed in (1.0, 0.5)
    )
    assert max(value for name, value in exact.items() if name != "pose_frames") < 1e-6
    for name in ("rot_err", "trans_err", "cam_mc"):
        assert half[name] == pytest.approx(exact[name], abs=1e-6)
    off = 0.5 * np.linalg.norm(path(1.0)[frames, :3, 3], axis=1).mean()
    assert half["trans_err_first"] == pytest.approx(off) and half["rot_err_first"] < 1e-6
    assert half["trans_err_rigid"] > 0.1 and half["rot_err_rigid"] < 1e-6
    unscaled = camera_scores(Estimate(frames=frames, poses=path(0.5)[frames], metric=False), asked)
    assert unscaled["rot_err"] < 1e-6 and unscaled["trans_err_first"] is None


def test_paths_that_cannot_be_aligned_have_only_what_can_be_said() -> None:
    straight = np.tile(np.eye(4), (9, 1, 1))
    straight[:, 2, 3] = np.arange(9)
    found = camera_scores(Estimate(frames=np.arange(9), poses=straight, metric=True), torch.from_numpy(straight))
    assert found["rot_err"] is None and found["trans_err_first"] == 0
    assert camera_scores(None, torch.from_numpy(straight))["cam_mc_first"] is None


def test_learned_scores_are_taken_where_they_are() -> None:
    frames = stripes(np.full(FRAMES + 1, 20.0))
    assert learned_scores(clip(frames, frames), Perceptual()) == {"lpips": NOT_AVAILABLE, "quality": NOT_AVAILABLE}
    there = Perceptual(
        lpips=lambda one, other: (one != other).float().mean((1, 2, 3)), quality=lambda one: one.float().mean((1, 2, 3))
    )
    found = learned_scores(clip(frames, frames), there)
    assert found["lpips"] == 0 and found["quality"] == pytest.approx(128, abs=1)
    told = score(clip(frames, None), None, torch.eye(4).expand(FRAMES + 1, 4, 4), there)
    assert told["lpips"] is None and told["revisit"] is None and told["seam"] is None
