"""Clips of poses and latents cut from the episodes of a store, encoded once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from sanawm_env.camera import check_rigid, relative_poses
from sanawm_env.datasets.atomic import appearing
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.union import Union, open_store
from sanawm_env.errors import StorageError
from sanawm_env.model.offload import on_device
from sanawm_env.playback import Decoder
from sanawm_env.world import WorldModel

TOGETHER = 4  # clips that are encoded at a time
LENS_SLACK = 0.01  # pixels by which the lens may change within an episode


@dataclass(frozen=True)
class Episode:
    """What the camera saw up to the episode's end, at the model's rate: frames uint8 [N, H, W, 3], poses float64
    [N, 4, 4], intrinsics [4]; the first frame is that of reset. latents: [1 + m, C, h, w] of the first frames, where
    the store has those of this very bundle.
    """

    frames: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    latents: np.ndarray | None


class Footage:
    """The episodes of a store, or of several, as a world model can learn from them.

    StorageError, with the remedy: no episode, another picture size, a rate that is no multiple of the model's, poses
    without a scale for a model that has one.
    """

    def __init__(self, data: str | Path | Sequence[str | Path], model: WorldModel) -> None:
        self.model = model
        self.source: EpisodeStore | Union = open_store(data, decode=Decoder(model))
        stores = self.source.stores if isinstance(self.source, Union) else [self.source]
        for store in stores:
            _check_store(store, model)
        self.every = round(self.source.info.fps / model.config.fps)

    def __len__(self) -> int:
        return len(self.source)

    def identity(self, number: int) -> str:
        """The name that no other episode has."""
        return str(self.source.describe(number)["id"])

    def read(self, number: int) -> Episode:
        """An episode. StorageError where its lens changes on the way, PoseError where its poses are no camera's."""
        read, told = self.source.read(number), self.source.describe(number)
        frames, poses, lens = (
            np.concatenate([read[f"start_{key}"][None], read[key]])[:: self.every]
            for key in ("frames", "poses", "intrinsics")
        )
        if np.abs(lens - lens[0]).max() > LENS_SLACK:
            raise StorageError(
                f"the lens of episode {number} changes from {lens[0].tolist()} to {lens[-1].tolist()}; allowed is one "
                "a clip: rectify the pictures to one lens (`sanawm annotate` does)."
            )
        check_rigid(torch.from_numpy(poses))
        latents = None
        if "latents" in read and self.every == 1 and told["bundle_sha256"] == self.model.fingerprint != "":
            whole = len(poses) // self.model.config.frames_per_chunk  # chunks without a frame after the end
            later = read["latents"][:whole].reshape(-1, *read["latents"].shape[2:])
            latents = np.concatenate([read["start_latents"][None], later])
        return Episode(frames, poses, lens[0], latents)


def _check_store(store: EpisodeStore, model: WorldModel) -> None:
    config = model.config
    if not len(store):
        raise StorageError(f"{store.place} has no episode; record, generate or annotate some first.")
    size = tuple(store.arrays["start_frames"].shape[1:3])
    if size != (config.height, config.width):
        raise StorageError(
            f"{store.place} has pictures of {size[0]}x{size[1]}, the bundle {config.name!r} of {config.height}x"
            f"{config.width}; record or annotate at that size (`sanawm annotate ... height={config.height}`), with "
            "intrinsics scaled alike."
        )
    ratio = store.info.fps / config.fps
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-3 * ratio:
        raise StorageError(
            f"{store.place} has {store.info.fps:g} frames/s, the bundle {config.name!r} {config.fps:g}; allowed are "
            f"whole multiples: record at {config.fps:g}, or annotate with fps={config.fps:g}."
        )
    if config.units_per_metre is not None and any(one["units_per_metre"] is None for one in store.sources):
        raise StorageError(
            f"{store.place} has poses without a scale, the bundle {config.name!r} counts in metres; annotate again "
            "with baseline=, known_length= or speed= (examples/annotate.md), or speeds would lose their meaning."
        )


