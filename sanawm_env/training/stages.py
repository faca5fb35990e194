"""The training stages by name, from plain mappings of settings: what the command line and `python -m` both call."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sanawm_env import bundle
from sanawm_env.config import from_mapping
from sanawm_env.errors import BackendError, ConfigError, nearest
from sanawm_env.model.config import WorldConfig, rooms_config, tiny_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.initialise import initialise
from sanawm_env.training.autoencoder import AutoencoderTraining, load_autoencoder, train_autoencoder
from sanawm_env.training.denoiser import DenoiserStage, DenoiserTraining
from sanawm_env.training.frames import Picture
from sanawm_env.training.ranks import Ranks
from sanawm_env.world import WorldModel

# Settings with which every line of a stage runs within seconds on a CPU; they say nothing about quality.
SMOKE_AUTOENCODER: dict[str, Any] = {
    "minutes": 0.2,
    "max_steps": 8,
    "batch": 2,
    "clip_frames": 9,
    "bank": 4,
    "source_scenes": 2,
    "clips_a_path": 2,
    "fresh_every": 4,
    "workers": 0,
    "compiled": False,
    "log_seconds": 1.0,
    "statistics_clips": 4,
    "validation_scenes": 2,
    "validation_frames": 8,
}
SMOKE_DENOISER: dict[str, Any] = {
    "minutes": 0.2,
    "max_steps": 6,
    "batch": 2,
    "latents": 5,
    "long_latents": 7,
    "bank": 4,
    "source_batch": 2,
    "workers": 0,
    "compiled": False,
    "log_seconds": 1.0,
}


def run_stage(name: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the stage `name` and returns its figures.

    mapping: fields of the stage's settings, and beside them `device` ("auto", "cpu", "cuda") and `smoke` (tiny
    sizes, seconds on a CPU; not for adapt). rooms-autoencoder also takes a group `autoencoder` (AutoencoderConfig);
    rooms-denoiser takes `autoencoder`, the folder that the first stage left, or `start`, a bundle whose weights it goes
    on from. ConfigError names an unknown stage or key.
    """
    if name not in STAGES:
        raise ConfigError(f"stage is {name!r}; {nearest(name, STAGES)}")
    settings = dict(mapping)
    ranks = _ranks(str(settings.pop("device", "auto")))
    try:
        return STAGES[name](settings, ranks)
    finally:
        ranks.close()


def _ranks(device: str) -> Ranks:
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; {nearest(device, ('auto', 'cpu', 'cuda'))}")
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("device is 'cuda' and torch sees none; use device=cpu, or install a CUDA build of torch.")
    ranks = Ranks()
    if device == "cpu":
        ranks.device = torch.device("cpu")
    return ranks


def _world(smoke: bool) -> WorldConfig:
    return tiny_config() if smoke else rooms_config()


def _rooms_autoencoder(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    smoke = bool(settings.pop("smoke", False))
    world = _world(smoke)
    changes = settings.pop("autoencoder", {})
    config = from_mapping(type(world.autoencoder), dataclasses.asdict(world.autoencoder) | dict(changes))
    training = from_mapping(AutoencoderTraining, (SMOKE_AUTOENCODER if smoke else {}) | settings)
    picture = Picture(height=world.height, width=world.width, intrinsics=world.intrinsics, fps=world.fps)
    return train_autoencoder(training, picture, config, ranks)


def _rooms_denoiser(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    smoke = bool(settings.pop("smoke", False))
    model, earlier = _beginning(settings, smoke)
    training = from_mapping(DenoiserTraining, (SMOKE_DENOISER if smoke else {}) | settings)
    stage = DenoiserStage(training, model, ranks, earlier)
    metrics = stage.train()
    return {"steps": stage.run.step, "bundle": str(training.out / "bundle"), **metrics} if ranks.is_first else {}


def _beginning(settings: dict[str, Any], smoke: bool) -> tuple[WorldModel, dict[str, Any]]:
    """Model and provenance that the keys `start` (a bundle) or `autoencoder` (a folder of the first stage) name."""
    given = [key for key in ("start", "autoencoder") if settings.get(key) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"the stage was given {' and '.join(given) or 'neither start nor autoencoder'}; give one of "
            "autoencoder=FOLDER (of the stage rooms-autoencoder) and start=BUNDLE (weights to go on from)."
        )
    start, folder = settings.pop("start", None), settings.pop("autoencoder", None)
    if start is not None:
        return bundle.load(start, device="cpu", precision="fp32"), bundle.description(start)["provenance"]
    autoencoder, origin = load_autoencoder(Path(str(folder)))
    world = dataclasses.replace(_world(smoke), autoencoder=autoencoder.config)
    torch.manual_seed(int(settings.get("seed", 0)))
    return WorldModel(world, initialise(Denoiser(world.denoiser)), autoencoder), {"autoencoder": origin}


def _smoke(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Every stage with tiny sizes, one after the other, in a folder that goes away unless `out` names one."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(str(settings.pop("out", scratch)))
        if settings:
            raise ConfigError(f"stage smoke takes no key {next(iter(settings))!r}; it knows out and device.")
        first = str(out / "autoencoder")
        figures = _rooms_autoencoder({"smoke": True, "out": first}, ranks)
        return figures | _rooms_denoiser({"smoke": True, "out": str(out), "autoencoder": first}, ranks)


def _adapt(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    # Reading episode stores needs packages that the other stages do without.
    from sanawm_env.training.adapt import AdaptTraining, adapt

    return adapt(from_mapping(AdaptTraining, settings), ranks)


STAGES: dict[str, Callable[[dict[str, Any], Ranks], dict[str, Any]]] = {
    "rooms-autoencoder": _rooms_autoencoder,
    "rooms-denoiser": _rooms_denoiser,
    "smoke": _smoke,
    "adapt": _adapt,
}
