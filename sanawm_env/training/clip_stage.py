"""What the stages of a denoiser share: clips on the device, what they tell it, saving, validation and the bundle; each
stage adds its step.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sanawm_env.bundle import save as save_bundle
from sanawm_env.conditioning import Conditioning
from sanawm_env.evaluation.rollout import dream
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.config import Schedule, Variant
from sanawm_env.rooms import render, sample_scenes
from sanawm_env.training.compiling import compile_blocks
from sanawm_env.training.latents import ClipBank, Clips, ClipSource, clip_conditioning, repeated
from sanawm_env.training.learner import Learner
from sanawm_env.training.loop import Log
from sanawm_env.training.paths import HELD_OUT_SEEDS, plan_paths
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.run import Run
from sanawm_env.training.scaling import Scaling
from sanawm_env.world import WorldModel

VALIDATION_SEED = HELD_OUT_SEEDS + 500_000_000  # apart from the seeds that `sanawm eval rooms` uses


@dataclass(frozen=True, kw_only=True)
class ClipTraining:
    """Settings that all stages of a denoiser have.

    out: folder of the checkpoint, and of the averaged weights as a bundle, each written every `save_minutes`.
    minutes: wall clock of this run, compiling apart; total_minutes: of the whole schedule, over all runs. batch: clips
    a step. latents, long_latents: latent frames of the clips, and of those in the last `long_share` of the schedule
    (batch cut in proportion). bank, source_batch, fresh_every, workers: clips kept on the device, clips rendered at
    once, steps between refreshes, planning processes. validation_scenes: held-out ones. scaling: how a large model is
    trained.
    """

    out: Path
    minutes: float = 8.0
    total_minutes: float | None = None
    batch: int = 16
    latents: int = 17
    long_latents: int = 33
    long_share: float = 0.0
    bank: int = 2048
    source_batch: int = 32
    fresh_every: int = 4
    workers: int = 12
    lr: float = 1e-3
    muon_lr: float | None = 0.02
    warmup: int = 200
    clip: float = 1.0
    ema: float = 0.999
    first_seed: int = 100_000_000
    seed: int = 0
    compiled: bool = True
    max_steps: int | None = None
    log_seconds: float = 15.0
    validate_minutes: float = 3.0
    validation_scenes: int = 16
    save_minutes: float = 1.0
    scaling: Scaling = Scaling()


class ClipStage(ABC):
    """A stage over one run, which resumes from `out/<checkpoint>` when that is there."""

    compiles: ClassVar[bool] = True  # whether the denoiser runs in few enough shapes, and is what learns

    def __init__(
        self,
        settings: ClipTraining,
        model: WorldModel,
        ranks: Ranks,
        earlier: dict[str, Any] | None = None,
        *,
        checkpoint: str = "denoiser.pt",
        betas: tuple[float, float] = (0.9, 0.98),
        beside: Mapping[str, Learner] | None = None,
        trained: nn.Module | None = None,
        text: Mapping[str, Tensor] | None = None,
    ) -> None:
        """model: where a first run starts; its config is that of the result. earlier: provenance of its weights,
        carried on into the exported bundle. checkpoint, betas, beside: of `Run`. trained: what learns, in place of the
        model's denoiser. text: of all clips, one row of what `WorldState.text` holds, for a model that reads text.
        """
        self.text = {} if text is None else dict(text)
        self.settings, self.world, self.ranks, self.device = settings, model.config, ranks, ranks.device
        self.earlier = earlier or {}
        device = self.device
        self.autoencoder = copy.deepcopy(model.autoencoder).to(device).eval().requires_grad_(False)
        self.denoiser = copy.deepcopy(model.denoiser).to(device, torch.float32)
        module = (self.denoiser if trained is None else trained).train().requires_grad_(True)
        self.plain: Any = copy.deepcopy(module)  # runs the validation without recompiling anything
        self.run = Run(
            settings,
            module,
            checkpoint,
            ranks,
            plain=kept_from_muon,
            scaling=settings.scaling,
            betas=betas,
            beside=beside,
        )
        if settings.compiled and self.compiles:
            compile_blocks(self.denoiser)

    @abstractmethod
    def step(self, bank: Any, clips: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimiser on what `drawn` gave; weight: of the channels, as `new_bank` gives it. Returns
        the loss and the norm of the gradients.
        """

    def figures(self) -> dict[str, Tensor]:
        """What the log shows of the last step beside these."""
        return {}

    def train(self) -> dict[str, float]:
        """Trains until the clock or `max_steps` stops it; saves checkpoint and bundle; returns the held-out figures."""
        settings, run = self.settings, self.run
        log, validated, saved = Log(settings.log_seconds), run.clock.seconds, run.clock.seconds
        bank, is_long = None, False
        while run.goes_on():
            if bank is None or is_long != self._is_long():
                is_long = self._is_long()
                bank, weight = self.new_bank(is_long)
            if run.step % settings.fresh_every == 0:
                self.refresh(bank)
            loss, norm = self.step(bank, self.drawn(bank, self._batch(is_long)), weight)
            if self.ranks.is_first:
                log(run.step, run.progress, loss=loss, norm=norm, **self.figures())
            if self._due(saved, settings.save_minutes):
                saved = run.clock.seconds
                self.keep()
            if self._due(validated, settings.validate_minutes):
                validated = run.clock.seconds
                self.average()
                if self.ranks.is_first:
                    print(json.dumps({"step": run.step, **self.validate()}), flush=True)
        run.close()
        self.keep()  # before the validation, so that nothing which fails there costs the weights
        if not self.ranks.is_first:
            return {}
        metrics = self.validate()
        self.export(metrics)
        return metrics

    def _due(self, since: float, minutes: float) -> bool:
        """Whether `minutes` have passed by rank 0's clock."""
        return self.ranks.agree(float(self.run.clock.seconds - since > 60 * minutes)) > 0

    def average(self) -> None:
        """Takes the averaged weights for validation and export; every rank must call it."""
        self.plain.load_state_dict(self.run.averaged())

    def keep(self) -> None:
        """Saves the checkpoint and exports the averaged weights; every rank must call it."""
        self.run.save()
        self.average()
        if self.ranks.is_first:
            self.export({})

    def export(self, metrics: dict[str, float]) -> None:
        """Writes the weights last averaged as the bundle `out`/bundle, with where they come from."""
        this = self.run.provenance(self.validation_seeds, metrics)
        provenance = self.earlier | {"denoiser": [*self.earlier.get("denoiser", []), this]}
        model = WorldModel(self.world, copy.deepcopy(self.plain).cpu(), copy.deepcopy(self.autoencoder).cpu())
        # Exactly: a stage that goes on from here may move a weight by less than a step of 8 bits.
        save_bundle(self.settings.out / "bundle", model, provenance, bits=32, replace=True)

    @property
    def validation_seeds(self) -> tuple[int, int]:
        """First and last of the held-out rooms on which the stage validates."""
        return VALIDATION_SEED, VALIDATION_SEED + self.settings.validation_scenes - 1

    def _is_long(self) -> bool:
        return self.run.progress > 1 - self.settings.long_share

    def _batch(self, is_long: bool) -> int:
        settings = self.settings
        return max(1, settings.batch * settings.latents // settings.long_latents) if is_long else settings.batch

    def new_bank(self, is_long: bool = False) -> tuple[Any, Tensor]:
        """A bank of new clips, and the weights of their channels in the loss."""
        bank = ClipBank(self.source(is_long), self.settings.bank // (2 if is_long else 1))
        return bank, channel_weights(self.autoencoder, bank.draw(4).latents)

    def source(self, is_long: bool = False) -> ClipSource:
        """Where new clips come from."""
        settings = self.settings
        latents = settings.long_latents if is_long else settings.latents
        planner = self.run.plan(
            batch=settings.source_batch,
            frames=self.world.temporal_stride * (latents - 1),
            fps=self.world.fps,
            workers=settings.workers,
        )
        return ClipSource(self.world, self.autoencoder, planner, self.device, self.text)

    def drawn(self, bank: Any, batch: int) -> Any:
        """The clips of a step."""
        return bank.draw(batch)

    def refresh(self, bank: Any) -> None:
        """Replaces the oldest clips of a bank."""
        bank.refresh()

    def given(self, clips: Clips) -> Conditioning:
        """What the denoiser is told about the clips."""
        intrinsics = torch.tensor(self.world.intrinsics, device=self.device).expand(len(clips.poses), 4)
        return clip_conditioning(self.world, clips.poses, intrinsics, clips.text)

    def averaged_model(self) -> WorldModel:
        """The world of the weights last averaged."""
        return WorldModel(self.world, self.plain, self.autoencoder)

    def validate(self, frames: int = 64) -> dict[str, float]:
        """PSNR in dB over all pixels of held-out clips, by frames ahead; weights last averaged."""
        model = self.averaged_model()
        seeds = list(range(VALIDATION_SEED, VALIDATION_SEED + self.settings.validation_scenes))
        path = torch.from_numpy(np.ascontiguousarray(plan_paths(seeds, frames, self.world.fps)))
        intrinsics = torch.tensor(self.world.intrinsics, device=self.device)
        size = (self.world.height, self.world.width)
        shown = [k for k in (8, 32, 64) if k <= frames]
        seen = path[:, [0, *shown]].float().to(self.device)
        truth = render(sample_scenes(seeds, device=self.device), seen, intrinsics, size, geometry=False).rgb
        with self.run.autocast():
            told = {"text": repeated(self.text, len(seeds))} if self.text else {}
            made = dream(model, truth[:, 0], seeds, path, shown, lambda done: None, **told).frames
        error = (made.float() - truth[:, 1:].float()).square().mean((2, 3, 4))
        psnr = (10 * torch.log10(255**2 / error)).mean(0).tolist()
        return {f"psnr_{k}": round(value, 2) for k, value in zip(shown, psnr, strict=True)}


def turned(model: WorldModel, variant: Variant, **world: Any) -> WorldModel:
    """The same weights to be trained into another variant. world: fields of its config, changed too."""
    base = model.config.name.removesuffix(f"-{model.config.variant}")
    name = base if variant == "distilled" else f"{base}-{variant}"
    config = replace(model.config, name=name, variant=variant, **world)
    return WorldModel(config, model.denoiser, model.autoencoder)


def many_steps(schedule: Schedule) -> dict[str, Any]:
    """Fields of the config of a model that takes these steps, over a whole clip or chunk by chunk."""
    return {"schedule": schedule, "timesteps": schedule.timesteps}


@torch.no_grad()
def channel_weights(autoencoder: Autoencoder, latents: Tensor, size: float = 0.3) -> Tensor:
    """How much of the picture each latent channel carries, mean 1: the change of pixels when noise is put into that
    channel alone.

    latents: [B, T, channels, h, w].
    """
    plain = autoencoder.decode_clip(latents).float()
    weights = []
    for channel in range(latents.shape[2]):
        changed = latents.clone()
        changed[:, :, channel] += size * torch.randn_like(changed[:, :, channel])
        weights.append((autoencoder.decode_clip(changed).float() - plain).square().mean())
    weight = torch.stack(weights)
    return (weight / weight.mean()).clamp(0.2, 4.0)


def kept_from_muon(name: str) -> bool:
    """Embeddings, the final layer and the gates learn better from AdamW; depthwise filters are no matrices."""
    return any(
        part in name for part in ("embedder", "final_layer", "table", "depth_conv", "conv_k", "beta_proj", "gate_proj")
    )
