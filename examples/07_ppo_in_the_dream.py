"""Learn by PPO in the dream, act in the truth: a policy never sees the real room before it is judged there.

Needs the extra `rl`. A few minutes on a GPU teach it to reach goals; `sanawm train ppo` does the same from a YAML file.
"""

import argparse
from pathlib import Path

from sanawm_env.policies.episodes import run_episodes
from sanawm_env.policies.ppo import PpoPolicy
from sanawm_env.training.ppo import Learning, PpoTraining, run
from sanawm_env.truth import RoomsTruthVectorEnv

OUT = Path("outputs/ppo_in_the_dream")
HELD_OUT = 10**9  # rooms from this seed up are in no training

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=64, help="of every world, in training; some 5,000 on a GPU")
parser.add_argument("--num-envs", type=int, default=2, help="worlds that learn at a time; 64 and more on a GPU")
parser.add_argument("--episodes", type=int, default=2, help="of the judgement in the truth")
parser.add_argument("--device", default=None, help="cpu or cuda; the best there is if left out")
args = parser.parse_args()

training = PpoTraining(
    out=OUT,
    environment="dream",
    device=args.device,
    num_envs=args.num_envs,
    minutes=None,
    steps=args.steps * args.num_envs,
    learning=Learning(rollout=min(16, args.steps), batch=1024 if args.num_envs > 16 else 32),
)
figures = run(training)  # goes on from the checkpoint in OUT, if there is one
print(f"in the dream: {figures}")

policy = PpoPolicy.load(OUT / "policy.safetensors", device=args.device or "cpu")
seeds = range(HELD_OUT, HELD_OUT + args.episodes)
truth = RoomsTruthVectorEnv(
    args.episodes, device=args.device, observation="dict", frames="none", horizon=8 * args.steps
)
for episode in run_episodes(truth, policy, seeds):
    print(
        f"in the truth, {episode.seed}: {episode.reason} after {episode.seconds:.1f} s and {episode.metres:.2f} m; "
        f"the goal was {episode.start_distance:.2f} m away and is now {episode.distance:.2f} m"
    )
truth.close()
