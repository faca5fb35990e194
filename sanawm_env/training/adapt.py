"""Stage `adapt`: a bundle fine-tuned on the episodes of a store, whole or by low-rank adapters."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sanawm_env import bundle
from sanawm_env.benchmarks.machine import commit
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import clip_chunks
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.lora import LowRank, adapted_layers, merging, read_lora
from sanawm_env.training.adapt_latents import ClipCache, Clips, Footage, described, joined
from sanawm_env.training.adapt_settings import AdaptTraining, Stores
from sanawm_env.training.adapt_validation import psnr_of
from sanawm_env.training.clip_stage import channel_weights, compile_blocks
from sanawm_env.training.latents import clip_conditioning
from sanawm_env.training.loop import Log
from sanawm_env.training.objective import Levels, mixture_loss, rooted, streamed_loss, velocity
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.run import Run
from sanawm_env.world import WorldModel

CHECKPOINT, JOB, ADAPTER, BUNDLE = "adapt.pt", "adapt.json", "adapter.safetensors", "bundle"
# What a checkpoint is of: a run that goes on from it has the same.
SAME = ("method", "rank", "alpha", "layers", "seed", "validation")


class Schedule(Run):
    """A run whose end may be counted in steps, and that goes on after a stop as if there had been none."""

    def __init__(self, settings: AdaptTraining, module: nn.Module, ranks: Ranks) -> None:
        super().__init__(settings, module, CHECKPOINT, ranks)
        self.began, self.steps = self.step, settings.steps
        self.first_step = 0  # a run that goes on does not warm up again

    def goes_on(self) -> bool:
        limit = self.settings.max_steps
        over = self.clock.expired or (limit is not None and self.step - self.began >= limit)
        over = over or (self.steps is not None and self.step >= self.steps)
        done = self.clock.progress if self.steps is None else self.step / self.steps
        told = self.ranks.agree(2.0 if over else done)
        self.progress = min(told, 1.0)
        return told <= 1.0


class Adaptation:
    """The stage over one run, which resumes from `out`/adapt.pt when that is there."""

    def __init__(self, settings: AdaptTraining, model: WorldModel, told: dict[str, Any], ranks: Ranks) -> None:
        """model: to start from, fp32, on the device of `ranks`; told: what its bundle.json says."""
        check_model(model)
        self.settings, self.model, self.told, self.ranks = settings, model, told, ranks
        self.device, self.config = ranks.device, model.config
        clip_chunks(settings.latents, self.config.chunk_latents)
        self.sources = [Footage(_listed(data), model) for data in (settings.data, settings.replay) if data is not None]
        self.held_out = [_held_out(footage, settings) for footage in self.sources]
        self.before = self._open_job()
        self.clips = [self._clips(*pair) for pair in zip(self.sources, self.held_out, strict=True)]
        self.weight = self._channel_weights()
        self.denoiser: Denoiser = copy.deepcopy(model.denoiser).requires_grad_(False)
        torch.manual_seed(settings.seed)
        self.trained: nn.Module = self.denoiser
        if settings.method == "lora":
            names = adapted_layers(self.denoiser, settings.layers)
            self.trained = LowRank(self.denoiser, names, settings.rank, settings.alpha)
        else:
            self.denoiser.requires_grad_(True)
        self.run = Schedule(settings, self.trained, ranks)
        if settings.compiled:
            compile_blocks(self.denoiser)

    def train(self) -> dict[str, Any]:
        """Trains until the schedule or `max_steps` ends it; leaves checkpoint, adapter and bundle; returns the figures
        before and after."""
        run, log, saved = self.run, Log(self.settings.log_seconds), self.run.clock.seconds
        while run.goes_on():
            loss, norm = self.step()
            if not self.ranks.is_first:
                continue
            log(run.step, run.progress, loss=loss, norm=norm)
            if run.clock.seconds - saved > 60 * self.settings.save_minutes:
                saved = run.clock.seconds
                run.save()
        if not self.ranks.is_first:
            return {}
        run.save()
        return self._finish()

    def step(self) -> tuple[Tensor, Tensor]:
        """One step on clips that follow from seed, step and rank; returns the loss and the norm of the gradients."""
        dice = np.random.default_rng([self.settings.seed, self.run.step, self.ranks.index])
        torch.manual_seed(int(dice.integers(2**62)))
        clips = self._draw(dice).to(self.device)
        loss = self._loss(clips)
        return loss.detach(), self.run.descend(loss)

    def _draw(self, dice: np.random.Generator) -> Clips:
        """A batch, of which each clip is from `replay` with a chance of `replay_share`."""
        settings = self.settings
        again = 0 if len(self.clips) == 1 else int(dice.binomial(settings.batch, settings.replay_share))
        counts = [settings.batch - again, again][: len(self.clips)]
        drawn = [(cache, dice.integers(len(cache), size=n)) for cache, n in zip(self.clips, counts, strict=True) if n]
        return joined([cache.draw(numbers) for cache, numbers in drawn])

    def _loss(self, clips: Clips) -> Tensor:
        settings, clean = self.settings, clips.latents
        given = clip_conditioning(self.config, clips.poses, clips.intrinsics)
        chunks = clip_chunks(clean.shape[1], self.config.chunk_latents)
        # The same choices on every rank, so that none waits for another's longer step.
        dice = random.Random(self.run.step)
        teacher = self.config.variant == "teacher"
        if teacher or dice.random() < settings.mixture_share:
            measure = velocity if teacher else rooted  # as each is trained from the beginning
            with self.run.autocast():
                return mixture_loss(self.denoiser, clean, given, chunks, settings.levels, self.weight, measure)
        history = clean
        # A context of its own: weights that autocast has cast here have no gradients.
        with torch.no_grad(), self.run.autocast():
            for _ in range(dice.randint(0, settings.imagined)):
                full = Levels(full_share=1.0)
                _, history = streamed_loss(self.denoiser, clean, history, given, chunks, full, self.weight)
        with self.run.autocast():
            return streamed_loss(
                self.denoiser, clean, history, given, chunks, settings.levels, self.weight, settings.context_noise
            )[0]

    def _clips(self, footage: Footage, held_out: list[int]) -> ClipCache:
        """The clips to learn from, encoded by rank 0."""
        settings = self.settings
        folder = settings.out / "latents" if settings.cache is None else settings.cache
        every = settings.every or self.config.temporal_stride * (settings.latents - 1) // 2
        cache = ClipCache(folder, footage, latents=settings.latents, every=every)
        learned = [number for number in range(len(footage)) if number not in held_out]
        if self.ranks.is_first:
            cache.encode(learned)
        self.ranks.agree(0.0)
        cache.open(learned)
        return cache

    def _channel_weights(self) -> Tensor:
        """Those of the stage rooms-denoiser for a model that predicts clean latents, else ones, as SANA-WM has it."""
        channels = self.config.denoiser.in_channels
        if self.config.denoiser.prediction != "clean":
            return torch.ones(channels, device=self.device)
        # Of one opening chunk: each channel takes a decoding, and more chunks move the weights by 7 % in the mean.
        few = self.clips[0].draw(np.arange(1)).latents[:, : 1 + self.config.chunk_latents]
        torch.manual_seed(self.settings.seed)
        return channel_weights(self.model.autoencoder, few.to(self.device))

    def _open_job(self) -> dict[str, float]:
        """What was measured before the first run. ConfigError when `out` is of another job."""
        settings, path = self.settings, self.settings.out / JOB
        mine = {name: getattr(settings, name) for name in SAME} | {"weights_sha256": self.model.fingerprint}
        mine = json.loads(json.dumps(mine))
        if path.exists():
            known = json.loads(path.read_text())
            for name, value in mine.items():
                if known["job"].get(name) != value:
                    raise ConfigError(
                        f"{settings.out} holds a training with {name} {known['job'].get(name)!r}, asked for is "
                        f"{value!r}; go on with the former, or choose another out=."
                    )
            before: dict[str, float] = known["before"]
        elif self.ranks.is_first:
            before = self._measured(self.model)
            print(json.dumps({"before": before}), flush=True)
            with appearing(path) as draft:
                draft.write_text(json.dumps({"job": mine, "before": before}, indent=1) + "\n")
        else:
            before = {}
        return before

    def _measured(self, model: WorldModel) -> dict[str, float]:
        """PSNR on the held-out episodes of the stores, names of those of `replay` with that in front."""
        settings, told = self.settings, dict[str, float]()
        for name, footage, held_out in zip(("", "replay_"), self.sources, self.held_out, strict=False):
            some = held_out[: settings.validation_episodes]
            found = psnr_of(model, footage, some, settings.validation_frames)
            told |= {f"{name}{key}": value for key, value in found.items()}
        return told

    def _finish(self) -> dict[str, Any]:
        """Writes the averaged weights, measures them as they are read back, and adds what was found."""
        out = self.settings.out
        figures: dict[str, Any] = {"steps": self.run.step, "minutes": round(self.run.clock.seconds / 60, 2)}
        figures["trained_parameters"] = sum(x.numel() for x in self.trained.parameters())
        if isinstance(self.trained, LowRank):
            self.run.ema.copy_to(self.trained)
            with appearing(out / ADAPTER) as draft:
                save_file(self.trained.tensors(), draft)
                draft.chmod(0o644)  # safetensors writes files that only their owner can read
            figures["adapter_bytes"] = (out / ADAPTER).stat().st_size
            adapted = merged(self.model, out / ADAPTER)
        else:
            adapted = with_weights(self.model, self.run.ema.state.__getitem__)
        self._write(adapted, figures)
        after = self._measured(bundle.load(out / BUNDLE, device=self.device, precision="fp32", captured=False))
        gain = {name: round(after[name] - self.before[name], 2) for name in after}
        figures |= {"before": self.before, "after": after, "gain": gain}
        self._write(adapted, figures)
        return figures | {"bundle": str(out / BUNDLE)}

    def _write(self, model: WorldModel, figures: dict[str, Any]) -> None:
        """The bundle in `out`, with where it comes from."""
        told = {key: x.name if isinstance(x, Path) else x for key, x in dataclasses.asdict(self.settings).items()}
        told |= {key: [Path(one).name for one in _listed(told[key])] for key in ("data", "replay") if told[key]}
        this = {
            "from": {"name": self.told["name"], "weights_sha256": self.model.fingerprint},
            "data": [described(footage) for footage in self.sources],
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "devices": self.ranks.count,
            "torch": torch.__version__,
            "commit": commit(),
            "settings": told,
            **figures,
        }
        earlier = self.told["provenance"]
        provenance = earlier | {"adapted": [*earlier.get("adapted", []), this]}
        whole = WorldModel(self.config, model.denoiser.cpu(), copy.deepcopy(model.autoencoder).cpu())
        bits, licence = self.told["bits"], self.told["licence"]
        bundle.save(self.settings.out / BUNDLE, whole, provenance, bits=bits, replace=True, licence=licence)


def check_model(model: WorldModel) -> None:
    """ConfigError for a model that the stage cannot train."""
    if model.config.variant not in ("distilled", "teacher"):
        raise ConfigError(
            f"{model.config.name} is {model.config.variant}, allowed are distilled and teacher, which learn clips "
            "chunk by chunk; give a bundle of one of these."
        )
    if model.reads_text:
        raise ConfigError(
            f"{model.config.name} reads text, which episodes do not have and the objectives do not take yet; give a "
            "bundle without text."
        )


def merged(model: WorldModel, adapter: str | Path, scale: float = 1.0) -> WorldModel:
    """A copy of a plain model with an adapter's file added to its denoiser's weights. BundleError: it does not fit."""
    plain = model.denoiser.state_dict().__getitem__
    return with_weights(model, merging(model.denoiser, plain, read_lora(adapter), model.device, scale))


def with_weights(model: WorldModel, read: Callable[[str], Tensor]) -> WorldModel:
    """A copy of a model whose denoiser has the weights that `read` returns by name."""
    denoiser = copy.deepcopy(model.denoiser)
    denoiser.load_state_dict({name: read(name) for name in denoiser.state_dict()})
    return WorldModel(model.config, denoiser, model.autoencoder)


def adapt(settings: AdaptTraining, ranks: Ranks) -> dict[str, Any]:
    """Runs the stage, or goes on with it; returns the figures, on the first rank."""
    model = bundle.load(settings.bundle, device=ranks.device, precision="fp32", captured=False)
    return Adaptation(settings, model, bundle.description(settings.bundle), ranks).train()


def _held_out(footage: Footage, settings: AdaptTraining) -> list[int]:
    """Numbers of the episodes that are not learned from, in an order drawn from the seed."""
    count = max(1, round(settings.validation * len(footage))) if settings.validation else 0
    if count >= len(footage):
        raise ConfigError(
            f"{len(footage)} episodes leave none to learn from with validation={settings.validation}; record more, or "
            "pass validation=0."
        )
    order: list[int] = np.random.default_rng([settings.seed]).permutation(len(footage)).tolist()
    return order[:count]


def _listed(data: Stores) -> list[str]:
    return [data] if isinstance(data, str) else list(data)
