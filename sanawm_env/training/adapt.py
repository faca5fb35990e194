"""Stage `adapt`: a bundle or a released model fine-tuned on the episodes of a store, whole or by low-rank adapters."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanawm_env import bundle
from sanawm_env.adapters import adapted, with_weights, write_adapter
from sanawm_env.benchmarks.machine import commit
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import ConfigError
from sanawm_env.model.config import WorldConfig
from sanawm_env.model.lora import LowRank
from sanawm_env.training.adapt_footage import Footage
from sanawm_env.training.adapt_latents import ClipCache, EpisodeText, FilmedClips, joined
from sanawm_env.training.adapt_settings import AdaptTraining, Stores
from sanawm_env.training.adapt_start import Start, open_start
from sanawm_env.training.adapt_tuning import Tuning
from sanawm_env.training.adapt_validation import psnr_of
from sanawm_env.training.clip_stage import channel_weights
from sanawm_env.training.estimate import adapting
from sanawm_env.training.loop import Log
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.self_forcing import score_chunks
from sanawm_env.world import WorldModel

JOB, ADAPTER, BUNDLE = "adapt.json", "adapter.safetensors", "bundle"
BITS = 16  # of a bundle's matrices, at least: a training this short moves weights by less than the steps of 8
WEAKEST = 0.05  # share of what was learned that is kept, with a warning, whatever it forgets
# What a checkpoint is of: a run that goes on from it has the same.
SAME = ("method", "rank", "alpha", "layers", "seed", "validation", "prompt", "units")


class Adaptation:
    """The stage over one run, which resumes from `out`/adapt.pt when that is there."""

    def __init__(self, settings: AdaptTraining, start: Start, ranks: Ranks) -> None:
        """start: with its model on the device of `ranks`."""
        model = start.model
        self.settings, self.start, self.model, self.ranks = settings, start, model, ranks
        self.device, self.config = ranks.device, model.config
        _check_length(self.config, settings.latents)
        self.sources = [self._footage(data) for data in (settings.data, settings.replay) if data is not None]
        self.held_out = [_held_out(footage, settings) for footage in self.sources]
        self._tell_memory()
        self.text = self._embedded()
        self.before = self._open_job()
        self.clips = [self._clips(*pair) for pair in zip(self.sources, self.held_out, strict=True)]
        self.tuning = Tuning(settings, model, ranks, self._channel_weights(), shared=start.shared)
        self.run = self.tuning.run

    def train(self) -> dict[str, Any]:
        """Trains until the schedule or `max_steps` ends it; leaves checkpoint, adapter and, of a start that was a
        bundle, a bundle; returns the figures before and after."""
        run, log, saved = self.run, Log(self.settings.log_seconds), self.run.clock.seconds
        while run.goes_on():
            loss, norm = self.tuning.step(self.draw)
            if self.ranks.is_first:
                log(run.step, run.progress, loss=loss, norm=norm)
            if self.ranks.agree(float(run.clock.seconds - saved > 60 * self.settings.save_minutes)):
                saved = run.clock.seconds
                run.save()
        run.save()
        averaged = run.averaged()
        return self._finish(averaged) if self.ranks.is_first else {}

    def draw(self, part: int) -> FilmedClips:
        """Batch `part` of the step at hand, on the device: it follows from seed, step, rank and part. Each clip is from
        `replay` with a chance of `replay_share`, and without its text with one of `text_dropout`."""
        settings = self.settings
        dice = np.random.default_rng([settings.seed, self.run.step, self.ranks.index, part])
        torch.manual_seed(int(dice.integers(2**62)))
        again = 0 if len(self.clips) == 1 else int(dice.binomial(settings.batch, settings.replay_share))
        counts = [settings.batch - again, again][: len(self.clips)]
        drawn = [(cache, dice.integers(len(cache), size=n)) for cache, n in zip(self.clips, counts, strict=True) if n]
        clips = joined([cache.draw(numbers) for cache, numbers in drawn])
        if self.text is not None:
            prompts = [prompt for cache, numbers in drawn for prompt in cache.prompts_of(numbers)]
            if self.text.negative is not None:
                dropped = dice.random(len(prompts)) < settings.text_dropout
                prompts = [None if gone else prompt for prompt, gone in zip(prompts, dropped, strict=True)]
            clips.text = self.text.of(prompts)
        return clips.to(self.device)

    def _footage(self, data: Stores) -> Footage:
        return Footage(_listed(data), self.model, prompt=self.settings.prompt, units=self.settings.units)

    def _tell_memory(self) -> None:
        """Says what the training will need before anything is encoded."""
        settings = self.settings
        if settings.method == "full" or not self.ranks.is_first:
            return
        told = adapting(
            self.config,
            settings.rank,
            settings.layers,
            settings.batch,
            settings.latents,
            checkpointed=settings.scaling.checkpointed,
            weight_bytes=self.model.dtype.itemsize,
        )
        print(json.dumps({"memory": told}), flush=True)

    def _embedded(self) -> EpisodeText | None:
        """The text of all episodes; rank 0 encodes it, the others read what it has written."""
        reader = self.start.reader
        if reader is None:
            return None
        prompts = [footage.prompt_of(number) or "" for footage in self.sources for number in range(len(footage))]
        text = EpisodeText(reader, prompts) if self.ranks.is_first else None
        self.ranks.agree(0.0)
        return EpisodeText(reader, prompts) if text is None else text

    def _clips(self, footage: Footage, held_out: list[int]) -> ClipCache:
        """The clips to learn from, encoded by rank 0."""
        settings = self.settings
        every = settings.every or self.config.temporal_stride * (settings.latents - 1) // 2
        cache = ClipCache(settings.folder, footage, latents=settings.latents, every=every)
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
            found = psnr_of(model, footage, some, settings.validation_frames, self.text)
            told |= {f"{name}{key}": value for key, value in found.items()}
        return told

    def _finish(self, averaged: dict[str, Tensor]) -> dict[str, Any]:
        """Writes the averaged weights, measures them as they are read back, and adds what was found. What forgets more
        than is allowed is written and measured again, weaker.
        """
        trained, allowed = self.tuning.trained, self.settings.forget
        figures: dict[str, Any] = {"steps": self.run.step, "minutes": round(self.run.clock.seconds / 60, 2)}
        figures["trained_parameters"] = sum(x.numel() for x in trained.parameters())
        if isinstance(trained, LowRank):
            trained.load_state_dict(averaged)
            trained.detach()
            figures["adapter_bytes"] = sum(x.nbytes for x in trained.tensors().values())
        figures |= {"before": self.before, "strength": 1.0}
        while True:
            made, read = self._made(averaged, figures)
            after = self._measured(read)
            figures["after"] = after
            figures["gain"] = gain = {name: round(after[name] - self.before[name], 2) for name in after}
            forgotten = -gain.get("replay_psnr", 0.0)
            if allowed is None or forgotten <= allowed:
                break
            print(json.dumps({"strength": figures["strength"], "gain": gain}), flush=True)
            if figures["strength"] <= WEAKEST:
                warnings.warn(
                    f"{WEAKEST:g} of what was learned still forgets {forgotten:g} dB, allowed are {allowed:g}; raise "
                    "replay_share, or lower lr.",
                    stacklevel=2,
                )
                break
            figures["strength"] = weaker(figures["strength"], forgotten, allowed)
        if isinstance(trained, LowRank):
            write_adapter(self.settings.out / ADAPTER, trained, self.model, self._provenance(figures))
        if self._leaves_bundle:
            self._write(made, figures)
            return figures | {"bundle": str(self.settings.out / BUNDLE)}
        return figures | {"adapter": str(self.settings.out / ADAPTER)}

    @property
    def _leaves_bundle(self) -> bool:
        return self.start.shared or not isinstance(self.tuning.trained, LowRank)

    def _made(self, averaged: dict[str, Tensor], figures: dict[str, Any]) -> tuple[WorldModel, WorldModel]:
        """The model at the strength of the figures, written, and as it is read back."""
        trained, out, strength = self.tuning.trained, self.settings.out, figures["strength"]
        if isinstance(trained, LowRank):
            trained.alpha = self.settings.alpha * strength
            write_adapter(out / ADAPTER, trained, self.model, self._provenance(figures))
            made = adapted(self.model, out / ADAPTER)
        else:
            plain = self.model.denoiser.state_dict()
            made = with_weights(self.model, lambda name: plain[name].lerp(averaged[name].to(plain[name]), strength))
        if not self._leaves_bundle:
            return made, made
        self._write(made, figures)
        return made, bundle.load(out / BUNDLE, device=self.device, precision="fp32", captured=False)

    def _write(self, model: WorldModel, figures: dict[str, Any]) -> None:
        """The bundle in `out`, with where it comes from."""
        told = self.start.told
        earlier = told["provenance"]
        provenance = earlier | {"adapted": [*earlier.get("adapted", []), self._provenance(figures)]}
        whole = WorldModel(self.config, copy.deepcopy(model.denoiser).cpu(), copy.deepcopy(model.autoencoder).cpu())
        bits, licence = max(told["bits"], BITS), told["licence"]
        bundle.save(self.settings.out / BUNDLE, whole, provenance, bits=bits, replace=True, licence=licence)

    def _provenance(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Where the trained weights come from, as JSON without a path of this machine."""
        told = {key: x.name if isinstance(x, Path) else x for key, x in dataclasses.asdict(self.settings).items()}
        told |= {key: [Path(one).name for one in _listed(told[key])] for key in ("data", "replay") if told[key]}
        told.pop("sana_wm")
        base = {"name": self.start.told["name"], "weights_sha256": self.model.fingerprint}
        return {
            "from": base | ({} if self.start.shared else self.start.told["provenance"]),
            "data": [footage.described() for footage in self.sources],
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "devices": self.ranks.count,
            "torch": torch.__version__,
            "commit": commit(),
            "settings": told,
            **figures,
        }


def adapt(settings: AdaptTraining, ranks: Ranks) -> dict[str, Any]:
    """Runs the stage, or goes on with it; returns the figures, on the first rank."""
    return Adaptation(settings, open_start(settings, ranks.device), ranks).train()


def weaker(strength: float, forgotten: float, allowed: float) -> float:
    """The strength to try next, where one forgot so many dB: a loss grows about with the square of the way."""
    now = strength / WEAKEST
    return round(WEAKEST * max(1, min(round(now) - 1, math.floor(now * math.sqrt(allowed / forgotten)))), 2)


def _check_length(config: WorldConfig, latents: int) -> None:
    """ConfigError for clips that are no whole chunks, or too short for the variant's objective."""
    chunks = score_chunks(config, latents)
    if config.variant == "distilled" and len(chunks.lengths) == 1:
        raise ConfigError(
            f"latents is {latents}, one chunk; a distilled model learns chunks behind others: pass at least "
            f"{1 + 2 * config.chunk_latents}."
        )


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
