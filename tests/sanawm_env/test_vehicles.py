"""Bases on omnidirectional wheels and quadrotors: exact arcs, lags, what the camera does."""

from __future__ import annotations

import numpy as np
import pytest

from sanawm_env.actions import ActionMap, make_action_map, read_action_map
from sanawm_env.errors import ActionError
from sanawm_env.rigid import about_right, about_vertical, homogeneous, vector_from_rotation

REST = np.eye(4)[None]


def drive(chosen: ActionMap, action: list[float], frames: int, pose: np.ndarray = REST) -> np.ndarray:
    poses, _ = chosen.rollout(pose, chosen.initial(1), np.tile(action, (1, frames, 1)), 10.0)
    return poses[0]


def test_a_holonomic_base_without_sideways_speed_is_a_differential_drive() -> None:
    mount = {"mount_forward": 0.3, "mount_left": -0.1, "mount_yaw": 0.4, "time_constant": 0.2}
    wheels = drive(make_action_map("diff_drive", **mount), [0.7, 0.5], 20)
    np.testing.assert_allclose(drive(make_action_map("holonomic", **mount), [0.7, 0.0, 0.5], 20), wheels, atol=1e-12)


def test_a_holonomic_base_moves_as_a_twist_in_the_plane() -> None:
    twist = drive(make_action_map("twist"), [0.4, -0.3, 0, 0, 0, 0.6], 16)
    np.testing.assert_allclose(drive(make_action_map("holonomic"), [0.4, -0.3, 0.6], 16), twist, atol=1e-12)


@pytest.mark.parametrize(
    ("column", "direction"), [(0, [0, 0, 1]), (1, [-1, 0, 0]), (2, [0, -1, 0])], ids=["forward", "left", "up"]
)
def test_a_quadrotor_without_lag_flies_as_commanded(column: int, direction: list[int]) -> None:
    end = drive(make_action_map("quadrotor", time_constant=0.0), list(np.eye(4)[column]), 10)[-1]
    np.testing.assert_allclose(end, homogeneous(np.eye(3), np.array(direction, float)), atol=1e-12)


def test_a_quadrotor_turns_left_and_then_flies_where_it_looks() -> None:
    chosen = make_action_map("quadrotor", time_constant=0.0)
    turned = drive(chosen, [0, 0, 0, 1.0], 10)[-1]
    np.testing.assert_allclose(turned[:3, :3], about_vertical(np.array(-1.0)), atol=1e-12)
    ahead = drive(chosen, [1.0, 0, 0, 0], 10, turned[None])[-1]
    np.testing.assert_allclose(ahead[:3, 3], turned[:3, 2], atol=1e-12)


def test_a_quadrotor_takes_time_to_fly() -> None:
    chosen = make_action_map("quadrotor", time_constant=0.3)
    _, motion = chosen.rollout(REST, chosen.initial(1), np.tile([1.0, 0, 0, 0], (1, 3, 1)), 10.0)
    np.testing.assert_allclose(motion[0, :3], [0, 0, 1 - np.exp(-1)], atol=1e-12)


def test_a_gimbal_keeps_the_tilt_of_the_start_pose() -> None:
    tilted = homogeneous(about_right(np.array([-0.3])), np.zeros((1, 3)))
    poses = drive(make_action_map("quadrotor"), [1.0, 0.5, 0.2, 0.0], 10, tilted)
    np.testing.assert_allclose(poses[:, :3, :3], np.broadcast_to(tilted[0, :3, :3], (10, 3, 3)), atol=1e-12)


def test_a_fixed_camera_noses_down_to_speed_up_and_levels_out_again() -> None:
    chosen = make_action_map("quadrotor", camera="fixed", lean_time_constant=0.0)
    poses = drive(chosen, [1.0, 0, 0, 0], 40)
    lean = vector_from_rotation(poses[:, :3, :3])
    gained = 1 - np.exp(-0.1 / 0.3)
    assert lean[0, 0] == pytest.approx(-np.arctan2(gained / 0.1, 9.81))  # about +x is up, so this is down
    assert poses[0, 1, 2] > 0  # the view points below the horizon, y down
    assert abs(lean[-1, 0]) < 1e-3
    np.testing.assert_allclose(drive(chosen, [0, 1.0, 0, 0], 1)[0, 1, 0], -np.sin(-lean[0, 0]), atol=1e-9)  # rolls left


@pytest.mark.parametrize("name", ["holonomic", "quadrotor"])
def test_a_chunk_in_two_halves_equals_the_whole_and_a_name_makes_it_again(name: str) -> None:
    chosen = make_action_map(name, time_constant=0.3)
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 8, chosen.size))
    start = np.tile(np.eye(4), (2, 1, 1))
    whole, _ = chosen.rollout(start, chosen.initial(2), actions, 10.0)
    first, motion = chosen.rollout(start, chosen.initial(2), actions[:, :3], 10.0)
    second, _ = read_action_map(repr(chosen)).rollout(first[:, -1], motion, actions[:, 3:], 10.0)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)


def test_wrong_options() -> None:
    with pytest.raises(ActionError, match="camera of action map 'quadrotor' is 'gimball'; did you mean 'gimbal'"):
        make_action_map("quadrotor", camera="gimball")
    with pytest.raises(ActionError, match="max_speed of action map 'holonomic' is 0"):
        make_action_map("holonomic", max_speed=0)
