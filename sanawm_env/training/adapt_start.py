"""Where the stage `adapt` starts: a bundle, or a released model with what reads prompts for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sanawm_env import bundle
from sanawm_env.errors import ConfigError
from sanawm_env.prompts import PromptReader
from sanawm_env.training.adapt_settings import AdaptTraining
from sanawm_env.world import WorldModel

RELEASED_BITS = 16
# Arguments of `open_sana_wm` that make another model than the one whose weights are adapted, or move them about.
REFUSED = ("refiner", "refiner_lora", "refiner_precision", "offload", "adapter", "captured")


@dataclass(frozen=True, kw_only=True)
class Start:
    """model: on the device that trains. reader: of prompts, None for a model without text. told: name, bits, licence
    and provenance of its weights. shared: whether others in this process may use the model, so that its weights and
    layers are left alone.
    """

    model: WorldModel
    reader: PromptReader | None
    told: Mapping[str, Any]
    shared: bool


def open_start(settings: AdaptTraining, device: torch.device) -> Start:
    """What the settings name. ConfigError: a model that cannot be adapted, and errors of loading."""
    if settings.sana_wm is None:
        model = bundle.load(settings.bundle, device=device, precision="fp32", captured=False)
        start = Start(model=model, reader=None, told=bundle.description(settings.bundle), shared=True)
    else:
        start = _released(settings, settings.sana_wm, device)
    _check(start, settings)
    return start


def _released(settings: AdaptTraining, asked: Mapping[str, Any], device: torch.device) -> Start:
    from sanawm_env.sana_wm import SOURCES, open_sana_wm

    if wrong := [name for name in REFUSED if asked.get(name)]:
        raise ConfigError(
            f"sana_wm holds {wrong[0]}={asked[wrong[0]]!r}, which a model that is adapted cannot have; leave it out "
            "here, and give it where the adapted model is used."
        )
    where = {"device": str(device), "prompt_cache": settings.folder / "prompts"}
    model, reader = open_sana_wm(**{**where, **asked, "captured": False})
    source = str(asked.get("source") or SOURCES[model.config.variant])
    told = {
        "name": model.config.name,
        "bits": RELEASED_BITS,
        "licence": f"that of {Path(source).name}; read it before passing this on",
        "provenance": {"source": Path(source).name if Path(source).exists() else source},
    }
    return Start(model=model, reader=reader, told=told, shared=False)


def _check(start: Start, settings: AdaptTraining) -> None:
    model = start.model
    if model.reads_text and start.reader is None:
        raise ConfigError(
            f"bundle {settings.bundle!r} reads text; name its release, or its own folder, under sana_wm "
            "(sana_wm.source=..., sana_wm.variant=...), with the text encoder that it was trained with."
        )
    if model.denoiser.quantisation is not None:
        raise ConfigError(
            f"{model.config.name} is quantised to {model.execution}, which does not learn; load it in bf16 and "
            "quantise what comes out of it."
        )
    if settings.method == "full" and model.dtype != torch.float32:
        raise ConfigError(
            f"method is 'full' and the weights are {str(model.dtype).removeprefix('torch.')}, in which small steps are "
            "lost; use method=lora, or sana_wm.precision=fp32 (20 bytes a weight: `sanawm train estimate`)."
        )
