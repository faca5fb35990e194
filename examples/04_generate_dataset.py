"""Make a small dataset in bulk, look at its summary, read an episode, and check that it can be made again.

The same from the command line, and from there on to a cluster: `sanawm generate episodes=4 frames=16 ...`. Run it
again, or with more episodes, and it goes on where it stopped.
"""

import argparse
from pathlib import Path

from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.generation import Filters, Generate, Scenes, generate, replay
from sanawm_env.generation.summary import text

if __name__ == "__main__":  # workers beyond the first are processes, which import this file
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="of 8 frames, in each episode")
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--device", default=None, help="cpu or cuda; the best there is if left out")
    args = parser.parse_args()

    job = Generate(
        out=Path("outputs/generate"),
        episodes=args.episodes,
        frames=8 * args.steps,
        scenes=Scenes(first_room=10**9),  # rooms that the shipped world was never trained on
        task="drive",
        kind="diff_drive",  # paths of a robot on wheels, which keep clear of furniture
        filters=Filters(contrast=4.0),
        batch=2,
        device=args.device,
    )
    print(text(generate(job)))

    store = EpisodeStore(job.out / "episodes.zarr")
    episode, told = store[0], store.describe(0)
    print(f"episode 0: frames {episode['frames'].shape}, actions {episode['actions'].shape}, room {told['room']}")
    print(replay(store.path, episodes=[0], device=args.device)[0].text())
