"""Drive through a picture: the released 2.6 B model, three steps of 1.5 s, and a video of them. examples/sana_wm.md
says what is downloaded; `sanawm doctor` says whether it fits on this machine.
"""

import argparse

import gymnasium as gym

import sanawm_env  # noqa: F401  (registers the environments)
from sanawm_env.wrappers.recording import RecordEpisodes

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--image", required=True, help="the picture to start from")
parser.add_argument("--prompt", default="", help="what it shows, without a word about the camera")
parser.add_argument("--source", default="Efficient-Large-Model/SANA-WM_streaming", help="a Hub id or a folder")
parser.add_argument("--text-encoder", default="Efficient-Large-Model/gemma-2-2b-it", help="a Hub id or a folder")
parser.add_argument("--size", type=int, nargs=2, default=(704, 1280), help="height and width of frames in pixels")
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--device", default=None, help="cpu or cuda; the best there is if left out")
parser.add_argument(
    "--offload", choices=("parts", "blocks"), help="for a card smaller than the model: the same, slower"
)
args = parser.parse_args()

world = {"source": args.source, "text_encoder": args.text_encoder, "size": tuple(args.size), "refiner": False}
start = {"image": args.image, "prompt": args.prompt}
env = gym.make("sanawm_env/SanaWM-v0", **world, **start, device=args.device, offload=args.offload)
env = RecordEpisodes(env, "outputs/sana_wm")
_, info = env.reset(seed=0)
print("poses are in", "metres" if info["calibrated"] else "units of the model: the scale of a picture is not known")
for _ in range(args.steps):
    *_, info = env.step([0.4, 0.1])  # 0.4 m/s ahead, 0.1 rad/s to the left
    x, _, z = info["poses"][-1][:3, 3]
    speed = env.unwrapped.last_timing["frames_per_second"]
    print(f"frame {info['frame']:3d}: at x {x:+.2f} z {z:+.2f}, {speed:.2f} frames/s")
env.close()
print(f"wrote {env.written[0]}")
