"""A bank of encoded Rooms clips on the training device, a share of it rendered anew at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sanawm_env.camera import relative_poses
from sanawm_env.conditioning import Conditioning, condition
from sanawm_env.errors import ConfigError
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.config import WorldConfig
from sanawm_env.rooms import render, sample_scenes
from sanawm_env.training.paths import PathPlanner


@dataclass
class Clips:
    """Encoded clips: latents [B, T, channels, h, w] and poses [B, frames + 1, 4, 4] fp32, relative to the first. text:
    embedded prompts as `WorldState.text` holds them, empty for a model without text.
    """

    latents: Tensor
    poses: Tensor
    text: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)


@dataclass
class Drawn(Clips):
    """Clips of a bank. history: [B, T, channels, h, w], what the model itself saw of them, as far as it was remembered.
    rows: [B], their places in the bank.
    """

    history: Tensor
    rows: Tensor


class ClipSource:
    """Freshly rendered and encoded clips along the trajectories of `planner`. text: of one world, that of all clips."""

    def __init__(
        self,
        config: WorldConfig,
        autoencoder: Autoencoder,
        planner: PathPlanner,
        device: torch.device,
        text: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config, self.autoencoder, self.planner, self.device = config, autoencoder, planner, device
        self.text = {} if text is None else {name: x.to(device) for name, x in text.items()}

    @torch.no_grad()
    def clips(self) -> Clips:
        """The next `planner.batch` clips."""
        seeds, path = self.planner.next()
        poses = torch.from_numpy(path).to(self.device)
        scenes = sample_scenes(seeds, device=self.device)
        intrinsics = torch.tensor(self.config.intrinsics, device=self.device)
        frames = render(scenes, poses.float(), intrinsics, (self.config.height, self.config.width), geometry=False).rgb
        pixels = frames.permute(0, 4, 1, 2, 3) / 127.5 - 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            latents = self.autoencoder.encode(pixels.float())
        return Clips(
            latents.bfloat16(), relative_poses(poses[:, 0], poses).float(), text=repeated(self.text, len(poses))
        )


class ClipBank:
    """A fixed number of clips from which batches are drawn; `refresh` replaces the oldest, `remember` keeps what the
    model saw of those that were drawn.
    """

    def __init__(self, source: ClipSource, size: int) -> None:
        self.source = source
        first = source.clips()
        self.latents = first.latents.new_empty(size, *first.latents.shape[1:])
        self.history = torch.empty_like(self.latents)
        self.poses = first.poses.new_empty(size, *first.poses.shape[1:])
        self.oldest = 0
        for start in range(0, size, source.planner.batch):
            self._put(first if start == 0 else source.clips())

    def _put(self, clips: Clips) -> None:
        count, size = clips.latents.shape[0], self.latents.shape[0]
        slots = torch.arange(self.oldest, self.oldest + count, device=self.latents.device) % size
        self.latents[slots], self.history[slots], self.poses[slots] = clips.latents, clips.latents, clips.poses
        self.oldest = (self.oldest + count) % size

    def refresh(self) -> None:
        self._put(self.source.clips())

    def draw(self, batch: int) -> Drawn:
        # Without repetition: a clip drawn twice would be remembered in one of two ways.
        return self.at(torch.randperm(self.latents.shape[0], device=self.latents.device)[:batch])

    def at(self, rows: Tensor) -> Drawn:
        """The clips at these places."""
        text = repeated(self.source.text, len(rows))
        return Drawn(self.latents[rows].float(), self.poses[rows], self.history[rows].float(), rows, text=text)

    def remember(self, rows: Tensor, history: Tensor) -> None:
        """Histories [B, T, channels, h, w] of the clips at `rows`."""
        self.history[rows] = history.to(self.history)


def repeated(text: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The text of one world for so many."""
    return {name: x.expand(count, *x.shape[1:]) for name, x in text.items()}


def clip_conditioning(
    config: WorldConfig, poses: Tensor, intrinsics: Tensor, text: Mapping[str, Tensor]
) -> Conditioning:
    """What a denoiser is told about whole clips. poses: [B, frames + 1, 4, 4] relative to the first; intrinsics:
    [B, 4]; text: of `Clips`; all on one device. ConfigError: a model that reads text is given none, or the other way
    round.
    """
    if (config.denoiser.caption_channels is not None) != ("hidden" in text):
        raise ConfigError(
            f"{config.name} reads {'no text' if text else 'text'}, the clips have {sorted(text) or 'none'}; embed a "
            "prompt for exactly those models that read one (sanawm_env.prompts)."
        )
    latents = (poses.shape[1] - 1) // config.temporal_stride + 1
    given = condition(
        poses,
        intrinsics,
        torch.arange(latents, device=poses.device).expand(len(poses), -1),
        temporal_stride=config.temporal_stride,
        spatial_stride=config.spatial_stride,
        grid=config.grid,
        first=True,
    )
    return given.reading(text)
