"""Settings of the stage `adapt`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sanawm_env.errors import ConfigError
from sanawm_env.model.lora import LAYERS
from sanawm_env.training.objective import Levels

Stores = tuple[str, ...] | str


@dataclass(frozen=True, kw_only=True)
class AdaptTraining:
    """Settings of the stage.

    data: a store of episodes, or several. out: folder of the checkpoint, of adapter.safetensors and of the bundle that
    is left; `bundle`: the one to start from, distilled or teacher, in full precision, without text. method: "lora"
    trains adapters of `rank` of the `layers` (model/lora.py), "full" all weights. replay: a store, or several, of what
    shall not be forgotten; replay_share: part of the clips that are drawn from it.
    minutes, steps: of the whole training, over all runs; it ends with the first that is reached. batch: clips a step,
    on each GPU, of `latents` latent frames each; every: frames from one clip of an episode to the next, None for half a
    clip. mixture_share: part of the steps on the timestep mixture (all, for a teacher). context_noise: largest share of
    noise mixed into the history. imagined: so many chunks of a clip's history, at most, are what the model itself would
    have shown. levels: of noise. A full fine-tuning wants a tenth of the rate `lr`.
    validation: part of the episodes that is held out, at least one unless 0; on up to validation_episodes of them PSNR
    is measured over up to validation_frames streamed frames, before and after. cache: folder of latents, `out`/latents
    if None. compiled: compile the blocks.
    """

    data: Stores
    out: Path
    bundle: str = "rooms"
    method: Literal["lora", "full"] = "lora"
    rank: int = 16
    alpha: float = 16.0
    layers: tuple[str, ...] = LAYERS
    replay: Stores | None = None
    replay_share: float = 0.25
    minutes: float = 10.0
    steps: int | None = None
    batch: int = 8
    latents: int = 17
    every: int | None = None
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
        for name, value in counts.items():
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}, allowed > 0; change it.")
        for name in ("replay_share", "mixture_share", "validation"):
            if not 0 <= getattr(self, name) < 1 and not (name == "mixture_share" and self.mixture_share == 1):
                raise ConfigError(f"{name} is {getattr(self, name)}, allowed is a part of 1, 0 <= {name} < 1.")
