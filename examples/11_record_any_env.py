"""Record any environment with a camera: Gymnasium's half cheetah in MuJoCo, into an episode store, then for LeRobot.

Needs the extras `mujoco` and `export`. MuJoCo draws without a screen (EGL) unless MUJOCO_GL says otherwise.
"""

import argparse
import os
import shutil

os.environ.setdefault("MUJOCO_GL", "egl")

import gymnasium as gym

from sanawm_env.datasets.exports.export import export
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.wrappers.mujoco_camera import mujoco_camera
from sanawm_env.wrappers.record import RecordCamera

SIZE = (128, 160)  # height, width
OUT = "outputs/cheetah"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=40, help="of each of the two episodes")
parser.add_argument("--device", default="cpu", help="taken as in the other examples; MuJoCo computes on the CPU")
args = parser.parse_args()

shutil.rmtree(OUT, ignore_errors=True)
env = gym.make("HalfCheetah-v5", render_mode="rgb_array", height=SIZE[0], width=SIZE[1], camera_name="track")
joints = ("back_thigh", "back_shin", "back_foot", "front_thigh", "front_shin", "front_foot")
env = RecordCamera(
    env,
    f"{OUT}/episodes.zarr",
    mujoco_camera("track", SIZE),
    task="run forward",
    action_columns=joints,
    action_units=("of full torque",) * len(joints),
    intrinsics_source="MuJoCo model",
)
env.action_space.seed(0)
for episode in range(2):
    env.reset(seed=episode)
    for _ in range(args.steps):
        env.step(env.action_space.sample())
env.close()

store = EpisodeStore(f"{OUT}/episodes.zarr")
for index in range(len(store)):
    read, told = store[index], store.describe(index)
    x, y, z = read["poses"][-1][:3, 3]
    print(
        f"episode {index}: {len(read['frames'])} frames of seed {told['seed']}, camera at {x:+.2f} {y:+.2f} {z:+.2f} m"
    )
written = export(f"{OUT}/episodes.zarr", "lerobot", f"{OUT}/lerobot")
print(f"{OUT}/lerobot: {written.text()}")
