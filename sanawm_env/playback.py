"""Frames again of the latents that an episode store keeps: `EpisodeStore(path, decode=Decoder(model))`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sanawm_env.errors import BundleError
from sanawm_env.model.autoencoder import to_uint8
from sanawm_env.model.offload import on_device
from sanawm_env.world import WorldModel


class Decoder:
    """Decodes the latents of an episode from its start, chunk by chunk, as the world that made them did.

    On the same machine, precision and threads a CPU gives the frames of the rollout bit for bit, as they were before
    any picture codec. On a GPU that decoded a batch of worlds, a value may differ by a level.
    """

    def __init__(self, model: WorldModel) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, start_latents: np.ndarray, latents: np.ndarray, told: Mapping[str, Any]) -> np.ndarray:
        """Frames uint8 [k F, H, W, 3] of k steps, without that of reset.

        start_latents: [C, h, w]. latents: [k, n, C, h, w]. told: the episode's provenance. BundleError where another
        bundle made them.
        """
        model = self.model
        if told["bundle_sha256"] != model.fingerprint:
            raise BundleError(
                f"the latents are of bundle {told['bundle']!r} ({told['bundle_sha256'][:12]!r}), the decoder is of "
                f"{model.config.name!r} ({model.fingerprint[:12]!r}); load the bundle that made them."
            )
        cache = model.autoencoder.initial_cache(1, *model.config.grid, model.dtype, model.device)
        frames = []
        with on_device(model.autoencoder):
            for number, chunk in enumerate((start_latents[None], *latents)):
                given = torch.from_numpy(np.ascontiguousarray(chunk))[None].to(model.device, model.dtype)
                pixels, cache = model.autoencoder.decode(given, cache, started=number > 0)
                frames.append(to_uint8(pixels)[0].cpu().numpy())
        return np.concatenate(frames[1:])
