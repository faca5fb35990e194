"""Stage `rooms-denoiser`: the Rooms denoiser, from random weights or from those of a bundle, by wall clock and over as
many runs as it takes.
"""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanawm_env.bundle import save as save_bundle
from sanawm_env.conditioning import Conditioning, condition
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.chunks import ChunkGrid, clip_chunks
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.rollout import rollout
from sanawm_env.rooms import render, sample_scenes
from sanawm_env.training.latents import ClipBank, ClipSource, Drawn
from sanawm_env.training.loop import Log
from sanawm_env.training.objective import Levels, mixture_loss, streamed_loss
from sanawm_env.training.paths import HELD_OUT_SEEDS, plan_paths
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.run import Run
from sanawm_env.world import WorldModel, initial

VALIDATION_SEED = HELD_OUT_SEEDS + 500_000_000  # apart from the seeds that `sanawm eval rooms` uses
VALIDATION_SCENES = 16


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining:
    """Settings of the stage.

    out: folder of the checkpoint, and of the averaged weights as a bundle, each written every `save_minutes`.
    minutes: wall clock of this run; total_minutes: of the whole schedule, over all runs. batch: clips a step.
    latents, long_latents: latent frames of the clips, and of those in the last `long_share` of the schedule (batch
    cut in proportion). bank, source_batch, fresh_every, workers: clips kept on the device, clips rendered at once,
    steps between refreshes, planning processes. mixture_share: share of steps on the timestep mixture.
    context_noise: largest share of noise mixed into the history. imagined_from: share of the schedule after which
    the history of a clip is what the model saw of it when it was drawn before, the clip itself until then; with
    `fresh_every` a clip is drawn batch x fresh_every / source_batch times, and so deep a rollout it becomes.
    """

    out: Path
    minutes: float = 8.0
    total_minutes: float = 8.0
    batch: int = 16
    latents: int = 17
    long_latents: int = 33
    long_share: float = 0.2
    bank: int = 2048
    source_batch: int = 32
    fresh_every: int = 4
    workers: int = 12
    lr: float = 1e-3
    muon_lr: float = 0.02
    warmup: int = 200
    clip: float = 1.0
    ema: float = 0.999
    mixture_share: float = 0.08
    context_noise: float = 0.15
    imagined_from: float = 0.4
    levels: Levels = Levels()
    first_seed: int = 100_000_000
    seed: int = 0
    compiled: bool = True
    max_steps: int | None = None
    log_seconds: float = 15.0
    validate_minutes: float = 3.0
    save_minutes: float = 1.0


