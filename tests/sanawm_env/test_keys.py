"""The key presets give the trajectories of the public programs: by hand, step by step, and by diffusers' own code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from diffusers.pipelines.sana_wm.cam_utils import action_string_to_c2w

from sanawm_env.actions import make_action_map
from sanawm_env.keys import read_script

# Every key alone and combined, opposite keys, releases, new presses while coasting, and both pitch limits crossed.
SCRIPTS = {
    "each key": "w-5,s-5,a-5,d-5,i-5,k-5,j-5,l-5",
    "combined": "wl-20,wjd-15,sak-10,wasd-4,none-12,wi-9,dl-7",
    "opposite": "ws-6,ad-6,jl-6,ik-6,wsl-6",
    "released and pressed again": "w-6,none-5,l-3,none-20,wl-4,w-7,wd-3,none-30",
    "looking up": "wi-110,d-5,k-20,wl-10,ik-3",
    "looking down": "lk-130,w-5,i-60,none-15,sj-8",
}


@dataclass(frozen=True)
class Program:
    """A column of the table in spec rollout.md 5.3: per frame at 16 frames/s, angles in degrees."""

    keys: dict[str, str]
    metres: float
    degrees: float
    limit: float
    saturating: bool
    smooth: bool
    steering: float
    epsilon: float


OLD = {"forward": "w", "back": "s", "left": "a", "right": "d", "turn_left": "j", "turn_right": "l"}
NEW = OLD | {"left": "j", "right": "l", "turn_left": "a", "turn_right": "d"}
PROGRAMS = {
    "nvlabs": Program(NEW, 0.025, 0.6, 60, saturating=True, smooth=True, steering=0, epsilon=1e-6),
    "diffusers": Program(OLD, 0.05, 1.2, 85, saturating=False, smooth=False, steering=0, epsilon=0),
    "sglang": Program(OLD, 0.04, 1.2, 85, saturating=False, smooth=False, steering=0.4, epsilon=1e-6),
}


def pressed_in(script: str) -> list[set[str]]:
    """The keys of each frame."""
    segments = [segment.split("-") for segment in script.split(",")]
    return [set() if keys == "none" else set(keys) for keys, count in segments for _ in range(int(count))]


def targets(program: Program, held: set[str]) -> np.ndarray:
    """What keys ask for in a frame: forward and right in metres, yaw to the right and pitch upwards in radians."""

    def sign(more: str, less: str) -> int:
        return (program.keys[more] in held) - (program.keys[less] in held)

    strafe, turn = sign("right", "left"), math.radians(program.degrees)
    yaw = sign("turn_right", "turn_left") + program.steering * strafe
    pitch = ("i" in held) - ("k" in held)
    return np.array([program.metres * sign("forward", "back"), program.metres * strafe, turn * yaw, turn * pitch])


def trajectory(program: Program, script: str) -> np.ndarray:
    """Poses [F, 4, 4] of a script, one scalar step after another (spec rollout.md 5.2 to 5.4)."""
    position, yaw, pitch = np.zeros(3), 0.0, 0.0
    velocity, before, poses = np.zeros(4), set[str](), []
    for held in pressed_in(script):
        target = targets(program, held)
        if not program.smooth or held - before:
            velocity = target
        else:
            share = [1 - math.exp(-1 / 16 / (0.45 if abs(aim) > 1e-12 else 1.0)) for aim in target]
            velocity = velocity + np.array(share) * (target - velocity)
        before = held
        ahead, right, turn, tilt = velocity
        limit, wanted = math.radians(program.limit), pitch + tilt
        if program.saturating:
            pitch = min(max(wanted, -limit), limit)
        elif abs(wanted) <= limit:
            pitch = wanted
        yaw += turn
        level = math.cos(pitch) / (math.cos(pitch) + program.epsilon)
        position = position + ahead * level * np.array([math.sin(yaw), 0, math.cos(yaw)])
        position = position + right / (1 + program.epsilon) * np.array([math.cos(yaw), 0, -math.sin(yaw)])
        poses.append(camera(yaw, pitch, position))
    return np.stack(poses)


def camera(yaw: float, pitch: float, position: np.ndarray) -> np.ndarray:
    """Camera to world, x right, y down, z forward, turned right by the yaw and then upwards by the pitch."""
    c, s, up, level = math.cos(yaw), math.sin(yaw), math.sin(pitch), math.cos(pitch)
    pose = np.eye(4)
    pose[:3, 0] = [c, 0, -s]
    pose[:3, 1] = [s * up, level, c * up]
    pose[:3, 2] = [s * level, -up, c * level]
    pose[:3, 3] = position
    return pose


def ours(preset: str, script: str) -> np.ndarray:
    chosen = make_action_map("keys", preset=preset, flavour="keyboard")
    poses, _ = chosen.rollout(np.eye(4)[None], chosen.initial(1), read_script(script)[None], 16.0)
    return poses[0]


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("preset", PROGRAMS)
def test_a_preset_is_its_program_step_by_step(preset: str, script: str) -> None:
    np.testing.assert_allclose(ours(preset, script), trajectory(PROGRAMS[preset], script), rtol=0, atol=1e-9)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_diffusers_is_diffusers_own_function(script: str) -> None:
    theirs = action_string_to_c2w(script)  # float32, the identity first
    np.testing.assert_allclose(ours("diffusers", script), theirs[1:], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("preset", "script", "x", "z", "heading"),
    [
        # 0.05 * (sin 1.2 + sin 2.4), 0.05 * (cos 1.2 + cos 2.4)
        ("diffusers", "wl-2", 0.00314091, 0.09994518, 2.4),
        # Straight and sideways at full speed each: no common length.
        ("diffusers", "wd-3", 0.15, 0.15, 0.0),
        # Steering of 0.48 degrees a frame: 0.04 * (cos 0.48 + cos 0.96), -0.04 * (sin 0.48 + sin 0.96)
        ("sglang", "d-2", 0.07999290, -0.00100527, 0.96),
        # Steering takes back a part of the turn: 1.2 - 0.48 degrees.
        ("sglang", "al-1", -0.03999684, 0.00050264, 0.72),
        # d turns here. Forward 0.025, 0.025, then coasting e^(-1/16) and e^(-2/16) of it; heading 0, 0.6, 1.2, and
        # with the turn coasting 1.2 + 0.6 e^(-1/16).
        ("nvlabs", "w-1,wd-1,d-1,none-1", 0.00143264, 0.09553074, 1.76364784),
        # A new press ends the coasting: forward 0.025, 0.025 e^(-1/16), then nothing but 0.025 to the right.
        ("nvlabs", "w-1,none-1,l-1", 0.025, 0.04848533, 0.0),
        # Pressed again, forward is at full speed at once.
        ("nvlabs", "w-1,none-1,w-1", 0.0, 0.07348533, 0.0),
    ],
)
def test_trajectories_worked_out_by_hand(preset: str, script: str, x: float, z: float, heading: float) -> None:
    end = ours(preset, script)[-1]
    # The presets with 1e-6 beside the length of an axis are as much shorter.
    np.testing.assert_allclose(end[:3, 3], [x, 0, z], rtol=2e-6, atol=1e-8)
    assert math.degrees(math.atan2(end[0, 2], end[2, 2])) == pytest.approx(heading, abs=1e-7)


def test_smoothing_approaches_a_target_that_stays_pressed() -> None:
    """Releasing one of two opposite keys presses nothing new: the other's target is neared with 0.45 s."""
    poses = ours("nvlabs", "ws-1,w-3")
    share = 1 - math.exp(-1 / 16 / 0.45)
    speeds = 0.025 * np.array([0, share, 1 - (1 - share) ** 2, 1 - (1 - share) ** 3])
    np.testing.assert_allclose(np.diff(poses[:, 2, 3], prepend=0), speeds, rtol=2e-6, atol=1e-12)
    assert share == pytest.approx(0.130, abs=5e-4)


@pytest.mark.parametrize(("preset", "degrees"), [("nvlabs", 60.0), ("diffusers", 84.0), ("sglang", 84.0)])
@pytest.mark.parametrize(("key", "sign"), [("i", 1), ("k", -1)])
def test_pitch_ends_where_the_program_ends_it(preset: str, degrees: float, key: str, sign: int) -> None:
    end = ours(preset, f"{key}-110")[-1]
    assert math.degrees(math.asin(-end[1, 2])) == pytest.approx(sign * degrees, abs=1e-6)