@dataclass
class Clips:
    """B clips: latents [B, T, channels, h, w] fp32, poses [B, frames, 4, 4] fp32 relative to the first and in model
    units, intrinsics [B, 4] in frame pixels.
    """

    latents: Tensor
    poses: Tensor
    intrinsics: Tensor

    def to(self, device: torch.device) -> Clips:
        """On a device."""
        return Clips(*(x.to(device, non_blocking=True) for x in (self.latents, self.poses, self.intrinsics)))


def joined(parts: Sequence[Clips]) -> Clips:
    """The clips of all parts."""
    return Clips(*(torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "poses", "intrinsics")))


class ClipCache:
    """Clips of T = `latents` latent frames, one every `every` frames of an episode, never across its end.

    One file an episode in a folder below `folder` whose name says what decides the content: the autoencoder's weights,
    T and `every`. A file is there whole or not at all, so encoding that was cut off goes on. Clips stay on the disk,
    from where they are mapped into memory.
    """

    def __init__(self, folder: Path, footage: Footage, *, latents: int, every: int) -> None:
        self.footage, self.latents, self.every = footage, latents, every
        model = footage.model
        self.count = 1 + model.config.temporal_stride * (latents - 1)
        key = json.dumps([digest(model.autoencoder), latents, every, model.config.units_per_metre])
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        self._files: list[dict[str, Tensor]] = []
        self._rows: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, episode: int) -> Path:
        """Where the clips of an episode are, or would be."""
        return self.folder / f"{self.footage.identity(episode)}.safetensors"

    def encode(self, episodes: Iterable[int]) -> int:
        """Encodes the episodes that are not there yet; returns how many."""
        missing = [number for number in episodes if not self.path(number).exists()]
        for number in tqdm(missing, desc="encoding", unit="episode", disable=None):
            clips = self._encoded(self.footage.read(number))
            with appearing(self.path(number)) as draft:
                save_file(clips, draft)
        return len(missing)

    def open(self, episodes: Iterable[int]) -> None:
        """Takes the clips of these episodes, which are encoded. StorageError when there is none at all."""
        self._files = [load_file(self.path(number)) for number in episodes]
        self._rows = [(file, row) for file, one in enumerate(self._files) for row in range(len(one["poses"]))]
        if not self._rows:
            raise StorageError(
                f"no episode is as long as a clip of {self.latents} latents, {self.count} frames; pass a smaller "
                "latents=, or record longer episodes."
            )

    def draw(self, numbers: np.ndarray) -> Clips:
        """The clips with these numbers."""
        chosen = [self._rows[number] for number in numbers]
        parts = {key: [self._files[file][key][row] for file, row in chosen] for key in ("latents", "poses", "lens")}
        return Clips(*(torch.stack(parts[key]).float() for key in ("latents", "poses", "lens")))

    def _encoded(self, episode: Episode) -> dict[str, Tensor]:
        starts = range(0, len(episode.poses) - self.count + 1, self.every)
        poses = torch.from_numpy(np.stack([episode.poses[s : s + self.count] for s in starts])) if starts else None
        config = self.footage.model.config
        shape = (0, self.latents, config.denoiser.in_channels, *config.grid)
        if poses is None:
            return {"latents": torch.zeros(shape), "poses": torch.zeros(0, self.count, 4, 4), "lens": torch.zeros(0, 4)}
        seen = relative_poses(poses[:, 0], poses)
        seen[..., :3, 3] *= config.units_per_metre or 1.0
        known = episode.latents
        at_hand = known is not None and len(known) >= self.latents
        parts = [torch.from_numpy(known[None, : self.latents].copy())] if at_hand and known is not None else []
        later = starts[1:] if at_hand else starts
        for first in range(0, len(later), TOGETHER):
            frames = [episode.frames[s : s + self.count] for s in later[first : first + TOGETHER]]
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


def described(footage: Footage) -> dict[str, Any]:
    """What is worth keeping of where the episodes come from, as JSON: how many, of which bundles, under which
    licences."""
    stores = footage.source.stores if isinstance(footage.source, Union) else [footage.source]
    sources = [source for store in stores for source in store.sources]
    return {
        "stores": [Path(str(store.place)).name for store in stores],
        "episodes": len(footage),
        "bundles": sorted({str(source["bundle"]) for source in sources}),
        "licences": sorted({licence for source in sources for licence in source["licences"]}),
        "synthetic": all(source["synthetic"] for source in sources),
    }
