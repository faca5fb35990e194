"""Behaviour cloning from an episode store: record drives of a scripted expert, then train a policy on pictures."""

import argparse
import tempfile
from itertools import islice
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import sanawm_env  # noqa: F401  (registers the environments)
from sanawm_env.datasets.torch_data import WindowStream
from sanawm_env.datasets.windows import Windows, WindowSpec
from sanawm_env.wrappers.episodes import StoreEpisodes

EPISODES, HISTORY, CHUNK = 3, 4, 8  # the policy sees HISTORY frames and plans CHUNK actions

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=40, help="of training")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
args = parser.parse_args()

policy = nn.Sequential(
    *(nn.Conv2d(3 * HISTORY, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
    *(nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 2 * CHUNK), nn.Unflatten(1, (CHUNK, 2))),
).to(args.device)


def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Squared error of the planned actions, without those that lie behind the end of an episode."""
    pictures = batch["frames"].to(args.device).flatten(1, 2).float() / 255  # the frames of the history as channels
    error = (policy(pictures) - batch["actions"].to(args.device)).square().mean(dim=-1)
    return error[batch["actions_valid"].to(args.device)].mean()


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "drives.zarr"
    env = StoreEpisodes(gym.make("sanawm_env/Rooms-v0", device=args.device, task="goto", observation="dict"), path)
    for seed in range(EPISODES):
        seen, _ = env.reset(seed=seed)
        for _ in range(3):  # what comes after an end is not stored
            ahead, left, _ = seen["goal"]  # the expert is told where the goal lies, the policy is not
            seen, *_ = env.step([0.4, np.clip(2 * np.arctan2(left, ahead), -1, 1)])
    env.close()  # commits the last episode

    drives, unseen = (Windows(path, WindowSpec(history=HISTORY, actions=CHUNK), episodes=i) for i in ([0, 1], [2]))
    stream = WindowStream(drives, batch_size=8, channels_first=True)
    optimiser = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for step, batch in enumerate(islice(DataLoader(stream, batch_size=None, num_workers=1), args.steps)):
        optimiser.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        optimiser.step()
        if step % 10 == 0:
            print(f"step {step:3d}: error {loss.item():.3f}")
    other = next(iter(WindowStream(unseen, batch_size=len(unseen), channels_first=True)))
    print(f"on a drive that it was not trained on: {loss_of(other).item():.3f}")
