"""Adapt Rooms to a style of room that it has never seen: rooms at night, by low-rank adapters, without forgetting day.

A quarter of an hour on an H200 with the defaults. The same from the command line, resumable:
`sanawm record rooms style=night ...`, then `sanawm train adapt data=... replay=...` (examples/adapt.md).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from sanawm_env import bundle
from sanawm_env.clips import generate
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.training import run_stage
from sanawm_env.training.rooms_drives import RecordRooms, record

OUT = Path("outputs/adapt")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=800, help="of training")
parser.add_argument("--device", default=None, help="cpu or cuda; the best there is if left out")
args = parser.parse_args()
# A clip of T latents is 1 + 4 (T - 1) frames. Few steps learn from few short episodes.
episodes, latents, batch = (256, 17, 16) if args.steps >= 100 else (2, 5, 1)
frames = 4 * (latents - 1)

for style, first_seed in (("night", 200_000_000), ("day", 300_000_000)):
    where = {"out": OUT / f"{style}.zarr", "style": style, "first_seed": first_seed, "device": args.device}
    print(record(RecordRooms(episodes=episodes, frames=frames, **where)))

settings = {"data": str(OUT / "night.zarr"), "replay": str(OUT / "day.zarr"), "out": OUT / "night"}
settings |= {"steps": args.steps, "minutes": 60, "batch": batch, "latents": latents, "method": "lora"}
figures = run_stage("adapt", settings | {"device": args.device or "auto"})
print(f"night, dB on held-out rooms: {figures['before']['psnr']} before, {figures['after']['psnr']} after")
print(f"day: {figures['gain']['replay_psnr']:+.2f} dB, with {100 * figures['strength']:.0f} % of what was learned")
print(f"adapter: {figures['adapter_bytes'] / 1e6:.1f} MB")

# One held-out drive as it is, as the shipped bundle shows it, and as the adapted one does.
seed = 900_000_000
record(
    RecordRooms(out=OUT / "seen.zarr", episodes=1, frames=frames, style="night", first_seed=seed, device=args.device)
)
drive = EpisodeStore(OUT / "seen.zarr")[0]
poses = np.concatenate([drive["start_poses"][None], drive["poses"]])[None]
strips = [np.concatenate([drive["start_frames"][None], drive["frames"]])]
for name in ("rooms", figures["bundle"]):
    model = bundle.load(name, device=args.device)
    strips.append(generate(model, drive["start_frames"][None], poses, seeds=[0]).frames[0].cpu().numpy())
shown = [np.concatenate(list(strip[:: len(strip) // 4]), axis=1) for strip in strips]
Image.fromarray(np.concatenate(shown)).save(OUT / "night.png")
print(f"{OUT / 'night.png'}: the truth, the shipped bundle, the adapted one")
