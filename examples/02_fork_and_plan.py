"""Plan by imagining: fork futures of this instant, try a random action in each, take the one that gets closest."""

import argparse

import gymnasium as gym

import sanawm_env  # noqa: F401  (registers the environments)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--device", default=None, help="cpu or cuda; the best there is if left out")
parser.add_argument("--futures", type=int, default=32, help="of this instant, an action each")
args = parser.parse_args()

env = gym.make("sanawm_env/Rooms-v0", device=args.device, task="goto")
_, info = env.reset(seed=3)
print(f"task: {info['instruction']}, {info['distance']:.2f} m away")
for step in range(args.steps):
    # Poses and rewards are enough here; decode=True shows pixels too.
    futures = env.unwrapped.fork(args.futures, decode=False)
    futures.action_space.seed(step)
    actions = futures.action_space.sample()
    _, rewards, _, _, imagined = futures.step(actions)
    best = int(rewards.argmax())  # metres gained, with a penalty for hitting something
    futures.close()

    _, reward, terminated, truncated, info = env.step(actions[best])
    v, w = actions[best]
    print(
        f"step {step}: of {args.futures} futures number {best} (v {v:+.2f} m/s, w {w:+.2f} rad/s) promised "
        f"{imagined['distance'][best]:.2f} m to go; now it is {info['distance']:.2f} m"
    )
    if terminated or truncated:
        print(f"the end: {info['termination_reason'] or info['truncation_reason']}")
        break
env.close()
