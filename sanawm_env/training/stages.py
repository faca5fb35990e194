"""The training stages by name, from plain mappings of settings: what the command line and `python -m` both call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from sanawm_env import bundle
from sanawm_env.config import from_mapping
from sanawm_env.errors import BackendError, ConfigError, nearest
from sanawm_env.model.config import WorldConfig, rooms_config, tiny_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.initialise import initialise
from sanawm_env.training.ablation import AblationTraining, ablation
from sanawm_env.training.autoencoder import AutoencoderTraining, load_autoencoder, train_autoencoder
from sanawm_env.training.clip_stage import ClipStage, many_steps, turned
from sanawm_env.training.denoiser import (
    BidirectionalStage,
    BidirectionalTraining,
    DenoiserStage,
    DenoiserTraining,
    TeacherTraining,
)
from sanawm_env.training.distill import DistillStage, DistillTraining
from sanawm_env.training.estimate import Estimate, estimate
from sanawm_env.training.frames import Picture
from sanawm_env.training.ode import OdeStage, OdeTraining
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.recipe import Recipe, follow
from sanawm_env.training.refiner import RefinerStage, RefinerTraining
from sanawm_env.world import WorldModel

T = TypeVar("T")

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
SMOKE_CLIPS: dict[str, Any] = {
    "minutes": 0.2,
    "max_steps": 6,
    "batch": 2,
    "latents": 5,
    "bank": 4,
    "source_batch": 2,
    "workers": 0,
    "compiled": False,
    "log_seconds": 1.0,
    "validation_scenes": 2,
}
SMOKE_FORM: dict[str, Any] = {
    "width": 32,
    "depth": 2,
    "long_latents": 7,
    "judging": {"scenes": 2, "frames": 8, "back": 8, "back_scenes": 2, "pose_every": 0},
}
SMOKE_STEPS: dict[str, Any] = {"max_steps": 2, "schedule": {"steps": 4}}


def run_stage(name: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the stage `name` and returns its figures.

    mapping: fields of the stage's settings, and beside them `device` ("auto", "cpu", "cuda") and `smoke` (tiny
    sizes, seconds on a CPU; not for adapt). rooms-autoencoder also takes a group `autoencoder` (AutoencoderConfig);
    the others take `start`, a bundle whose weights they go on from, or, but for those that need a teacher,
    `autoencoder`, the folder that the first stage left. ConfigError names an unknown stage or key.
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
    training = _read(DenoiserTraining, settings, SMOKE_CLIPS | {"long_latents": 7} if smoke else {})
    return _finish(DenoiserStage(training, model, ranks, earlier))


def _rooms_bidirectional(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    smoke = bool(settings.pop("smoke", False))
    model, earlier = _beginning(settings, smoke)
    training = _read(BidirectionalTraining, settings, SMOKE_CLIPS | SMOKE_STEPS if smoke else {})
    start = turned(model, "bidirectional", **many_steps(training.schedule))
    return _finish(BidirectionalStage(training, start, ranks, earlier))


def _rooms_teacher(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    smoke = bool(settings.pop("smoke", False))
    model, earlier = _beginning(settings, smoke)
    training = _read(TeacherTraining, settings, SMOKE_CLIPS | SMOKE_STEPS | {"rolled": 2} if smoke else {})
    start = turned(model, "teacher", **many_steps(training.schedule))
    return _finish(DenoiserStage(training, start, ranks, earlier))


def _rooms_ode(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    smoke = bool(settings.pop("smoke", False))
    teacher, earlier = _from_bundle(settings)
    small = SMOKE_CLIPS | {"max_steps": 2, "timesteps": [1000, 667]}
    return _finish(OdeStage(_read(OdeTraining, settings, small if smoke else {}), teacher, ranks, earlier))


def _rooms_distill(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    smoke = bool(settings.pop("smoke", False))
    student, earlier = _from_bundle(settings)
    training = _read(
        DistillTraining, settings, SMOKE_CLIPS | {"max_steps": 1, "every": 2, "rolled": 2} if smoke else {}
    )
    real = None if training.real is None else bundle.load(training.real, device="cpu", precision="fp32")
    return _finish(DistillStage(training, student, real, ranks, earlier))


def _rooms_refiner(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    smoke, start = bool(settings.pop("smoke", False)), settings.get("start")
    model, earlier = _from_bundle(settings)
    small = SMOKE_CLIPS | {"max_steps": 2, "layers": 1, "heads": 2, "head_dim": 16}
    training = _read(RefinerTraining, settings, small if smoke else {})
    return _finish(RefinerStage(training, str(start), model, ranks, earlier))


def _ablation(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    smoke = bool(settings.pop("smoke", False))
    base, _ = _from_bundle(settings)
    return ablation(_read(AblationTraining, settings, SMOKE_CLIPS | SMOKE_FORM if smoke else {}), base, ranks)


def _read(kind: type[T], given: Mapping[str, Any], instead: Mapping[str, Any]) -> T:
    """Settings of a stage. instead: values in place of defaults; a group that is given in part keeps the stage's own
    defaults for the rest.
    """
    mapping = dict(instead) | dict(given)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        own = field.default
        if dataclasses.is_dataclass(own) and not isinstance(own, type) and isinstance(mapping.get(field.name), Mapping):
            mapping[field.name] = dataclasses.asdict(own) | mapping[field.name]
    return from_mapping(kind, mapping)


def _finish(stage: ClipStage) -> dict[str, Any]:
    """Trains, and returns the figures where they are known: on rank 0."""
    metrics = stage.train()
    told = {"steps": stage.run.step, "bundle": str(stage.settings.out / "bundle"), **metrics}
    return told if stage.ranks.is_first else {}


def _from_bundle(settings: dict[str, Any]) -> tuple[WorldModel, dict[str, Any]]:
    """Model and provenance of the bundle that the key `start` names."""
    start = settings.pop("start", None)
    if start is None:
        raise ConfigError("the stage was given no start; give the bundle of the stage before it, start=FOLDER.")
    return bundle.load(start, device="cpu", precision="fp32"), bundle.description(start)["provenance"]


def _beginning(settings: dict[str, Any], smoke: bool) -> tuple[WorldModel, dict[str, Any]]:
    """Model and provenance that the keys `start` (a bundle) or `autoencoder` (a folder of the first stage) name."""
    given = [key for key in ("start", "autoencoder") if settings.get(key) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"the stage was given {' and '.join(given) or 'neither start nor autoencoder'}; give one of "
            "autoencoder=FOLDER (of the stage rooms-autoencoder) and start=BUNDLE (weights to go on from)."
        )
    if given == ["start"]:
        settings.pop("autoencoder", None)
        return _from_bundle(settings)
    settings.pop("start", None)
    folder = settings.pop("autoencoder")
    autoencoder, origin = load_autoencoder(Path(str(folder)))
    world = dataclasses.replace(_world(smoke), autoencoder=autoencoder.config)
    torch.manual_seed(int(settings.get("seed", 0)))
    return WorldModel(world, initialise(Denoiser(world.denoiser)), autoencoder), {"autoencoder": origin}


def _recipe(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    return follow(from_mapping(Recipe, settings), lambda name, given: STAGES[name](given, ranks), ranks)


def _adapt(settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    # Reading episode stores needs packages that the other stages do without.
    from sanawm_env.training.adapt import adapt
    from sanawm_env.training.adapt_settings import AdaptReleased, AdaptTraining

    return adapt(_read(AdaptTraining if settings.get("sana_wm") is None else AdaptReleased, settings, {}), ranks)


STAGES: dict[str, Callable[[dict[str, Any], Ranks], dict[str, Any]]] = {
    "rooms-autoencoder": _rooms_autoencoder,
    "rooms-denoiser": _rooms_denoiser,
    "rooms-bidirectional": _rooms_bidirectional,
    "rooms-teacher": _rooms_teacher,
    "rooms-ode": _rooms_ode,
    "rooms-distill": _rooms_distill,
    "rooms-refiner": _rooms_refiner,
    "recipe": _recipe,
    "estimate": lambda settings, ranks: estimate(from_mapping(Estimate, settings)),
    "adapt": _adapt,
    "ablation": _ablation,
}
