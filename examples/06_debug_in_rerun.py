"""See what went wrong: drive on through a wall, log it to Rerun, and look at where the numbers turn. examples/rerun.md
shows the recording and how to read it.
"""

import argparse

import gymnasium as gym

import sanawm_env  # noqa: F401  (registers the environments)
from sanawm_env.wrappers.rerun_log import LogToRerun

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--seed", type=int, default=4)
parser.add_argument("--device", default=None, help="cpu or cuda; the best there is if left out")
parser.add_argument("--out", default="outputs/debug.rrd", help="the recording")
args = parser.parse_args()

env = gym.make("sanawm_env/Rooms-v0", device=args.device, task="drive")
# truth=True renders the room from the same poses: what the world should have shown, its depth, and the PSNR between.
env = LogToRerun(env, args.out, truth=True)
env.reset(seed=args.seed)
fps = env.unwrapped.fps
for step in range(args.steps):
    # The mistake of this policy: it asks for turns in degrees a second, where radians are meant.
    turn = 10.0 if step == args.steps // 3 else 0.0
    *_, terminated, truncated, info = env.step([0.6, turn])
    seconds = info["frame"] / fps
    if info["clipped"]:
        print(f"{seconds:4.1f} s: the action was clipped; in 'command' and in space the camera leaves the red line")
    if info["end_index"] >= 0:
        reason = info["termination_reason"] or info["truncation_reason"]
        print(f"{seconds:4.1f} s: {reason}; 'depth' has come to nothing, 'sharpness' falls and 'drift' rises from here")
        env.step([0.6, 0.0])  # into the wall, where there is nothing to see
        break
env.close()
print(f"look at it: rerun {args.out}")
