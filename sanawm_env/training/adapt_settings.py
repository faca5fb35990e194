"""Settings of the stage `adapt`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sanawm_env.errors import ConfigError
from sanawm_env.model.lora import LAYERS
from sanawm_env.training.objective import Levels
from sanawm_env.training.scaling import Scaling

Stores = tuple[str, ...] | str


@dataclass(frozen=True, kw_only=True)
class AdaptTraining:
    """Settings of the stage.

    data: a store of episodes, or several. out: folder of the checkpoint, of adapter.safetensors and of the bundle that
    is left; `bundle`: the one to start from, in full precision, without text; sana_wm: arguments of `open_sana_wm`
    instead, to start from a released model. method: "lora" trains adapters of `rank` of the `layers` (model/lora.py),
    "full" all weights. prompt: what episodes without a prompt of their own show, for a model that reads text.
    text_dropout: part of the clips that are learned without their text, for a model with guidance. units: of `Footage`.
    replay: a store, or several, of what shall not be forgotten; replay_share: part of the clips that are drawn from it;
    forget: dB of PSNR that its held-out episodes may lose: of what was learned, a share is kept (`strength` of the
    figures, in steps of 0.05, which is the least) with which they lose no more; None keeps all.
    minutes, steps: of the whole training, over all runs; it ends with the first that is reached. batch: clips a step,
    on each GPU, of `latents` latent frames each; every: frames from one clip of an episode to the next, None for half a
    clip. scaling: how a large model is trained. mixture_share: part of the steps of a distilled model on the timestep
    mixture. context_noise: largest share of noise mixed into the history. imagined: so many chunks of a clip's history,
    at most, are what the model itself would have shown. levels: of noise. A full fine-tuning wants a tenth of the rate
    `lr`.
    validation: part of the episodes that is held out, at least one unless 0; on up to validation_episodes of them PSNR
    is measured over up to validation_frames generated frames, before and after. cache: folder of latents and embedded
    prompts, `out`/latents if None. compiled: compile the blocks.
    """

    data: Stores
    out: Path
    bundle: str = "rooms"
    sana_wm: Mapping[str, Any] | None = None
    method: Literal["lora", "full"] = "lora"
    rank: int = 16
    alpha: float = 16.0
    layers: tuple[str, ...] = LAYERS
    prompt: str | None = None
    text_dropout: float = 0.1
    units: float | None = None
    replay: Stores | None = None
    replay_share: float = 0.25
    forget: float | None = 0.5
    minutes: float = 10.0
    steps: int | None = None
    batch: int = 8
    latents: int = 17
    every: int | None = None
    scaling: Scaling = Scaling()
    lr: float = 1e-3
    warmup: int = 50
    clip: float = 1.0
    ema: float = 0.998
    mixture_share: float = 0.08
    context_noise: float = 0.1
    imagined: int = 3
    levels: Levels = Levels(full_share=0.75)
    validation: float = 0.1
    validation_episodes: int = 16
    validation_frames: int = 64
    cache: Path | None = None
    compiled: bool = False
    max_steps: int | None = None
    seed: int = 0
    log_seconds: float = 10.0
    save_minutes: float = 1.0

    # What every stage has (run.py) and this one leaves no choice of.
    muon_lr = None
    total_minutes = None
    first_seed = 0

    def __post_init__(self) -> None:
        counts = {"steps": self.steps, "batch": self.batch, "minutes": self.minutes, "every": self.every, "lr": self.lr}
        counts |= {"units": self.units, "forget": self.forget}
        for name, value in counts.items():
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}, allowed > 0; change it.")
        for name in ("replay_share", "mixture_share", "validation", "text_dropout"):
            if not 0 <= getattr(self, name) < 1 and not (name == "mixture_share" and self.mixture_share == 1):
                raise ConfigError(f"{name} is {getattr(self, name)}, allowed is a part of 1, 0 <= {name} < 1.")
        if self.method == "lora" and self.scaling.sharded:
            raise ConfigError(
                "weights are to be sharded, but adapters leave them as they are, in bf16 on every GPU; set "
                "scaling.sharded=false, or method=full."
            )

    @property
    def folder(self) -> Path:
        """Of latents and embedded prompts."""
        return self.out / "latents" if self.cache is None else self.cache


@dataclass(frozen=True, kw_only=True)
class AdaptReleased(AdaptTraining):
    """The settings with defaults for a released model of 2.66 B parameters on one GPU: clips of 10.5 s one at a time,
    four a step, activations computed again; noise levels and clipping as the paper trains (spec training.md 1.2, 2 and
    3.1).
    """

    minutes: float = 120.0
    batch: int = 1
    latents: int = 22
    scaling: Scaling = Scaling(checkpointed=True, accumulate=4)
    lr: float = 1e-4
    warmup: int = 20
    clip: float = 0.5
    ema: float = 0.99
    mixture_share: float = 0.0
    imagined: int = 0
    levels: Levels = Levels(full_share=0.0, shift=9.95, law="logit_normal", shares=(0.1, 0.4, 0.4, 0.1))
    forget: float | None = None  # two episodes tell too little
    validation_episodes: int = 2
    validation_frames: int = 96
    save_minutes: float = 5.0
