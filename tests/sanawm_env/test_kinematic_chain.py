"""A camera on a robot arm, moved by its joints: where kinematics put it, and files that do not fit."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from sanawm_env.actions import make_action_map, read_action_map
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ActionError, MissingExtraError
from sanawm_env.rigid import about_right, about_vertical, homogeneous

# A mast that turns about the vertical, an elbow 0.5 m ahead, a slide; MuJoCo's world has z up and x ahead.
MJCF = """<mujoco><worldbody><body name="mast"><joint name="pan" axis="0 0 1" range="-90 90"/><geom size=".1"/>
<body name="elbow" pos=".5 0 0"><joint name="tilt" axis="0 1 0"/><geom size=".1"/>
<body name="hand" pos="0 0 0"><joint name="reach" type="slide" axis="1 0 0" range="0 .2"/><geom size=".1"/>
<camera name="wrist" xyaxes="0 -1 0 0 0 1"/></body></body></body></worldbody></mujoco>"""
URDF = """<robot name="arm"><link name="base"/>
<link name="mast"><inertial><mass value="1"/>
<inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial></link>
<link name="camera_link"/>
<joint name="pan" type="continuous"><parent link="base"/><child link="mast"/><axis xyz="0 0 1"/></joint>
<joint name="mount" type="fixed"><parent link="mast"/><child link="camera_link"/>
<origin xyz="0.5 0 0"/></joint></robot>"""


@pytest.fixture
def arm(tmp_path: Path) -> str:
    pytest.importorskip("mujoco", reason="the extra `mujoco` is not installed")
    (tmp_path / "arm.xml").write_text(MJCF)
    return str(tmp_path / "arm.xml")


def test_joints_swing_the_camera_about_their_axes(arm: str) -> None:
    chosen = make_action_map("kinematic_chain", robot=arm, link="wrist")
    assert chosen.columns == ("pan", "tilt", "reach")
    assert chosen.units == ("rad/s", "rad/s", "m/s")
    start = homogeneous(np.eye(3)[None], np.array([[1.0, -1.2, 2.0]]))
    pan, _ = chosen.rollout(start, chosen.initial(1), np.tile([1.0, 0, 0], (1, 10, 1)), 10.0)
    # Half a metre ahead of the mast: one radian to the left about a point half a metre behind the camera.
    np.testing.assert_allclose(pan[0, -1, :3, :3], about_vertical(np.array(-1.0)), atol=1e-9)
    np.testing.assert_allclose(pan[0, -1, :3, 3], [1 - 0.5 * np.sin(1), -1.2, 1.5 + 0.5 * np.cos(1)], atol=1e-9)
    tilt, _ = chosen.rollout(start, chosen.initial(1), np.tile([0, -0.5, 0], (1, 10, 1)), 10.0)
    np.testing.assert_allclose(tilt[0, -1, :3, :3], about_right(np.array(0.5)), atol=1e-9)
    np.testing.assert_allclose(tilt[0, -1, :3, 3], start[0, :3, 3], atol=1e-9)


def test_joints_stop_at_their_limits(arm: str) -> None:
    chosen = make_action_map("kinematic_chain", robot=arm, link="wrist")
    poses, motion = chosen.rollout(np.eye(4)[None], chosen.initial(1), np.tile([1.0, 0, 0.5], (1, 30, 1)), 10.0)
    np.testing.assert_allclose(motion[0], [np.pi / 2, 0, 0.2])
    np.testing.assert_allclose(poses[0, -1, :3, 2], [-1, 0, 0], atol=1e-9)


def test_a_fixed_link_of_a_urdf_is_there_and_looks_as_its_axes_say(tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="the extra `mujoco` is not installed")
    (tmp_path / "arm.urdf").write_text(URDF)
    chosen = make_action_map("kinematic_chain", robot=str(tmp_path / "arm.urdf"), link="camera_link", axes="body")
    poses, _ = chosen.rollout(np.eye(4)[None], chosen.initial(1), np.tile([1.0], (1, 10, 1)), 10.0)
    np.testing.assert_allclose(poses[0, -1, :3, :3], about_vertical(np.array(-1.0)), atol=1e-9)
    np.testing.assert_allclose(poses[0, -1, :3, 3], [-0.5 * np.sin(1), 0, 0.5 * np.cos(1) - 0.5], atol=1e-9)


def test_it_drives_an_environment_and_goes_through_copies_and_snapshots(arm: str, tiny_model: object) -> None:
    options = {"robot": arm, "link": "hand", "axes": "body", "joints": ["pan", "reach"]}
    env = SanaWMEnv(tiny_model, action_map="kinematic_chain", action_options=options, task="drive")  # type: ignore[arg-type]
    assert env.action_space.shape == (2,)
    env.reset(seed=0)
    taken = env.get_state()
    expected = env.step([0.5, 0.1])[4]["poses"]
    env.set_state(taken)
    np.testing.assert_array_equal(env.step([0.5, 0.1])[4]["poses"], expected)
    for again in (read_action_map(repr(env.action_map)), copy.deepcopy(env.action_map)):
        assert again == env.action_map
        poses, _ = again.rollout(taken.world.pose.numpy(), again.initial(1), np.tile([0.5, 0.1], (1, 8, 1)), 10.0)
        np.testing.assert_array_equal(poses[0], expected)
    assert pickle.loads(pickle.dumps(env.action_map)) == env.action_map


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"link": "wirst"}, "no link 'wirst'; did you mean 'wrist'. Known: elbow, hand, mast, world, wrist"),
        ({"link": "wrist", "joints": ["pann"]}, "no joint 'pann'; did you mean 'pan'"),
        ({"link": "wrist", "axes": "ros"}, "axes of action map 'kinematic_chain' is 'ros'"),
        ({}, "action map 'kinematic_chain' needs link"),
    ],
)
def test_what_a_robot_does_not_have_is_named(arm: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ActionError, match=message):
        make_action_map("kinematic_chain", robot=arm, **options)


def test_files_that_are_no_robot(tmp_path: Path, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ActionError, match="which is no file"):
        make_action_map("kinematic_chain", robot=str(tmp_path / "none.xml"), link="wrist")
    (tmp_path / "broken.xml").write_text("<mujoco><worldbody>")
    with pytest.raises(ActionError, match="cannot be read"):
        make_action_map("kinematic_chain", robot=str(tmp_path / "broken.xml"), link="wrist")
    (tmp_path / "still.xml").write_text("<mujoco><worldbody><camera name='wrist'/></worldbody></mujoco>")
    with pytest.raises(ActionError, match="no hinge or slide"):
        make_action_map("kinematic_chain", robot=str(tmp_path / "still.xml"), link="wrist")
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MissingExtraError, match=r"sanawm-env\[mujoco\]"):
        make_action_map("kinematic_chain", robot=arm, link="wrist")
