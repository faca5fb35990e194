"""Behaviour cloning: an expert that knows the floor plan shows the way, a policy that sees pictures learns it.

Both are tried in the truth, in rooms that neither has seen. The same at size, from the command line, and resumable:
`sanawm collect world=dream episodes=2000 ...`, then `sanawm train cloning data=...`.
"""

import argparse
import tempfile
from pathlib import Path

from sanawm_env.demonstrations import Collect, collect
from sanawm_env.policies.cloning import ClonedPolicy
from sanawm_env.policies.cloning_train import CloningTraining, train
from sanawm_env.policies.episodes import run_episodes
from sanawm_env.policies.expert import Expert
from sanawm_env.spaces import check_policy
from sanawm_env.truth import RoomsTruthVectorEnv

HELD_OUT = 10**9  # rooms from this seed on are for trying only

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=400, help="of training; an episode is collected for every 20")
parser.add_argument("--world", choices=("dream", "truth"), default="truth", help="where the expert is watched")
parser.add_argument("--device", default=None, help="cpu or cuda; the best there is if left out")
args = parser.parse_args()
episodes, tries = max(2, args.steps // 20), max(1, args.steps // 50)

with tempfile.TemporaryDirectory() as folder:
    store, out = Path(folder) / "demonstrations.zarr", Path(folder) / "cloning"
    # The expert's actions get noise, so that it also shows how to come back; the store keeps what it wanted to do.
    print(collect(Collect(out=store, episodes=episodes, world=args.world, batch=min(4, episodes), device=args.device)))
    print(train(CloningTraining(data=str(store), out=out, steps=args.steps, batch=64, device=args.device)))

    policy = ClonedPolicy.load(out / "policy", device=args.device or "cpu")
    policy.export(Path(folder) / "policy.pt2")  # a graph that runs without this package

task = {"name": "goto", "time_limit": 10.0}  # seconds of world time; the expert takes 3 to 4 on average
env = RoomsTruthVectorEnv(min(4, tries), observation="dict", task=task, device=args.device)
check_policy(policy, env)
for name, driver in (("expert", Expert(env)), ("clone", policy)):
    tried = list(run_episodes(env, driver, range(HELD_OUT, HELD_OUT + tries)))
    print(f"{name}: {sum(one.success for one in tried)} of {tries} goals reached; {', '.join(t.reason for t in tried)}")
