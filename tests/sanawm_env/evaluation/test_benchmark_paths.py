"""Paths of the benchmark keep their caps and margins, and the splines under them are the ones they are named for."""

from __future__ import annotations

import numpy as np
import pytest

from sanawm_env.errors import ConfigError, PoseError
from sanawm_env.evaluation.benchmark_paths import (
    SLOWER,
    TEMPLATES,
    Caps,
    catmull_rom,
    make_path,
    revisits,
    squad,
    template_of,
)
from sanawm_env.rigid import about_right, about_vertical, homogeneous, rotation_from_vector, vector_from_rotation

FPS, FRAMES = 10.0, 64
START = homogeneous(about_vertical(np.array(0.4)) @ about_right(np.array(-0.1)), np.array([0.3, -1.2, 0.1]))


def open_air(points: np.ndarray) -> np.ndarray:
    return np.full(len(points), 9.0)


def path(split: str, name: str, **other: object) -> tuple[np.ndarray, float]:
    told = {"median_depth": 2.5, "frames": FRAMES, "fps": FPS, "seed": 3, "clearance": open_air, **other}
    made = make_path(split, name, START, **told)  # type: ignore[arg-type]
    assert made is not None
    return made


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in TEMPLATES.items() for name in names])
def test_every_template_keeps_its_caps(split: str, name: str) -> None:
    caps = Caps()
    for frames, fps in ((FRAMES, FPS), (240, 16.0)):
        poses, share = path(split, name, frames=frames, fps=fps)
        steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
        turned = vector_from_rotation(np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3])
        assert share == 1 and poses.shape == (frames + 1, 4, 4)
        np.testing.assert_allclose(poses[0], START, atol=1e-9)
        np.testing.assert_allclose(
            poses[:, :3, :3] @ np.swapaxes(poses[:, :3, :3], 1, 2), np.eye(3)[None].repeat(len(poses), 0), atol=1e-9
        )
        assert steps.max() * fps <= caps.metres_per_second + 1e-9
        assert np.degrees(np.linalg.norm(turned, axis=1)).max() * fps <= caps.degrees_per_second + 1e-9
        assert 0.4 < steps.sum() <= caps.depth_share * 2.5
        centred = poses[:, :3, 3] - poses[:, :3, 3].mean(0)
        assert np.linalg.svd(centred)[1][1] > 0.02, "centres on a line cannot be aligned"


def test_splits_have_ten_templates_each_in_turns() -> None:
    assert [len(names) for names in TEMPLATES.values()] == [10, 10]
    assert [template_of("hard", k) for k in range(20)] == list(TEMPLATES["hard"]) * 2


def test_a_near_wall_slows_a_path_down() -> None:
    free = path("simple", "forward")[0]
    ahead = START[:3, 2]
    reach = ((free[:, :3, 3] - START[:3, 3]) @ ahead).max()

    def wall(distance: float):  # type: ignore[no-untyped-def]
        return lambda points: distance - (points - START[:3, 3]) @ ahead

    poses, share = path("simple", "forward", clearance=wall(0.3 + 0.6 * reach))
    assert share == pytest.approx(SLOWER**2)
    assert wall(0.3 + 0.6 * reach)(poses[:, :3, 3]).min() >= 0.3
    arguments = {"median_depth": 2.5, "frames": FRAMES, "fps": FPS, "seed": 3}
    assert make_path("simple", "forward", START, clearance=wall(0.35), **arguments) is None  # type: ignore[arg-type]


def test_a_path_follows_from_its_seed() -> None:
    one, other = path("hard", "spiral")[0], path("hard", "spiral", seed=4)[0]
    np.testing.assert_array_equal(one, path("hard", "spiral")[0])
    assert np.abs(one - other).max() > 0.005


def test_catmull_rom_goes_through_its_points_with_the_tangents_of_the_centripetal_form() -> None:
    points = np.random.default_rng(0).normal(size=(7, 3))
    whole = np.arange(6)
    np.testing.assert_allclose(catmull_rom(points, whole, np.zeros((6, 1))), points[:6], atol=1e-12)
    np.testing.assert_allclose(catmull_rom(points, whole, np.ones((6, 1))), points[1:], atol=1e-12)
    # As a cubic Hermite curve: tangents from Bessel's parabolas over knots at square roots of the chords.
    a, b, c, d = points[2:6]
    gaps = [np.linalg.norm(q - p) ** 0.5 for p, q in ((a, b), (b, c), (c, d))]
    first = ((b - a) / gaps[0] - (c - a) / (gaps[0] + gaps[1]) + (c - b) / gaps[1]) * gaps[1]
    last = ((c - b) / gaps[1] - (d - b) / (gaps[1] + gaps[2]) + (d - c) / gaps[2]) * gaps[1]
    for t in (0.2, 0.5, 0.9):
        known = (2 * t**3 - 3 * t**2 + 1) * b + (t**3 - 2 * t**2 + t) * first
        known = known + (3 * t**2 - 2 * t**3) * c + (t**3 - t**2) * last
        np.testing.assert_allclose(catmull_rom(points, np.array([3]), np.array([[t]]))[0], known, atol=1e-12)


def test_squad_goes_through_its_rotations_and_keeps_an_even_turn_even() -> None:
    rotations = rotation_from_vector(0.4 * np.random.default_rng(1).normal(size=(6, 3)))
    whole = np.arange(5)
    np.testing.assert_allclose(squad(rotations, whole, np.zeros((5, 1))), rotations[:5], atol=1e-12)
    np.testing.assert_allclose(squad(rotations, whole, np.ones((5, 1))), rotations[1:], atol=1e-12)
    even = about_vertical(np.arange(5) * 0.3)
    np.testing.assert_allclose(
        squad(even, np.array([2]), np.array([[0.25]]))[0], about_vertical(np.array(0.675)), atol=1e-9
    )


def test_revisits_are_where_the_camera_was_away() -> None:
    out = np.linspace(0, 1, 21)
    places = np.stack([np.concatenate([out, out[-2::-1]]), np.zeros(41), np.zeros(41)], axis=-1)
    pairs = revisits(homogeneous(np.eye(3)[None].repeat(41, 0), places))
    assert len(pairs) == 5 and all(i + j == 40 for i, j in pairs)
    assert revisits(homogeneous(np.eye(3)[None].repeat(21, 0), places[:21])) == []
    turned = about_vertical(np.radians(np.concatenate([np.arange(0, 31, 3), np.arange(27, -1, -3)])))
    assert all(i + j == 20 for i, j in revisits(homogeneous(turned, np.zeros((21, 3)))))
    assert revisits(homogeneous(turned / 1, np.zeros((21, 3)))) != []


def test_what_cannot_be_is_refused() -> None:
    tilted = homogeneous(rotation_from_vector(np.array([0.0, 0.0, 0.3])), np.zeros(3))
    with pytest.raises(PoseError, match="without roll"):
        make_path("simple", "forward", tilted, 2.0, 8, 10.0, seed=0, clearance=open_air)
    with pytest.raises(ConfigError, match="above 0"):
        Caps(metres_per_second=0.0)
