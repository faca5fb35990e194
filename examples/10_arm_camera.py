"""A camera on a robot arm looks around a room: joint velocities in, the dream and the truth of what it sees out.

Needs the extra `mujoco`. The arm is an MJCF file; the action map `kinematic_chain` moves the camera with its joints.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np

import sanawm_env  # noqa: F401  (registers the environments)
from sanawm_env.evaluation.sheet import contact_sheet, save_sheet

OUT = Path("outputs/arm_camera")
# A base that turns, a shoulder and an elbow that bend, and a wrist that tilts the camera; MuJoCo's z points up, the
# camera looks along x. Its first key is the pose that the world starts in.
ARM = """<mujoco model="arm"><worldbody>
 <body name="base"><joint name="turn" axis="0 0 1" range="-150 150"/><geom type="cylinder" size=".08 .1"/>
  <body name="upper" pos="0 0 .2"><joint name="shoulder" axis="0 1 0" range="-60 90"/>
   <geom type="capsule" fromto="0 0 0 0 0 .4" size=".04"/>
   <body name="fore" pos="0 0 .4"><joint name="elbow" axis="0 1 0" range="-30 140"/>
    <geom type="capsule" fromto="0 0 0 .35 0 0" size=".03"/>
    <body name="hand" pos=".4 0 0"><joint name="wrist" axis="0 1 0" range="-100 100"/><geom size=".03"/>
     <camera name="eye" xyaxes="0 -1 0 0 0 1"/></body></body></body></body>
</worldbody></mujoco>"""
# rad/s of turn, shoulder, elbow and wrist: look left, lean forward with the camera level, look right, lift, come back
MOVES = [(0.5, 0, 0, 0), (0, 0.5, -0.5, 0), (-0.7, 0, 0, 0), (0, -0.3, 0, 0.3), (0.3, -0.2, 0.5, -0.3)]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--device", default=None, help="cpu or cuda; the best there is if left out")
args = parser.parse_args()

OUT.mkdir(parents=True, exist_ok=True)
(OUT / "arm.xml").write_text(ARM)
options = {"action_map": "kinematic_chain", "action_options": {"robot": str(OUT / "arm.xml"), "link": "eye"}}
seen = []
for world in ("Rooms-v0", "RoomsTruth-v0"):
    env = gym.make(f"sanawm_env/{world}", device=args.device, task="drive", **options)
    _, info = env.reset(seed=4)
    frames, start = [info["frames"]], info["poses"][0]
    for step in range(args.steps):
        _, _, terminated, _, info = env.step(MOVES[step // 2 % len(MOVES)])  # two steps, 1.6 s, of each move
        frames.append(info["frames"])
        moved = np.linalg.inv(start) @ info["poses"][-1]  # in the axes of the first camera
        right, down, ahead = moved[:3, 3]
        if world == "Rooms-v0":
            print(f"step {step}: camera {ahead:+.2f} m ahead, {-right:+.2f} m left, {-down:+.2f} m up of its start")
        if terminated:
            print(f"{world}: the camera hit something")
            break
    print(f"{world}: joints {', '.join(env.unwrapped.action_map.columns)}; {sum(map(len, frames))} frames")
    seen.append(np.concatenate(frames))
    env.close()

columns = np.linspace(0, len(seen[0]) - 1, 8).astype(int)
sheet = contact_sheet(*(frames[columns][None] for frames in reversed(seen)), columns.tolist())
print(f"{save_sheet(sheet, OUT / 'sheet.png')}: the truth, the dream, and their difference")
