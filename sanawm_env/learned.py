"""Episodes whose frames a learned model makes, by `world.initial` and `world.step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sanawm_env import world as worlds
from sanawm_env.bundle import open_model
from sanawm_env.capacity import Needs
from sanawm_env.drift_guard import open_guard, rows_of, signals
from sanawm_env.env_config import EnvConfig
from sanawm_env.episodes import Episodes
from sanawm_env.errors import ConfigError
from sanawm_env.running import Judged, Shown, end_drifted
from sanawm_env.snapshot import Snapshot
from sanawm_env.source import WorldSource
from sanawm_env.start import ResetOptions, Start
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.step_memory import working
from sanawm_env.tasks import Columns
from sanawm_env.world import WorldModel

# Of the rows: the first chunk of an episode as the drift guard keeps it, NaN before there is one.
FIRST = "first_chunk"


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
        self.guard = None if config.guard is None else open_guard(config.guard).check_fits(model.fingerprint)

    def _working(self, state: int) -> Needs:
        if not self.stepping:
            return super()._working(state)
        return working(self.model, state, decode=self.decode, resident=self.config.resident)

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
        own = self._unseen(len(seeds))
        return (world, self._shown(shown), own) if self.decode else (world.plan(), Shown(None), own)

    def _unseen(self, worlds: int) -> Columns:
        """Rows of worlds of which the drift guard, where there is one, has seen no first chunk."""
        # Of a chunk it keeps two numbers of the frames and two of every latent channel.
        width = 2 + 2 * self.model.config.denoiser.in_channels
        return {} if self.guard is None else {FIRST: np.full((worlds, width), np.nan)}

    def restore(self, taken: Snapshot) -> None:
        """As that of all episodes; after a snapshot that was taken without a guard, confidence is NaN."""
        super().restore(taken)
        rows = {name: kept for name, kept in self.now.rows.items() if name != FIRST or self.guard is not None}
        self.running = replace(self.now, rows=self._unseen(self.batch) | rows)

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

    def _watch(self, judged: Judged, sound: np.ndarray) -> tuple[Judged, dict[str, np.ndarray]]:
        judged, told = super()._watch(judged, sound)
        if self.guard is None:
            return judged, told
        now = self.now
        if now.frames is None or self.last_latents is None:
            return judged, {"confidence": np.full(self.batch, np.nan)}
        from sanawm_env.generation.filters import measure

        seen, chunk = rows_of(measure(now.frames, self.last_latents)), now.world.chunk.numpy()
        first = np.where((chunk == 1)[:, None], seen, now.rows[FIRST])
        confidence = self.guard.confidence(signals(first, seen, chunk - 1))
        self.running = replace(now, rows=now.rows | {FIRST: first})
        if self.config.truncate_below is not None:
            self.running, judged = end_drifted(self.now, judged, confidence < self.config.truncate_below)
        return judged, {"confidence": confidence}

    def _shown(self, output: StepOutput) -> Shown:
        if not self.config.latents or output.frames is None:
            return Shown(output.frames)
        # As the decoder reads them, so that they give the same frames again.
        return Shown(output.frames, output.decoded.to(self.model.dtype).float())
