"""Model predictive control: at every step CEM tries plans out in forked futures and the world takes the first action of
the best. Futures are latents, poses and rewards only; no pixels are made for them.

Rewards of Rooms come from the known floor plan, in the dream too: with this cost the planner knows where walls are.
With `GoalImageCost` in `TaskCost`'s place it would know nothing but the pictures it dreams.
"""

import argparse

import gymnasium as gym

import sanawm_env  # noqa: F401  (registers the environments)
from sanawm_env.policies.cem import CEM, CEMConfig
from sanawm_env.policies.costs import TaskCost

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--device", default=None, help="cpu or cuda; the best there is if left out")
parser.add_argument("--candidates", type=int, default=6, help="futures of this instant, in each of 2 iterations")
args = parser.parse_args()

env = gym.make("sanawm_env/Rooms-v0", device=args.device, task="goto")
observation, info = env.reset(seed=3)
print(f"task: {info['instruction']}, {info['distance']:.2f} m away")
config = CEMConfig(horizon=2, candidates=args.candidates, iterations=2, elites=max(1, args.candidates // 2))
planner = CEM(env, TaskCost(), config)
state = planner.initial_state(1)
for step in range(args.steps):
    actions, state = planner.act(observation, state)
    observation, reward, terminated, truncated, info = env.step(actions[0])
    v, w = actions[0]
    print(
        f"step {step}: v {v:+.2f} m/s, w {w:+.2f} rad/s, promised return {-state.cost[0]:+.2f}, reward {reward:+.2f}; "
        f"{info['distance']:.2f} m to go"
    )
    if terminated or truncated:
        print(f"the end: {info['termination_reason'] or info['truncation_reason']}")
        break
env.close()
