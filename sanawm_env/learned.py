"""Episodes whose frames a learned model makes, by `world.initial` and `world.step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sanawm_env import world as worlds
from sanawm_env.bundle import open_model
from sanawm_env.env_config import EnvConfig
from sanawm_env.episodes import Episodes
from sanawm_env.errors import ConfigError
from sanawm_env.running import Shown
from sanawm_env.source import WorldSource
from sanawm_env.start import ResetOptions, Start
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.tasks import Columns
from sanawm_env.world import WorldModel


def check_prompts(model: WorldModel, prompts: Any) -> None:
    """ConfigError unless `prompts` can read what the model reads, and nothing is given to a model without text."""
    if model.reads_text != (prompts is not None):
        raise ConfigError(
            f"the model reads {'text' if model.reads_text else 'no text'} and prompts is {prompts!r}; pass a "
            "PromptReader (sanawm_env.prompts) to models that read text, and only to them."
        )


def check_steppable(model: WorldModel) -> None:
    """ConfigError unless the model advances chunk by chunk."""
    variant = model.config.variant
    if not model.config.steppable:
        raise ConfigError(
            f"the model's variant is {variant!r}, allowed is 'distilled', or a teacher with levels to step at: this "
            f"{variant} model denoises a whole trajectory and cannot be stepped; sanawm_env.generate makes clips, "
            "sanawm_env.PlannedEnv replays one."
        )


class LearnedEpisodes(Episodes):
    """A batch of running episodes over one model."""

    model: WorldModel
    placement: ClassVar[tuple[str, ...]] = ("device", "precision", "offload", "captured", "variant", "refiner")
    stepping: ClassVar[bool] = True  # whether the model itself is stepped

    @classmethod
    def open(cls, bundle: str | Path | WorldSource, **placement: Any) -> WorldModel:
        """The model itself, or the one that this process shares for the bundle's name or folder."""
        if not isinstance(bundle, str | Path | WorldModel):
            raise ConfigError(f"bundle is a {type(bundle).__name__}, allowed is a bundle's name or folder, or a model.")
        return open_model(bundle, **{"device": None, "precision": "auto", **placement})

    def __init__(self, model: WorldModel, config: EnvConfig, batch: int) -> None:
        if self.stepping:
            check_steppable(model)
        check_prompts(model, config.prompts)
        super().__init__(model, config, batch)

    def _begin(self, start: Start, seeds: Sequence[int], options: ResetOptions) -> tuple[WorldState, Shown, Columns]:
        world, shown = worlds.initial(
            self.model,
            start.images,
            seeds=list(seeds),
            poses=start.poses,
            intrinsics=start.intrinsics,
            horizon=self._horizon(options),
            text=self._read_prompts(start, len(seeds)),
            units=start.units,
            resident=self.config.resident,
        )
        return (world, self._shown(shown), {}) if self.decode else (world.plan(), Shown(None), {})

    def _read_prompts(self, start: Start, worlds: int) -> Mapping[str, torch.Tensor] | None:
        if self.config.prompts is None:
            return None
        prompt = None if start.scene is None else start.scene.prompt
        text: Mapping[str, torch.Tensor] = self.config.prompts([prompt or ""] * worlds)
        return text

    def _step(self, world: WorldState, poses: np.ndarray) -> tuple[WorldState, Shown, np.ndarray]:
        world, output = worlds.step(self.model, world, poses, decode=self.decode, resident=self.config.resident)
        self.last_latents = output.latents
        return world, self._shown(output), torch.isfinite(output.latents).flatten(1).all(dim=1).cpu().numpy()

    def _shown(self, output: StepOutput) -> Shown:
        if not self.config.latents or output.frames is None:
            return Shown(output.frames)
        # As the decoder reads them, so that they give the same frames again.
        return Shown(output.frames, output.decoded.to(self.model.dtype).float())