class DenoiserStage:
    """The stage over one run, which resumes from `out/denoiser.pt` when that is there."""

    def __init__(
        self, settings: DenoiserTraining, model: WorldModel, ranks: Ranks, earlier: dict[str, Any] | None = None
    ) -> None:
        """model: where a first run starts. earlier: provenance of its weights, carried on into the exported bundle."""
        self.settings, self.world, self.ranks, self.device = settings, model.config, ranks, ranks.device
        self.earlier = earlier or {}
        device = self.device
        self.autoencoder = copy.deepcopy(model.autoencoder).to(device).eval().requires_grad_(False)
        self.denoiser = copy.deepcopy(model.denoiser).to(device, torch.float32).train().requires_grad_(True)
        self.run = Run(settings, self.denoiser, "denoiser.pt", ranks, plain=_kept_from_muon)
        self.plain = copy.deepcopy(self.denoiser)  # runs the validation without recompiling anything
        if settings.compiled:
            torch._dynamo.config.recompile_limit = 64  # two kinds of block, each in half a dozen shapes
            for block in self.denoiser.blocks:
                block.compile(dynamic=False)

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
                bank.refresh()
            loss, norm = self.step(bank, bank.draw(self._batch(is_long)), weight)
            if not self.ranks.is_first:
                continue
            log(run.step, run.progress, loss=loss, norm=norm)
            if run.clock.seconds - saved > 60 * settings.save_minutes:
                saved = run.clock.seconds
                run.save()
                self.export({})
            if run.clock.seconds - validated > 60 * settings.validate_minutes:
                validated = run.clock.seconds
                print(json.dumps({"step": run.step, **self.validate()}), flush=True)
        run.close()
        if not self.ranks.is_first:
            return {}
        run.save()
        self.export({})  # before the validation, so that nothing which fails there costs the weights
        metrics = self.validate()
        self.export(metrics)
        return metrics

    def export(self, metrics: dict[str, float]) -> None:
        """Writes the averaged weights as the bundle `out`/bundle, with where they come from."""
        this = self.run.provenance((VALIDATION_SEED, VALIDATION_SEED + VALIDATION_SCENES - 1), metrics)
        provenance = self.earlier | {"denoiser": [*self.earlier.get("denoiser", []), this]}
        model = WorldModel(self.world, copy.deepcopy(self.averaged()).cpu(), copy.deepcopy(self.autoencoder).cpu())
        save_bundle(self.settings.out / "bundle", model, provenance, replace=True)

    def averaged(self) -> Denoiser:
        """The averaged weights in a denoiser of their own."""
        self.run.ema.copy_to(self.plain)
        return self.plain

    def _is_long(self) -> bool:
        return self.run.progress > 1 - self.settings.long_share

    def _batch(self, is_long: bool) -> int:
        settings = self.settings
        return max(1, settings.batch * settings.latents // settings.long_latents) if is_long else settings.batch

    def new_bank(self, is_long: bool = False) -> tuple[ClipBank, Tensor]:
        """A bank of new clips, and the weights of their channels in the loss."""
        settings = self.settings
        latents = settings.long_latents if is_long else settings.latents
        planner = self.run.plan(
            batch=settings.source_batch,
            frames=self.world.temporal_stride * (latents - 1),
            fps=self.world.fps,
            workers=settings.workers,
        )
        source = ClipSource(self.world, self.autoencoder, planner, self.device)
        bank = ClipBank(source, settings.bank // (2 if is_long else 1))
        return bank, channel_weights(self.autoencoder, bank.draw(4).latents)

    def step(self, bank: ClipBank, clips: Drawn, weight: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimiser on clips that `bank` has drawn; weight: of the channels, as `new_bank` gives it.
        Returns the loss and the norm of the gradients.
        """
        chunks = clip_chunks(clips.latents.shape[1], self.world.chunk_latents)
        with self.run.autocast():
            loss, history = self._loss(clips, chunks, weight)
        if self.run.progress >= self.settings.imagined_from:
            bank.remember(clips.rows, history)
        return loss.detach(), self.run.descend(loss)

    def _loss(self, clips: Drawn, chunks: ChunkGrid, weight: Tensor) -> tuple[Tensor, Tensor]:
        settings, clean, given = self.settings, clips.latents, self._given(clips)
        # The same choice on every rank, so that none waits for another's longer step.
        if random.Random(self.run.step).random() < settings.mixture_share:
            dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
            memory = self.denoiser.memory(clean.shape[0], self.world.grid, device=self.device, dtype=dtype)
            loss = mixture_loss(self.denoiser, clean, given, chunks, memory, settings.levels, weight)
            return loss, clips.history
        noise = settings.context_noise
        return streamed_loss(self.denoiser, clean, clips.history, given, chunks, settings.levels, weight, noise)

    def _given(self, clips: Drawn) -> Conditioning:
        batch, latents = clips.latents.shape[:2]
        return condition(
            clips.poses,
            torch.tensor(self.world.intrinsics, device=self.device).expand(batch, 4),
            torch.arange(latents, device=self.device).expand(batch, -1),
            temporal_stride=self.world.temporal_stride,
            spatial_stride=self.world.spatial_stride,
            grid=self.world.grid,
            first=True,
        )

    def validate(self, frames: int = 64) -> dict[str, float]:
        """PSNR in dB over all pixels of streamed held-out clips, by frames ahead; averaged weights."""
        model = WorldModel(self.world, self.averaged(), self.autoencoder)
        seeds = list(range(VALIDATION_SEED, VALIDATION_SEED + VALIDATION_SCENES))
        path = torch.from_numpy(np.ascontiguousarray(plan_paths(seeds, frames, self.world.fps)))
        intrinsics = torch.tensor(self.world.intrinsics, device=self.device)
        size = (self.world.height, self.world.width)
        truth = render(sample_scenes(seeds, device=self.device), path.float().to(self.device), intrinsics, size).rgb
        with self.run.autocast():
            state, _ = initial(model, truth[:, 0], seeds=seeds, poses=path[:, 0])
            result = {}
            count = self.world.frames_per_chunk
            for chunk, (_, output) in enumerate(rollout(model, state, path[:, 1:]), start=1):
                assert output.frames is not None
                error = (output.frames[:, -1].float() - truth[:, chunk * count].float()).square().mean((1, 2, 3))
                result[f"psnr_{chunk * count}"] = round(float((10 * torch.log10(255**2 / error)).mean()), 2)
        return {name: result[name] for name in ("psnr_8", "psnr_32", "psnr_64") if name in result}


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


def _kept_from_muon(name: str) -> bool:
    """Embeddings, the final layer and the gates learn better from AdamW; depthwise filters are no matrices."""
    return any(
        part in name for part in ("embedder", "final_layer", "table", "depth_conv", "conv_k", "beta_proj", "gate_proj")
    )
