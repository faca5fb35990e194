"""First steps: drive through a learned room and look at what each step gives."""

import argparse

import gymnasium as gym

import sanawm_env  # noqa: F401  (registers the environments)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--device", default=None, help="cpu or cuda; the best there is if left out")
args = parser.parse_args()

env = gym.make("sanawm_env/Rooms-v0", device=args.device)
observation, info = env.reset(seed=0)
print(f"task: {info['instruction']}, {info['distance']:.2f} m away; a frame is {observation.shape}")
for _ in range(args.steps):
    observation, reward, terminated, truncated, info = env.step([0.3, 0.1])  # 0.3 m/s ahead, 0.1 rad/s to the left
    x, _, z = info["poses"][-1][:3, 3]
    print(f"frame {info['frame']:3d}: at x {x:+.2f} z {z:+.2f} m, {info['distance']:.2f} m to go, reward {reward:+.3f}")
    if terminated or truncated:
        print(f"the end: {info['termination_reason'] or info['truncation_reason']}")
        break
print(f"{env.unwrapped.last_timing['frames_per_second']:.1f} frames/s in the last step")
env.close()
