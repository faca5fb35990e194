"""Stage `rooms-autoencoder`: trained on clips rendered as it goes, by wall clock, over one or more runs."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanawm_env.config import from_mapping
from sanawm_env.errors import BundleError
from sanawm_env.evaluation.metrics import psnr
from sanawm_env.model.autoencoder import Autoencoder, AutoencoderConfig, to_uint8
from sanawm_env.model.checkpoint import as_stored, read_weights, write_weights
from sanawm_env.training.compiling import compiled
from sanawm_env.training.frames import FrameBank, FrameSource, Picture, rendered, to_pixels
from sanawm_env.training.loop import Log
from sanawm_env.training.losses import decibels, reconstruction_loss
from sanawm_env.training.paths import HELD_OUT_SEEDS, plan_paths
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.run import Run

VALIDATION_SEED = HELD_OUT_SEEDS + 400_000_000  # apart from the seeds that `sanawm eval rooms` uses
DESCRIPTION = "autoencoder.json"


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """Settings of the stage.

    out: folder of the checkpoint (autoencoder.pt) and of the result (autoencoder.json with its shards).
    minutes: wall clock of this run; total_minutes: of the whole schedule, over all runs (None: this run is all).
    batch: clips of `clip_frames` frames a step, on each GPU. bank: clips kept on the device.
    source_scenes, clips_a_path: rooms rendered at once, clips cut from each one's trajectory.
    fresh_every: steps between refreshes of the bank. workers: planning processes.
    noise: largest deviation of the noise put on latents before decoding, against their own.
    square, edges: weights of losses.py. muon_lr: None trains with AdamW alone. first_seed: of the training rooms.
    """

    out: Path
    minutes: float = 6.0
    total_minutes: float | None = None
    batch: int = 32
    clip_frames: int = 17
    bank: int = 4096
    source_scenes: int = 32
    clips_a_path: int = 4
    fresh_every: int = 16
    workers: int = 12
    lr: float = 2e-3
    muon_lr: float | None = 0.02
    warmup: int = 100
    clip: float = 1.0
    ema: float = 0.999
    noise: float = 0.1
    square: float = 10.0
    edges: float = 0.5
    first_seed: int = 0
    seed: int = 0
    compiled: bool = True
    max_steps: int | None = None
    log_seconds: float = 10.0
    statistics_clips: int = 512
    validation_scenes: int = 32
    validation_frames: int = 64


class AutoencoderStage:
    """The stage over one run, which resumes from `out/autoencoder.pt` when that is there."""

    def __init__(
        self, settings: AutoencoderTraining, picture: Picture, config: AutoencoderConfig, ranks: Ranks
    ) -> None:
        self.settings, self.picture, self.ranks, self.device = settings, picture, ranks, ranks.device
        device = self.device
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.benchmark = True
        self.model = Autoencoder(config).to(device)
        self.run = Run(settings, self.model, "autoencoder.pt", ranks)
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.reconstruct: Callable[[Tensor, Tensor], Tensor] = self._reconstruct
        if settings.compiled:
            self.reconstruct = compiled(self._reconstruct)

    def train(self) -> dict[str, Any]:
        """Trains until the clock or `max_steps` stops it; saves checkpoint and result; returns the held-out figures."""
        settings, run = self.settings, self.run
        try:
            bank, log = FrameBank(self._source(), settings.bank), Log(settings.log_seconds)
            while run.goes_on():
                if run.step % settings.fresh_every == 0:
                    bank.refresh()
                loss, mean_square, norm = self._step(bank.draw(settings.batch))
                if self.ranks.is_first:
                    clips = settings.batch * self.ranks.count / max(1e-9, self._lap())
                    log(run.step, run.progress, loss=loss, db=decibels(mean_square), norm=norm, clips_a_second=clips)
        finally:
            run.close()
        run.save()
        return self._finish(bank) if self.ranks.is_first else {}

    def _finish(self, bank: FrameBank) -> dict[str, Any]:
        self.run.ema.copy_to(self.averaged)
        self._measure_latents(bank)
        metrics = self.validate()
        self.export(metrics)
        return metrics

    def _lap(self) -> float:
        """Seconds since the last call."""
        now = time.monotonic()
        lap, self._last = now - getattr(self, "_last", now - 1.0), now
        return lap

    def _source(self) -> FrameSource:
        settings = self.settings
        planner = self.run.plan(
            batch=settings.source_scenes,
            frames=(settings.clip_frames - 1) * settings.clips_a_path,
            fps=self.picture.fps,
            workers=settings.workers,
        )
        return FrameSource(self.picture, planner, settings.clip_frames, self.device)

    def _step(self, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        settings = self.settings
        # Squared: most clips carry little noise, because a clean latent must decode best.
        amount = settings.noise * torch.rand(truth.shape[0], 1, 1, 1, 1, device=self.device) ** 2
        with self.run.autocast():
            shown = self.reconstruct(truth, amount)
        loss = reconstruction_loss(shown, truth, square=settings.square, edges=settings.edges)
        return loss.detach(), (shown.detach().float() - truth).square().mean(), self.run.descend(loss)

    def _reconstruct(self, frames: Tensor, amount: Tensor) -> Tensor:
        """Pixels decoded from latents with noise of `amount` times each channel's own deviation."""
        latents = self.model.encode(frames)
        scale = latents.detach().std(dim=(0, 1, 3, 4), keepdim=True)
        latents = latents + amount * scale * torch.randn_like(latents)
        return self.model.decode_clip(latents)

    @torch.no_grad()
    def _measure_latents(self, bank: FrameBank) -> None:
        """Sets the averaged model's latent statistics from clips of the bank."""
        count = max(1, self.settings.statistics_clips // self.settings.batch)
        latents = torch.cat([self.averaged.encode(bank.draw(self.settings.batch)).cpu() for _ in range(count)])
        raw = latents.transpose(1, 2).transpose(0, 1).flatten(1).to(self.device)
        spread, centre = torch.std_mean(raw, dim=1)
        # What encode() gave was normalised by the statistics of an earlier run.
        vae = self.averaged.vae
        self.averaged.set_statistics(centre * vae.latents_std + vae.latents_mean, spread * vae.latents_std)

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """PSNR of averaged weights on held-out clips, mean over scenes: plain, noisy latents, bf16, 8-bit weights."""
        settings = self.settings
        seeds = list(range(VALIDATION_SEED, VALIDATION_SEED + settings.validation_scenes))
        path = plan_paths(seeds, settings.validation_frames, self.picture.fps)
        parts = [slice(i, i + 8) for i in range(0, len(seeds), 8)]
        frames = torch.cat([rendered(self.picture, seeds[part], path[part], self.device).cpu() for part in parts])
        plain, half, eighth = self.averaged, copy.deepcopy(self.averaged).bfloat16(), copy.deepcopy(self.averaged)
        eighth.load_state_dict(as_stored(plain.state_dict(), bits=8))
        metrics: dict[str, Any] = {"psnr": self._psnr(plain, frames, 0.0)}
        metrics |= {f"psnr_noise_{level}": self._psnr(plain, frames, level) for level in (0.05, 0.1)}
        metrics["psnr_bf16"] = self._psnr(half, frames, 0.0)
        metrics["psnr_8_bits"] = self._psnr(eighth, frames, 0.0)
        later = self._psnr_by_frame(plain, frames)
        metrics["psnr_by_frame"] = {str(k): later[k] for k in (0, 1, 4, 8, 16, 32, 64) if k < len(later)}
        return metrics

    def _psnr(self, model: Autoencoder, frames: Tensor, noise: float) -> float:
        """Mean over scenes of the PSNR of all their frames together."""
        rows = [psnr(self._shown(model, part, noise).flatten(1, 2), part.flatten(1, 2)) for part in frames.split(8)]
        return round(float(torch.cat(rows).mean()), 3)

    def _psnr_by_frame(self, model: Autoencoder, frames: Tensor) -> list[float]:
        shown = torch.cat([self._shown(model, part, 0.0) for part in frames.split(8)])
        return [round(float(psnr(shown[:, k], frames[:, k]).mean()), 3) for k in range(frames.shape[1])]

    def _shown(self, model: Autoencoder, frames: Tensor, noise: float) -> Tensor:
        """uint8 frames on the CPU after encoding and decoding."""
        latents = model.encode(to_pixels(frames.to(self.device)))
        latents = latents + noise * torch.randn_like(latents)
        return to_uint8(model.decode_clip(latents)).cpu()

    def export(self, metrics: dict[str, Any]) -> None:
        """Writes the averaged weights and where they come from."""
        last = VALIDATION_SEED + self.settings.validation_scenes - 1
        save_autoencoder(self.settings.out, self.averaged, self.run.provenance((VALIDATION_SEED, last), metrics))


def save_autoencoder(folder: Path, model: Autoencoder, provenance: dict[str, Any]) -> None:
    """Writes autoencoder.json and its shards, fp32, to be read by `load_autoencoder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = write_weights(folder, "autoencoder", model.state_dict())
    description = {"config": dataclasses.asdict(model.config), "files": files, "provenance": provenance}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


def load_autoencoder(folder: Path) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder that the stage left in `folder`, and its provenance. BundleError when there is none."""
    path = folder / DESCRIPTION
    if not path.exists():
        raise BundleError(f"{path} does not exist; run the stage rooms-autoencoder with out={folder} first.")
    description = json.loads(path.read_text())
    model = Autoencoder(from_mapping(AutoencoderConfig, description["config"]))
    model.load_state_dict(read_weights(folder / name for name in description["files"]))
    return model.eval().requires_grad_(False), description["provenance"]


def train_autoencoder(
    settings: AutoencoderTraining, picture: Picture, config: AutoencoderConfig, ranks: Ranks
) -> dict[str, Any]:
    """Runs the stage and prints its held-out figures."""
    stage = AutoencoderStage(settings, picture, config, ranks)
    if ranks.is_first:
        vae = stage.model.vae
        sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (vae.encoder, vae.decoder)]
        parts = f"encoder {sizes[0]:.2f} M, decoder {sizes[1]:.2f} M parameters"
        print(f"autoencoder: {parts}; from step {stage.run.step} on {ranks.count} x {ranks.device.type}", flush=True)
    metrics = stage.train()
    if ranks.is_first:
        minutes = round(stage.run.clock.seconds / 60, 2)
        print(json.dumps({"step": stage.run.step, "minutes": minutes, **metrics}), flush=True)
    return metrics
