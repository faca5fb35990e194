"""Shots, filters and scale, each by itself; no structure from motion."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.sanawm_env.annotate.footage import write

from sanawm_env.annotate import scale
from sanawm_env.annotate.depth import load_depth
from sanawm_env.annotate.footage import Footage
from sanawm_env.annotate.shots import Filters, Rejected, find_shots
from sanawm_env.annotate.structure import Structure
from sanawm_env.errors import BundleError, ConfigError

SIZE = (480, 640)
FOCAL, MIDDLE = 400.0, np.array([319.5, 239.5])


def drawn(seed: int, frames: int) -> list[np.ndarray]:
    """A coarse pattern that moves to the left."""
    coarse = np.random.default_rng(seed).integers(0, 256, (15, 30, 3), dtype=np.uint8)
    fine = coarse.repeat(32, axis=0).repeat(32, axis=1)
    return [fine[:, 4 * k : 4 * k + 640] for k in range(frames)]


def test_cuts_are_found_and_figures_are_those_of_the_shot(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [*drawn(0, 12), *drawn(1, 8), *drawn(2, 20)], 10.0)
    footage = Footage.open(tmp_path / "a.mp4")
    measured = list(footage.measure())
    shots = find_shots(measured, 10.0, 100)
    assert [(shot.first, shot.count) for shot in shots] == [(0, 12), (12, 8), (20, 20)]
    assert all(0.5 < shot.figures["motion"] < 50 for shot in shots)
    assert [shot.count for shot in find_shots(measured, 10.0, 10)] == [6, 6, 8, 10, 10]
    assert len(list(footage.frames(12, 8))) == 8
    slower = Footage.open(tmp_path / "a.mp4", fps=5.0, height=240)
    frames = list(slower.frames())
    assert len(frames) == 20 and frames[0].shape == (240, 320, 3)


def test_filters_name_the_figure() -> None:
    with pytest.raises(Rejected, match="saturation is 190, kept is 0 to 180"):
        Filters().check({"motion": 3.0, "saturation": 190.0, "blur": 99.0})
    with pytest.raises(Rejected, match="view_y is 130, kept is 25 to 120"):
        Filters().check({"view_x": 60.0, "view_y": 130.0})
    with pytest.raises(ConfigError, match=r"filters\.flow"):
        Filters(flow=(3.0, 1.0))


def structure(metres: float = 0.25) -> tuple[Structure, np.ndarray]:
    """A camera that circles three points, in units of `metres`; and the points in metres [3, 3]."""
    points = np.array([[0.0, 0.0, 4.0], [1.0, 0.5, 5.0], [-1.0, 0.2, 6.0]])
    poses = np.tile(np.eye(4), (9, 1, 1))
    poses[:, 0, 3], poses[:, 2, 3] = np.linspace(0, 2, 9), np.linspace(0, 1, 9)
    seen = []
    for pose in poses:
        local = points - pose[:3, 3]
        seen.append(np.column_stack([FOCAL * local[:, :2] / local[:, 2:] + MIDDLE, local[:, 2] / metres]))
    poses[:, :3, 3] /= metres
    lens = SimpleNamespace(cam_from_img=lambda pixels: (pixels - 0.5 - MIDDLE) / FOCAL)
    return Structure(first=0, poses=poses, points=seen, camera=lens, flow=np.ones(8)), points


def test_every_source_of_scale_finds_the_metre() -> None:
    made, points = structure()
    length = float(np.hypot(2, 1))
    assert scale.from_speed(made, length / 0.8, 10.0).factor == pytest.approx(0.25)
    known = scale.Baseline(frames=(102, 106), metres=length / 2)
    assert scale.from_baseline(made, known, first=100).factor == pytest.approx(0.25)
    first, second = ([tuple(made.points[k][p, :2]) for p in (0, 2)] for k in (1, 7))
    apart = float(np.linalg.norm(points[0] - points[2]))
    told = scale.KnownLength(frames=(1, 7), first=tuple(first), second=tuple(second), metres=apart)
    assert scale.from_length(made, told, first=0).factor == pytest.approx(0.25)
    planes = []
    for seen in made.points:
        plane = np.full(SIZE, np.nan)
        plane[tuple(seen[:, :2].round().astype(int).T[::-1])] = seen[:, 2] * 0.25
        planes.append(plane)
    left, frames = iter(planes), iter([np.zeros((*SIZE, 3), np.uint8)] * 9)
    found = scale.from_depth(made, frames, lambda frame: next(left))
    assert found.factor == pytest.approx(0.25) and found.figures["depth_spread"] < 1e-9


def test_without_a_source_units_are_uncalibrated() -> None:
    made, _ = structure()
    found = scale.uncalibrated(made, "no scale given")
    assert not found.metric and found.source == "uncalibrated (no scale given)"
    assert found.factor * np.median(np.concatenate(made.points)[:, 2]) == pytest.approx(1)
    other = scale.from_baseline(made, scale.Baseline(frames=(0, 50), metres=1.0), first=0)
    assert not other.metric and "not both in this episode" in other.source
    with pytest.raises(ConfigError, match="two different frames"):
        scale.Baseline(frames=(3, 3), metres=1.0)
    with pytest.raises(ConfigError, match="expected"):
        scale.from_depth(made, iter([np.zeros((*SIZE, 3), np.uint8)] * 9), lambda frame: np.zeros((2, 2)))
    with pytest.raises(Rejected, match="no finite depth"):
        scale.from_depth(made, iter([np.zeros((*SIZE, 3), np.uint8)] * 9), lambda frame: np.zeros(SIZE))


def test_a_learned_depth_estimator_gives_metres(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `sana` is not installed")
    backbone = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
    )  # fmt: skip
    sizes = {"reassemble_hidden_size": 24, "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
    for kind in ("metric", "relative"):
        config = transformers.DepthAnythingConfig(
            backbone_config=backbone, depth_estimation_type=kind, max_depth=20, head_hidden_size=4, **sizes
        )
        transformers.DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path / kind)
        transformers.DPTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path / kind)
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    depth = load_depth(str(tmp_path / "metric"))(frame)
    assert depth.shape == (48, 64) and (depth > 0).all() and (depth < 20).all()
    with pytest.raises(BundleError, match="up to scale"):
        load_depth(str(tmp_path / "relative"))
    with pytest.raises(BundleError, match="is no depth estimator on this machine"):
        load_depth(str(tmp_path / "none"))
