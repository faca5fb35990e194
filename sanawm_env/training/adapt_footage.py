"""Episodes of stores as a world model can learn from them: pictures of its size, its rate, its units, its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sanawm_env.camera import check_rigid
from sanawm_env.datasets.provenance import prompt_of
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.union import Union, open_store
from sanawm_env.errors import ConfigError, StorageError
from sanawm_env.playback import Decoder
from sanawm_env.scene import prepare_image
from sanawm_env.world import WorldModel

LENS_SLACK = 0.01  # pixels by which the lens may change within an episode
MOST_ENLARGED, LEAST_KEPT = 1.1, 0.7  # of pictures that are brought to the model's size: sides, and area


@dataclass(frozen=True)
class Episode:
    """What the camera saw up to the episode's end, at the model's rate and size: frames uint8 [N, H, W, 3], poses
    float64 [N, 4, 4] with lengths in the store's unit, intrinsics [4] in pixels; the first frame is that of reset.
    latents: [1 + m, C, h, w] of the first frames, where the store has those of this very bundle.
    """

    frames: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    latents: np.ndarray | None


class Footage:
    """The episodes of a store, or of several. prompt: what episodes without one of their own show, for a model that
    reads text. units: model units a unit of the store's lengths (metres, where it knows its scale), the model's own if
    None.

    StorageError, with the remedy: no episode, pictures of which too little would be left at the model's size, a rate
    that is no multiple of the model's, poses without a scale and no `units`, no prompt for a model that reads text.
    ConfigError: a prompt for one that reads none.
    """

    def __init__(
        self,
        data: str | Path | Sequence[str | Path],
        model: WorldModel,
        *,
        prompt: str | None = None,
        units: float | None = None,
    ) -> None:
        self.model, self.prompt = model, prompt
        self.units = (model.config.units_per_metre or 1.0) if units is None else units
        self.source: EpisodeStore | Union = open_store(data, decode=Decoder(model))
        self.stores = self.source.stores if isinstance(self.source, Union) else [self.source]
        for store in self.stores:
            _check_store(store, model, scaled=units is not None)
        self.every = round(self.source.info.fps / model.config.fps)
        self._check_prompts()

    def __len__(self) -> int:
        return len(self.source)

    def identity(self, number: int) -> str:
        """The name that no other episode has."""
        return str(self.source.describe(number)["id"])

    def prompt_of(self, number: int) -> str | None:
        """What an episode shows in words: its own prompt, else that of all; None for a model without text."""
        if not self.model.reads_text:
            return None
        own = prompt_of(self.source.describe(number))
        return self.prompt if own is None else own

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
        return Episode(*self._fitted(frames, poses, lens[0]), latents)

    def described(self) -> dict[str, Any]:
        """What is worth keeping of where the episodes come from, as JSON: how many, of which bundles, under which
        licences."""
        sources = [source for store in self.stores for source in store.sources]
        return {
            "stores": [Path(str(store.place)).name for store in self.stores],
            "episodes": len(self),
            "bundles": sorted({str(source["bundle"]) for source in sources}),
            "licences": sorted({licence for source in sources for licence in source["licences"]}),
            "synthetic": all(source["synthetic"] for source in sources),
        }

    def _fitted(
        self, frames: np.ndarray, poses: np.ndarray, lens: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures that cover the model's size, as those do that a world starts from, and the lens that belongs to
        them."""
        size = (self.model.config.height, self.model.config.width)
        if frames.shape[1:3] == size:
            return frames, poses, lens
        fitted = np.stack([prepare_image(frame, *size)[0] for frame in frames])
        _, ready = prepare_image(frames[0], *size, lens.tolist())
        return fitted, poses, np.asarray(ready, np.float32)

    def _check_prompts(self) -> None:
        if not self.model.reads_text:
            if self.prompt is not None:
                raise ConfigError(
                    f"prompt is {self.prompt[:40]!r}, but {self.model.config.name} reads no text; leave it out."
                )
            return
        without = [number for number in range(len(self)) if self.prompt_of(number) is None]
        if without:
            raise StorageError(
                f"{len(without)} of {len(self)} episodes have no prompt (episode {without[0]} is one), and "
                f"{self.model.config.name} reads text; pass prompt='what all of them show, without a word about the "
                "camera', or annotate with prompt=."
            )


def _check_store(store: EpisodeStore, model: WorldModel, *, scaled: bool) -> None:
    config = model.config
    if not len(store):
        raise StorageError(f"{store.place} has no episode; record, generate or annotate some first.")
    height, width = store.arrays["start_frames"].shape[1:3]
    enlarged = max(config.width / width, config.height / height)
    kept = config.width * config.height / (enlarged**2 * width * height)
    if enlarged > MOST_ENLARGED or kept < LEAST_KEPT:
        wrong = f"would have to be enlarged {enlarged:.2f} times" if enlarged > MOST_ENLARGED else f"keep {kept:.0%}"
        raise StorageError(
            f"{store.place} has pictures of {height}x{width}, the bundle {config.name!r} of {config.height}x"
            f"{config.width}: they {wrong}, allowed is up to {MOST_ENLARGED} and from {LEAST_KEPT:.0%}; record or "
            f"annotate at that size (`sanawm annotate ... height={config.height}`)."
        )
    ratio = store.info.fps / config.fps
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-3 * ratio:
        raise StorageError(
            f"{store.place} has {store.info.fps:g} frames/s, the bundle {config.name!r} {config.fps:g}; allowed are "
            f"whole multiples: record at {config.fps:g}, or annotate with fps={config.fps:g}."
        )
    if not scaled and any(one["units_per_metre"] is None for one in store.sources):
        raise StorageError(
            f"{store.place} has poses without a scale, the bundle {config.name!r} counts in metres; annotate again "
            "with baseline=, known_length= or speed= (examples/annotate.md), or pass units= (model units a unit of the "
            "store), or speeds would lose their meaning."
        )
