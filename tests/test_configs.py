"""Every YAML in configs/ composes, builds its dataclass and names every key that the dataclass has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sanawm_env.cli import Convert
from sanawm_env.cli_parts import compose
from sanawm_env.config import from_mapping
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.command import EvalRooms

FOLDER = Path(__file__).parents[1] / "configs"


# What `run_stage` takes beside the fields of a stage's settings.
STAGE_KEYS = {"device", "smoke", "autoencoder", "start"}
STAGES = ("train_rooms", "train_estimate", "train_adapt", "train_ablation", "train_recipe")


def config_classes() -> dict[str, type]:
    from sanawm_env.annotate.settings import Annotate
    from sanawm_env.benchmarks.adapting import BenchAdapting
    from sanawm_env.benchmarks.futures import BenchFutures
    from sanawm_env.benchmarks.kernels import BenchKernels
    from sanawm_env.benchmarks.logging import BenchLogging
    from sanawm_env.benchmarks.report import Report
    from sanawm_env.benchmarks.rooms import BenchRooms
    from sanawm_env.benchmarks.sana_wm import BenchSanaWM
    from sanawm_env.benchmarks.store import BenchStore
    from sanawm_env.benchmarks.training import BenchTraining
    from sanawm_env.benchmarks.vector import BenchVector
    from sanawm_env.demo import DemoConfig
    from sanawm_env.demonstrations import Collect
    from sanawm_env.evaluation.ablations import EvalAblations
    from sanawm_env.evaluation.drift_guard import EvalDriftGuard
    from sanawm_env.evaluation.goal_images import EvalGoalImages
    from sanawm_env.evaluation.parity import EvalPrecisionParity
    from sanawm_env.evaluation.recipe_report import Recipe as RecipePage
    from sanawm_env.evaluation.transfer import EvalTransfer
    from sanawm_env.evaluation.world import EvalWorld
    from sanawm_env.generation.config import Generate
    from sanawm_env.policies.cloning_train import CloningTraining
    from sanawm_env.quantise import Quantize
    from sanawm_env.teleop import Teleop
    from sanawm_env.training.ablation import AblationTraining
    from sanawm_env.training.adapt_settings import AdaptTraining
    from sanawm_env.training.autoencoder import AutoencoderTraining
    from sanawm_env.training.denoiser import BidirectionalTraining, DenoiserTraining, TeacherTraining
    from sanawm_env.training.distill import DistillTraining
    from sanawm_env.training.estimate import Estimate
    from sanawm_env.training.ode import OdeTraining
    from sanawm_env.training.ppo import PpoTraining
    from sanawm_env.training.recipe import Recipe
    from sanawm_env.training.refiner import RefinerTraining
    from sanawm_env.training.rooms_drives import RecordRooms

    return {
        "annotate": Annotate,
        "collect": Collect,
        "demo": DemoConfig,
        "teleop": Teleop,
        "eval_rooms": EvalRooms,
        "bench_adapting": BenchAdapting,
        "bench_futures": BenchFutures,
        "bench_kernels": BenchKernels,
        "bench_logging": BenchLogging,
        "bench_rooms": BenchRooms,
        "convert": Convert,
        "quantize": Quantize,
        "generate": Generate,
        "eval_precision_parity": EvalPrecisionParity,
        "eval_transfer": EvalTransfer,
        "eval_goal_images": EvalGoalImages,
        "eval_world": EvalWorld,
        "eval_drift_guard": EvalDriftGuard,
        "bench_sana_wm": BenchSanaWM,
        "bench_report": Report,
        "bench_store": BenchStore,
        "bench_training": BenchTraining,
        "train_cloning": CloningTraining,
        "bench_vector": BenchVector,
        "train_rooms_autoencoder": AutoencoderTraining,
        "train_rooms_denoiser": DenoiserTraining,
        "train_rooms_bidirectional": BidirectionalTraining,
        "train_rooms_teacher": TeacherTraining,
        "train_rooms_ode": OdeTraining,
        "train_rooms_refiner": RefinerTraining,
        "train_rooms_distill": DistillTraining,
        "train_estimate": Estimate,
        "train_ppo": PpoTraining,
        "train_adapt": AdaptTraining,
        "train_ablation": AblationTraining,
        "train_recipe": Recipe,
        "eval_ablations": EvalAblations,
        "eval_recipe": RecipePage,
        "record_rooms": RecordRooms,
    }


def keys(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def test_every_yaml_belongs_to_a_dataclass() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*config_classes()}


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "teleop", "eval_rooms", "eval_precision_parity", "eval_transfer", "eval_goal_images"),
        *("generate", "collect", "train_cloning"),
        *("bench_adapting", "bench_futures", "bench_kernels", "bench_logging", "bench_report", "bench_rooms"),
        *("bench_sana_wm", "bench_store", "bench_training", "train_ppo", "record_rooms"),
    ],
)
def test_yaml_shows_every_key(command: str) -> None:
    cls = config_classes()[command]
    assert set(compose(command, [])) == keys(cls)


@pytest.mark.parametrize("command", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_yaml_composes_and_builds(command: str) -> None:
    mapping = compose(command, [])
    if command == "convert":
        mapping |= {"source": "released", "target": "ours", "variant": "distilled"}  # which have no default
    if command == "quantize":
        mapping |= {"bundle": "rooms", "out": "ours"}
    if command == "annotate":
        mapping |= {"video": "walk.mp4", "out": "ours", "licence": "CC0-1.0"}
    if command.startswith(STAGES):
        mapping = {key: value for key, value in mapping.items() if key not in STAGE_KEYS}
    from_mapping(config_classes()[command], mapping)


def test_overrides_reach_the_dataclass() -> None:
    mapping = compose("eval_rooms", ["scenes=3", "returns=[16]", "sheet=null"])
    built = from_mapping(EvalRooms, mapping)
    assert (built.scenes, built.returns, built.sheet) == (3, (16,), None)


@pytest.mark.parametrize("overrides", [["scenes"], ["scenes=["], ["=3"], ["~scens"]])
def test_overrides_that_cannot_be_read_are_one_line(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="write them as key=value") as caught:
        compose("eval_rooms", overrides)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown key 'scens' of EvalRooms; did you mean 'scenes'"):
        from_mapping(EvalRooms, compose("eval_rooms", ["scens=3"]))


def test_a_wrong_type_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"scenes is 'many' \(str\), expected int"):
        from_mapping(EvalRooms, compose("eval_rooms", ["scenes=many"]))
