"""How well a world model shows held-out episodes of a store: PSNR of clips generated along their poses."""

from __future__ import annotations

from typing import Any

import torch
from tqdm import tqdm

from sanawm_env.clips import generate
from sanawm_env.evaluation.metrics import psnr
from sanawm_env.training.adapt_footage import Footage
from sanawm_env.training.adapt_latents import EpisodeText
from sanawm_env.world import WorldModel

AHEAD = (8, 32, 64)


def psnr_of(
    model: WorldModel, footage: Footage, episodes: list[int], frames: int, text: EpisodeText | None
) -> dict[str, float]:
    """dB over all pixels, mean over episodes: "psnr" over all frames but the first, "psnr_8" and so on at so many
    frames ahead. Each episode starts from its first picture and follows its poses in whole chunks, up to `frames`;
    those shorter than one are left out. text: of the episodes, for a model that reads it.
    """
    config, found = model.config, []
    for number in tqdm(episodes, desc="rollouts", unit="episode", disable=None):
        episode = footage.read(number)
        chunks = min(frames, len(episode.poses) - 1) // config.frames_per_chunk
        if not chunks:
            continue
        count = 1 + chunks * config.frames_per_chunk
        truth = torch.from_numpy(episode.frames[:count].copy())[None]
        told: dict[str, Any] = {"intrinsics": torch.from_numpy(episode.intrinsics.copy())[None]}
        if text is not None:
            told["text"] = text.of([footage.prompt_of(number)])
            told["negative"] = text.negative
        path = episode.poses[None, :count]
        shown = generate(model, truth[:, 0], path, seeds=[number], units=footage.units, **told).frames
        assert shown is not None
        found.append(psnr(shown.cpu(), truth)[0].tolist())
    told = {"psnr": [sum(one[1:]) / len(one[1:]) for one in found]}
    told |= {f"psnr_{ahead}": [one[ahead] for one in found if len(one) > ahead] for ahead in AHEAD}
    return {name: round(sum(values) / len(values), 2) for name, values in told.items() if values}
