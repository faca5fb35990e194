from __future__ import annotations

import numpy as np
import pytest

from sanawm_env.errors import PoseError
from sanawm_env.evaluation.camera_error import align, camera_error
from sanawm_env.rigid import homogeneous, rotation_from_vector


def path(count: int = 20) -> np.ndarray:
    rng = np.random.default_rng(0)
    return homogeneous(rotation_from_vector(rng.normal(size=(count, 3))), rng.normal(size=(count, 3)))


def moved(poses: np.ndarray, scale: float) -> np.ndarray:
    """The same path in another world of another scale."""
    turn = rotation_from_vector(np.array([0.3, -2.0, 0.4]))
    return homogeneous(turn @ poses[:, :3, :3], scale * poses[:, :3, 3] @ turn.T + [3, 4, 5])


def test_a_similarity_is_no_error() -> None:
    found = camera_error(moved(path(), 0.2), path())
    assert max(found.rotation, found.translation, found.matrix) < 1e-6 and found.scale == pytest.approx(5)
    rigid = camera_error(moved(path(), 0.2), path(), alignment="rigid")
    spread = np.linalg.norm(path()[:, :3, 3] - path()[:, :3, 3].mean(0), axis=1).mean()
    assert rigid.translation == pytest.approx(0.8 * spread) and rigid.scale == 1 and rigid.rotation < 1e-6


def test_known_errors_are_found() -> None:
    truth, off = path(), np.array([[0.02, 0, 0], [-0.02, 0, 0]] * 10)
    estimate = truth.copy()
    estimate[:, :3, :3] = truth[:, :3, :3] @ rotation_from_vector(np.radians([0.0, 0.0, 2.0]))
    found = camera_error(estimate, truth)
    assert found.rotation == pytest.approx(2) and found.translation < 1e-9
    assert found.matrix == pytest.approx(2 * np.sqrt(2) * np.sin(np.radians(1)))
    estimate = truth.copy()
    estimate[:, :3, 3] += off
    found = camera_error(estimate, truth)
    length = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum()
    assert found.translation == pytest.approx(0.02, rel=0.1) and found.relative == pytest.approx(
        found.translation / length
    )


def test_a_mirrored_path_is_not_taken_for_a_turned_one() -> None:
    points = path()[:, :3, 3]
    rotation, _, _ = align(points * [1, 1, -1], points)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_what_cannot_be_aligned_is_refused() -> None:
    straight = np.tile(np.eye(4), (5, 1, 1))
    straight[:, 0, 3] = np.arange(5)
    with pytest.raises(PoseError, match="span no plane"):
        camera_error(straight, straight)
    with pytest.raises(PoseError, match="expected"):
        camera_error(straight, straight[:4])
