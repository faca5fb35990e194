"""Starts of worlds: pictures, rooms, poses, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sanawm_env
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import PoseError, SceneError, TaskError
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel


def picture(height: int = 32, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"image": picture(30, 40)}, SceneError, r"shape \(30, 40, 3\), allowed is uint8 \(32, 40, 3\).*prepare_image"),
        ({"image": picture().astype(np.float32)}, SceneError, "float32"),
        ({"image": np.zeros((32, 40, 4), np.uint8)}, SceneError, "alpha"),
        ({"image": picture(), "scene": 3}, SceneError, "both 'scene' and 'image'"),
        ({"image": picture(), "task": "goto"}, TaskError, "image has none.*'scene'"),
        ({"scene": {"image": picture(), "fps": 16}}, SceneError, "meant for 16 frames/s, the bundle 'tiny' runs at 10"),
        ({"scene": {"picture": picture()}}, SceneError, "unknown key 'picture' of a scene"),
        ({"scene": -4}, SceneError, "scene is -4"),
        ({"scene": "kitchen"}, SceneError, "scene 'kitchen' cannot be read.*seed of a room"),
        ({"horizon": -1}, SceneError, "horizon is -1"),
        ({"pose": np.diag([1.0, 1.0, 2.0, 1.0]), "image": picture()}, PoseError, "not rigid"),
        ({"pose": np.eye(3), "image": picture()}, PoseError, r"pose has shape \(3, 3\)"),
        ({"task": {"name": "goto", "colour": "invisible"}}, TaskError, "this room has: "),
    ],
)
def test_wrong_starts_are_named(env: SanaWMEnv, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        env.reset(seed=0, options=options)


def test_a_start_inside_a_wall_is_refused(env: SanaWMEnv) -> None:
    pose = np.eye(4)
    pose[:3, 3] = [40.0, -1.0, 0.0]
    with pytest.raises(SceneError, match="inside a wall"):
        env.reset(seed=0, options={"pose": pose})


def test_a_picture_starts_a_world_without_geometry(env: SanaWMEnv) -> None:
    pose = np.eye(4)
    pose[:3, 3] = [1.0, 2.0, 3.0]
    _, info = env.reset(seed=0, options={"image": picture(), "pose": pose})
    assert info["room"] == -1
    np.testing.assert_array_equal(info["poses"][0], pose)
    for _ in range(3):
        _, reward, terminated, truncated, _ = env.step([1.0, 0.0])
        assert (reward, terminated, truncated) == (0.0, False, False)


def test_a_mixed_batch_of_rooms_and_pictures(tiny_model: WorldModel) -> None:
    vector = SanaWMVectorEnv(2, tiny_model, task="drive")
    vector.reset(seed=0)
    vector.reset(options={"image": picture(), "reset_mask": np.array([False, True])})
    for _ in range(20):
        _, _, terminated, _, info = vector.step(np.array([[1.0, 0.0]] * 2))
    assert terminated.tolist() == [True, False]
    assert info["termination_reason"].tolist() == ["collision", ""]


def test_prepare_image_covers_crops_and_moves_the_intrinsics() -> None:
    ready, lens = sanawm_env.prepare_image(picture(100, 100), 32, 40, (50.0, 50.0, 49.5, 49.5))
    assert ready.shape == (32, 40, 3)
    assert lens == pytest.approx((20.0, 20.0, 19.8, 15.8))
    assert sanawm_env.prepare_image(np.zeros((9, 9, 4), np.uint8), 32, 40)[0].shape == (32, 40, 3)
    with pytest.raises(SceneError, match="float64"):
        sanawm_env.prepare_image(np.zeros((9, 9, 3)), 32, 40)
