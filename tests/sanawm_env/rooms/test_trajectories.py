"""Trajectories: clear of everything, replayable through the product's action maps, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sanawm_env.actions import make_action_map
from sanawm_env.errors import SceneError
from sanawm_env.rooms import clearance, sample_scenes, sample_trajectories
from sanawm_env.rooms.controllers import MARGIN
from sanawm_env.rooms.trajectories import ACTION_MAPS, LEG, MIXTURE

KINDS = tuple(MIXTURE)


@pytest.mark.parametrize("kind", KINDS)
def test_paths_stay_clear_and_are_rigid(kind: str) -> None:
    rooms = sample_scenes(range(60))
    path = sample_trajectories(rooms, range(60), 80, 10.0, kind)
    assert path.poses.shape == (60, 81, 4, 4) and path.poses.dtype == np.float64
    assert float(clearance(rooms, torch.from_numpy(path.poses[:, :, :3, 3])).min()) >= MARGIN - 1e-4
    height, top = -path.poses[:, :, 1, 3], rooms.half_size[:, 1].numpy()[:, None]
    assert (height > 0.2).all() and (height < top - 0.2).all()
    rotation = path.poses[..., :3, :3]
    assert np.abs(np.swapaxes(rotation, -1, -2) @ rotation - np.eye(3)).max() < 1e-9
    roll = np.arcsin(np.clip(-rotation[..., 1, 0], -1, 1))
    assert np.abs(roll).max() < 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_actions_lead_along_the_path(kind: str) -> None:
    rooms = sample_scenes(range(10))
    path = sample_trajectories(rooms, range(10), 140, 10.0, kind)
    action_map = make_action_map(ACTION_MAPS[kind])
    actions = path.actions[:, :, : action_map.size]
    assert action_map.limit(actions, strict=True)[1].sum() == 0
    again, _ = action_map.rollout(path.poses[:, 0], action_map.initial(10), actions, 10.0)
    np.testing.assert_allclose(again, path.poses[:, 1:], atol=1e-9)
    assert not path.actions[:, :, action_map.size :].any()


def test_the_same_seed_gives_the_same_path_in_any_batch() -> None:
    rooms = sample_scenes(range(40))
    path = sample_trajectories(rooms, range(40), 40, 10.0)
    for row in (0, 13, 39):
        alone = sample_trajectories(rooms.select([row]), [row], 25, 10.0)
        np.testing.assert_array_equal(alone.poses[0], path.poses[row, :26])
        assert alone.kinds[0] == path.kinds[row] and alone.action_maps[0] == ACTION_MAPS[path.kinds[row]]
    assert {kind for kind, share in MIXTURE.items() if share > 0.04} <= set(path.kinds)


def test_there_and_back_returns() -> None:
    rooms = sample_scenes(range(8))
    poses = sample_trajectories(rooms, range(8), 4 * LEG, 10.0, "there_and_back").poses
    for frame in (2 * LEG, 4 * LEG):
        np.testing.assert_array_equal(poses[:, frame], poses[:, 0])
    assert np.linalg.norm(poses[:, LEG, :3, 3] - poses[:, 0, :3, 3], axis=-1).mean() > 0.5


def test_loops_come_round() -> None:
    rooms = sample_scenes(range(12))
    path = sample_trajectories(rooms, range(12), 260, 10.0, "loop")
    lap = 2 * np.pi / np.abs(path.actions[:, 0, 1])
    for row, seconds in enumerate(lap):
        back = path.poses[row, round(seconds * 10)]
        assert np.linalg.norm(back[:3, 3] - path.poses[row, 0, :3, 3]) < 0.1


def test_robots_move_and_pause() -> None:
    rooms = sample_scenes(range(80))
    speed = sample_trajectories(rooms, range(80), 100, 10.0, "diff_drive").actions[..., 0]
    assert 0.3 < np.median(speed) < 0.8 and speed.max() <= 1.0
    assert 0.01 < (speed < 0.02).mean() < 0.25
    assert np.abs(np.diff(speed, axis=1)).mean() < 0.05


def test_wrong_kinds_and_counts_are_named() -> None:
    rooms = sample_scenes([1, 2])
    with pytest.raises(SceneError, match="did you mean 'loop'"):
        sample_trajectories(rooms, [1, 2], 4, 10.0, "loops")
    with pytest.raises(SceneError, match="3 seeds for 2 scenes"):
        sample_trajectories(rooms, [1, 2, 3], 4, 10.0)
