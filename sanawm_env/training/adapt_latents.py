"""Clips of poses and latents cut from the episodes of a store, encoded once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from sanawm_env.camera import relative_poses
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import StorageError
from sanawm_env.model.offload import on_device
from sanawm_env.prompts import PromptReader
from sanawm_env.training.adapt_footage import Episode, Footage
from sanawm_env.training.latents import Clips
from sanawm_env.world import WorldModel

TOGETHER = 2**23  # pixels of the clips that are encoded at a time, at least one clip


@dataclass
class FilmedClips(Clips):
    """Clips of episodes, poses in model units. intrinsics: [B, 4] in frame pixels."""

    intrinsics: Tensor

    def to(self, device: torch.device) -> FilmedClips:
        """On a device."""
        latents, poses, lens = (x.to(device, non_blocking=True) for x in (self.latents, self.poses, self.intrinsics))
        text = {name: x.to(device, non_blocking=True) for name, x in self.text.items()}
        return FilmedClips(latents, poses, lens, text=text)


def joined(parts: Sequence[FilmedClips]) -> FilmedClips:
    """The clips of all parts, without their text."""
    names = ("latents", "poses", "intrinsics")
    return FilmedClips(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


class EpisodeText:
    """Embedded prompts of a training: each is encoded once, and kept on disk by the reader's cache. The encoder is gone
    from memory when this is made. negative: hidden [1, L, C] and mask [1, L] of the text that guidance moves away from,
    None for a model without guidance.
    """

    def __init__(self, reader: PromptReader, prompts: Iterable[str]) -> None:
        wanted = sorted(set(prompts))
        self._rows = {prompt: row for row, prompt in enumerate(wanted)}
        self._text = reader(wanted)
        self.negative = reader.read_negative(1)
        if self.negative is not None:  # the row behind those of the prompts
            parts = zip(("hidden", "mask"), self.negative, strict=True)
            self._text = {name: torch.cat([self._text[name], x.to(self._text[name])]) for name, x in parts}

    def of(self, prompts: Sequence[str | None]) -> dict[str, Tensor]:
        """Text as `WorldState.text` holds it, a row a prompt; None is the text that guidance moves away from."""
        rows = [len(self._rows) if prompt is None else self._rows[prompt] for prompt in prompts]
        return {name: x[rows] for name, x in self._text.items()}


class ClipCache:
    """Clips of T = `latents` latent frames, one every `every` frames of an episode, never across its end.

    One file an episode in a folder below `folder` whose name says what decides the content: the autoencoder's weights,
    the frame size, the units, T and `every`. A file is there whole or not at all, so encoding that was cut off goes on.
    Clips stay on the disk, from where they are mapped into memory.
    """

    def __init__(self, folder: Path, footage: Footage, *, latents: int, every: int) -> None:
        self.footage, self.latents, self.every = footage, latents, every
        model = footage.model
        self.count = 1 + model.config.temporal_stride * (latents - 1)
        size = (model.config.height, model.config.width)
        key = json.dumps([digest(model.autoencoder), size, latents, every, footage.units])
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        self._files: list[dict[str, Tensor]] = []
        self._rows: list[tuple[int, int]] = []
        self._prompts: list[str | None] = []

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, episode: int) -> Path:
        """Where the clips of an episode are, or would be."""
        return self.folder / f"{self.footage.identity(episode)}.safetensors"

    def prompts_of(self, numbers: np.ndarray) -> list[str | None]:
        """What the clips with these numbers show in words; None for a model without text."""
        return [self._prompts[self._rows[number][0]] for number in numbers]

    def encode(self, episodes: Iterable[int]) -> int:
        """Encodes the episodes that are not there yet; returns how many."""
        missing = [number for number in episodes if not self.path(number).exists()]
        for number in tqdm(missing, desc="encoding", unit="episode", disable=None):
            clips = self._encoded(self.footage.read(number))
            with appearing(self.path(number)) as draft:
                save_file(clips, draft)
        return len(missing)

    def open(self, episodes: Sequence[int]) -> None:
        """Takes the clips of these episodes, which are encoded. StorageError when there is none at all."""
        self._files = [load_file(self.path(number)) for number in episodes]
        self._prompts = [self.footage.prompt_of(number) for number in episodes]
        self._rows = [(file, row) for file, one in enumerate(self._files) for row in range(len(one["poses"]))]
        if not self._rows:
            raise StorageError(
                f"no episode is as long as a clip of {self.latents} latents, {self.count} frames; pass a smaller "
                "latents=, or record longer episodes."
            )

    def draw(self, numbers: np.ndarray) -> FilmedClips:
        """The clips with these numbers, without their text."""
        chosen = [self._rows[number] for number in numbers]
        parts = {key: [self._files[file][key][row] for file, row in chosen] for key in ("latents", "poses", "lens")}
        return FilmedClips(*(torch.stack(parts[key]).float() for key in ("latents", "poses", "lens")))

    def _encoded(self, episode: Episode) -> dict[str, Tensor]:
        starts = range(0, len(episode.poses) - self.count + 1, self.every)
        poses = torch.from_numpy(np.stack([episode.poses[s : s + self.count] for s in starts])) if starts else None
        config = self.footage.model.config
        shape = (0, self.latents, config.denoiser.in_channels, *config.grid)
        if poses is None:
            return {"latents": torch.zeros(shape), "poses": torch.zeros(0, self.count, 4, 4), "lens": torch.zeros(0, 4)}
        seen = relative_poses(poses[:, 0], poses)
        seen[..., :3, 3] *= self.footage.units
        known = episode.latents
        at_hand = known is not None and len(known) >= self.latents
        parts = [torch.from_numpy(known[None, : self.latents].copy())] if at_hand and known is not None else []
        later = starts[1:] if at_hand else starts
        together = max(1, TOGETHER // (self.count * config.height * config.width))
        for first in range(0, len(later), together):
            frames = [episode.frames[s : s + self.count] for s in later[first : first + together]]
            parts.append(encoded(self.footage.model, torch.from_numpy(np.stack(frames))))
        lens = torch.from_numpy(episode.intrinsics).expand(len(starts), 4)
        latents = torch.cat([part.float() for part in parts])
        return {"latents": latents.bfloat16(), "poses": seen.float(), "lens": lens.contiguous()}


@torch.no_grad()
def encoded(model: WorldModel, frames: Tensor) -> Tensor:
    """Latents [B, T, C, h, w], on the CPU, of frames uint8 [B, N, H, W, 3]."""
    device = model.device
    pixels = frames.to(device).permute(0, 4, 1, 2, 3).to(model.dtype) / 127.5 - 1
    with on_device(model.autoencoder), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return model.autoencoder.encode(pixels).float().cpu()


def digest(module: nn.Module) -> str:
    """SHA-256 of a module's weights."""
    found = hashlib.sha256()
    for name, x in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
