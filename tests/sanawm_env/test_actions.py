"""Action maps: exact arcs, the public key presets, limits and errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanawm_env.actions import ActionMap, make_action_map, pose_vector
from sanawm_env.errors import ActionError
from sanawm_env.keys import CHOICES, parse_choice, read_script
from sanawm_env.rigid import about_right, about_vertical, body_velocity, rotation_from_vector, vector_from_rotation

REST = np.eye(4)[None]


def drive(chosen: ActionMap, actions: np.ndarray, fps: float = 10.0, pose: np.ndarray = REST) -> np.ndarray:
    poses, _ = chosen.rollout(pose, chosen.initial(1), np.asarray(actions, float)[None], fps)
    return poses[0]


def test_positive_w_turns_left_on_the_exact_arc() -> None:
    poses = drive(make_action_map("diff_drive"), np.tile([0.5, 0.5], (20, 1)))
    # One radian to the left on a circle of one metre whose centre is at x = -1.
    np.testing.assert_allclose(poses[-1, :3, 3], [np.cos(1) - 1, 0, np.sin(1)], atol=1e-12)
    np.testing.assert_allclose(poses[-1, :3, :3], about_vertical(np.array(-1.0)), atol=1e-12)


def test_diff_drive_keeps_height_and_tilt_and_swings_a_camera_off_the_axle() -> None:
    start = np.eye(4)
    start[:3, :3] = about_right(np.array(-0.3))
    start[:3, 3] = [0.0, -1.2, 0.5]
    turned = drive(make_action_map("diff_drive", mount_forward=0.5), np.tile([0.0, 1.0], (10, 1)), pose=start[None])
    np.testing.assert_allclose(turned[-1, :3, 3], [-0.5 * np.sin(1), -1.2, 0.5 * np.cos(1)], atol=1e-12)
    assert turned[-1, 1, 2] == pytest.approx(start[1, 2])


def test_twist_agrees_with_diff_drive_on_level_ground() -> None:
    by_twist = drive(make_action_map("twist"), np.tile([0.4, 0, 0, 0, 0, 0.2], (16, 1)))
    by_wheels = drive(make_action_map("diff_drive"), np.tile([0.4, 0.2], (16, 1)))
    np.testing.assert_allclose(by_twist, by_wheels, atol=1e-12)


@pytest.mark.parametrize(
    ("column", "direction"), [(0, [0, 0, 1]), (1, [-1, 0, 0]), (2, [0, -1, 0])], ids=["forward", "left", "up"]
)
def test_twist_axes(column: int, direction: list[int]) -> None:
    end = drive(make_action_map("twist"), np.tile(np.eye(6)[column], (10, 1)))[-1]
    np.testing.assert_allclose(end[:3, 3], direction, atol=1e-12)


def test_inertia_reaches_63_percent_after_the_time_constant() -> None:
    chosen = make_action_map("diff_drive", time_constant=0.5)
    _, motion = chosen.rollout(REST, chosen.initial(1), np.tile([1.0, 0.0], (1, 5, 1)), 10.0)
    assert motion[0, 0] == pytest.approx(1 - np.exp(-1))


def test_a_chunk_in_two_halves_equals_the_whole() -> None:
    for name, options in (("keys", {}), ("diff_drive", {"time_constant": 0.3}), ("twist", {"time_constant": 0.3})):
        chosen = make_action_map(name, **options)
        actions = np.random.default_rng(0).uniform(-1, 1, (3, 8, chosen.size))
        start = np.tile(REST, (3, 1, 1))
        whole, last = chosen.rollout(start, chosen.initial(3), actions, 10.0)
        first, motion = chosen.rollout(start, chosen.initial(3), actions[:, :5], 10.0)
        second, motion = chosen.rollout(first[:, -1], motion, actions[:, 5:], 10.0)
        np.testing.assert_array_equal(whole, np.concatenate([first, second], axis=1))
        np.testing.assert_array_equal(last, motion)


def test_nvlabs_coasts_after_a_release_and_a_new_press_snaps_every_axis() -> None:
    chosen = make_action_map("keys", preset="nvlabs", flavour="keyboard")
    _, motion = chosen.rollout(REST, chosen.initial(1), read_script("w-1,none-11")[None], 16.0)
    assert motion[0, 0] == pytest.approx(0.4 * np.exp(-11 / 16))
    _, snapped = chosen.rollout(REST, motion, read_script("a-1")[None], 16.0)
    np.testing.assert_allclose(snapped[0, :4], [0, 0, np.radians(9.6), 0], atol=1e-12)


def test_half_a_turn_of_the_stick_is_eased_with_the_held_time_constant() -> None:
    chosen = make_action_map("keys", preset="nvlabs")
    _, motion = chosen.rollout(REST, chosen.initial(1), np.array([[[1.0, 0, 0, 0], [0.5, 0, 0, 0]]]), 16.0)
    assert motion[0, 0] == pytest.approx(0.4 + (1 - np.exp(-1 / 16 / 0.45)) * (0.2 - 0.4))


def test_discrete_choices_equal_the_keys_they_name() -> None:
    chosen = make_action_map("keys", preset="sglang", flavour="discrete")
    assert chosen.high[0] == len(CHOICES) - 1
    by_choice = drive(chosen, np.full((5, 1), parse_choice("forward+turn_left")), fps=16.0)
    by_key = drive(make_action_map("keys", preset="sglang", flavour="keyboard"), read_script("wj-5"), fps=16.0)
    np.testing.assert_array_equal(by_choice, by_key)


def test_absolute_pose_is_reached_with_the_last_frame_when_held() -> None:
    chosen = make_action_map("pose", mode="absolute")
    goal = np.eye(4)
    goal[:3, :3] = rotation_from_vector(np.array([0.1, -0.7, 0.2]))
    goal[:3, 3] = [1.0, -0.5, 2.0]
    held = chosen.hold(REST, chosen.read(goal[None]), 8)
    poses, _ = chosen.rollout(REST, chosen.initial(1), held, 10.0)
    np.testing.assert_allclose(poses[0, -1], goal, atol=1e-12)
    np.testing.assert_allclose(poses[0, 3, :3, 3], goal[:3, 3] / 2, atol=1e-12)


def test_delta_pose_repeats_the_motion() -> None:
    end = drive(make_action_map("pose"), np.tile([0, 0, 0.1, 0, -0.1, 0], (10, 1)))[-1]
    np.testing.assert_allclose(end[:3, :3], about_vertical(np.array(-1.0)), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-3.1, 3.1), min_size=3, max_size=3))
def test_rotation_vectors_survive_a_round_trip(vector: list[float]) -> None:
    rotation = rotation_from_vector(np.array(vector))
    np.testing.assert_allclose(rotation_from_vector(vector_from_rotation(rotation)), rotation, atol=1e-7)


@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0, -0.8], [-1, -1, 1]])
def test_half_turns_survive_a_round_trip(axis: list[float]) -> None:
    rotation = rotation_from_vector(np.pi * np.array(axis) / np.linalg.norm(axis))
    np.testing.assert_allclose(rotation_from_vector(vector_from_rotation(rotation)), rotation, atol=1e-7)


def test_body_velocity_reads_back_the_action() -> None:
    poses = drive(make_action_map("diff_drive"), np.tile([0.4, 0.2], (2, 1)))
    velocity = body_velocity(poses[0], poses[1], 10.0)
    np.testing.assert_allclose(velocity, [0.4, 0, 0, 0, 0, 0.2], atol=5e-3)


def test_clipping_is_counted_and_strict_raises() -> None:
    chosen = make_action_map("diff_drive")
    inside, clipped = chosen.limit(np.array([[2.0, -3.0], [0.5, 0.5]]))
    np.testing.assert_array_equal(inside, [[1, -1], [0.5, 0.5]])
    np.testing.assert_array_equal(clipped, [2, 0])
    with pytest.raises(ActionError, match=r"'v' is 2, allowed is -1 \.\. 1 m/s"):
        chosen.limit(np.array([[2.0, 0.0]]), strict=True)


@pytest.mark.parametrize(
    ("name", "options", "action", "message"),
    [
        ("diff_drive", {}, [[np.nan, 0.0]], "'v' is nan"),
        ("diff_drive", {}, [[0.0, 0.0, 0.0]], r"shape \(1, 3\), expected \[worlds, \.\.\., 2\]"),
        ("diff_drive", {}, [["fast", "left"]], "not numeric"),
        ("diff_drive", {}, [[0.5, 0.5j]], r"holds \[\(0.5\+0j\)\] \(complex128\), allowed are real numbers"),
        ("keys", {"flavour": "discrete"}, [[11.0]], r"'choice' is 11, allowed is 0 \.\. 10"),
        ("keys", {"flavour": "keyboard"}, [[0.5] + [0] * 7], "fraction"),
    ],
)
def test_bad_actions_name_value_and_remedy(
    name: str, options: dict[str, str], action: list[list[float]], message: str
) -> None:
    with pytest.raises(ActionError, match=message):
        make_action_map(name, **options).limit(np.array(action))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("diffdrive", {}, "did you mean 'diff_drive'"),
        ("diff_drive", {"max_sped": 1.0}, "did you mean 'max_speed'"),
        ("diff_drive", {"max_speed": 0.0}, "max_speed .* is 0.0, allowed > 0"),
        ("keys", {"preset": "nvlab"}, "did you mean 'nvlabs'"),
        ("keys", {"flavour": "binary"}, "unknown flavour"),
        ("pose", {"mode": "relative"}, "mode of action map 'pose' is 'relative'"),
    ],
)
def test_unknown_names_get_the_nearest_known(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ActionError, match=message):
        make_action_map(name, **options)


def test_a_pose_that_is_not_rigid_is_refused() -> None:
    with pytest.raises(ActionError, match="not rigid"):
        pose_vector(np.diag([1.0, 2.0, 1.0, 1.0]))
    with pytest.raises(ActionError, match="allowed are real numbers"):
        make_action_map("pose").read(np.eye(4) * 1j)


def test_a_map_says_what_it_must_have() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ActionMap()  # type: ignore[abstract]


def test_looking_straight_down_has_no_heading() -> None:
    down = np.eye(4)
    down[:3, :3] = about_right(np.array(-np.pi / 2))
    with pytest.raises(ActionError, match="straight up or down"):
        drive(make_action_map("diff_drive"), np.zeros((1, 2)), pose=down[None])


def test_scripts_are_read_or_refused_by_segment() -> None:
    script = read_script("w-2, JW-1，none-3")
    assert script.shape == (6, 8)
    assert script[2].tolist() == [1, 0, 0, 0, 0, 0, 1, 0]
    with pytest.raises(ActionError, match="segment 'w-0'"):
        read_script("d-1,w-0")
