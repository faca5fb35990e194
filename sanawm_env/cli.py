"""The command `sanawm`: each subcommand composes its YAML, builds a dataclass, calls one library function, prints.

`configs/<command>.yaml` holds the values; flags and `key=value` arguments override them, in Hydra's syntax.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sanawm_env.cli_stores import add_stores
from sanawm_env.config import from_mapping
from sanawm_env.errors import ConfigError, SanaWMError

T = TypeVar("T")
INTERRUPTED = 130
DOCTOR = "what this machine can run of the released model, and what is missing; works offline"


@dataclass(frozen=True, kw_only=True)
class Convert:
    """What `sanawm convert` is told; the meaning of each is in `sanawm_env.pretrained.convert`."""

    source: str
    target: Path
    variant: Literal["bidirectional", "teacher", "distilled"]
    revision: str | None = None
    autoencoder: str | None = None
    height: int = 704
    width: int = 1280
    replace: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Exit status: 0 done, 1 done and something is wrong, 2 refused (one line says why and what
    to do), 130 interrupted."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except SanaWMError as error:
        print(f"sanawm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sanawm: interrupted; nothing is left half written", file=sys.stderr)
        return INTERRUPTED
    return 0


def compose(command: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping of `configs/<command>.yaml` with `key=value` overrides. ConfigError on what cannot be parsed.

    Hydra only composes: whether a key is known is for the dataclass to say, which names the nearest one.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words = [word if word.startswith(("+", "~")) else f"++{word}" for word in overrides]
    try:
        with initialize_config_module("sanawm_env.configs", version_base="1.3"):
            chosen = OmegaConf.to_container(hydra_compose(command, words), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"arguments {list(overrides)} are refused ({first}); write them as key=value") from error
    return {str(key): value for key, value in dict(chosen).items()}  # type: ignore[arg-type]


def parser() -> argparse.ArgumentParser:
    """Every subcommand with its flags."""
    top = argparse.ArgumentParser(prog="sanawm", description="The SANA-WM world model as a simulator.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    demo = _command(commands, "demo", _demo, "step the shipped world along a tour, beside its ground truth")
    _flags(demo, frames=int, scene_seed=int, out=str, device=str, bundle=str)
    evaluate = _subjects(commands, "eval", "how faithful a world is to its ground truth")
    rooms = _command(evaluate, "rooms", _eval_rooms, "on held-out rooms and drives")
    _flags(rooms, scenes=int, seed=int, device=str, bundle=str, sheet=str)
    rooms.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parity = _command(evaluate, "precision-parity", _eval_parity, "what a low precision costs, chunk by chunk")
    _flags(parity, precision=str, layers=str, scenes=int, chunks=int, seed=int, device=str, bundle=str)
    parity.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    transfer = _command(evaluate, "transfer", _eval_transfer, "policies in the dream and in the truth")
    _flags(transfer, scenes=int, batch=int, device=str, bundle=str, out=str)
    paper = _command(evaluate, "world", _eval_world, "the paper's evaluation: camera, pixels, drift, side by side")
    _flags(paper, scenes=int, frames=int, split=str, batch=int, device=str, out=str)
    guard = _command(evaluate, "drift-guard", _eval_guard, "calibrate how far a world's chunks can be believed")
    _flags(guard, scenes=int, frames=int, device=str, bundle=str, out=str)
    parts = _command(evaluate, "ablations", _eval_ablations, "a bundle with one thing changed at a time")
    _flags(parts, bundle=str, device=str, out=str)
    _command(evaluate, "recipe", _eval_recipe, "a page of stages, variants, ablations and the paper's claims")
    bench = _subjects(commands, "bench", "speed and memory")
    rooms = _command(bench, "rooms", _bench_rooms, "frames/s, latency and memory of the Rooms world")
    _flags(rooms, device=str, bundle=str, chunks=int, out=str)
    rooms.add_argument("--batch", type=int, nargs="+", metavar="N", help="worlds at a time, one measurement each")
    batches = _command(bench, "vector", _bench_vector, "batches of worlds through the vector environment's step")
    _flags(batches, device=str, bundle=str, steps=int, out=str)
    batches.add_argument("--num-envs", type=int, nargs="+", metavar="N", help="worlds at a time, one measurement each")
    released = _command(bench, "sana-wm", _bench_sana_wm, "the released configuration at full size, on random weights")
    _flags(released, size=str, device=str, out=str)
    ops = _command(bench, "kernels", _bench_kernels, "each op's reference and fused form")
    _flags(ops, device=str, out=str)
    store = _command(bench, "store", _bench_store, "writing and reading of episode stores")
    _flags(store, episodes=int, seconds=float, scratch=str, out=str)
    logging = _command(bench, "logging", _bench_logging, "what logging to Rerun costs a step")
    _flags(logging, device=str, bundle=str, turns=int, out=str)
    training = _command(bench, "training", _bench_training, "tokens/s of the Rooms denoiser in training")
    _flags(training, bundle=str, steps=int, out=str)
    futures = _command(bench, "futures", _bench_futures, "many futures of one instant: time and memory")
    _flags(futures, device=str, bundle=str, seconds=float, out=str)
    futures.add_argument("--futures", type=int, nargs="+", metavar="N", help="of one instant, one measurement each")
    _command(bench, "report", _bench_report, "a page of what was measured, beside goals and floors")
    train = _subjects(commands, "train", "train a world or a policy")
    _command(train, "rooms-autoencoder", _train, "pictures to latents and back")
    _command(train, "rooms-denoiser", _train, "the world in latents; writes a bundle")
    _command(train, "rooms-bidirectional", _train, "a model of whole clips; writes a bundle")
    _command(train, "rooms-teacher", _train, "a chunk-causal model of many steps; writes a bundle")
    _command(train, "rooms-ode", _train, "a student of few steps from its teacher's trajectories; writes a bundle")
    _command(train, "rooms-distill", _train, "that student on its own rollouts, by matching scores; writes a bundle")
    _command(train, "rooms-refiner", _train, "a small refiner of a world's latents; writes it beside a bundle")
    _command(train, "estimate", _train, "the memory in which a denoiser trains, on one GPU or several")
    _command(train, "adapt", _train, "a bundle on episodes of your own; whole or by low-rank adapters")
    _command(train, "ablation", _train, "a small denoiser with a part missing or another; one line of figures")
    _command(train, "smoke", _train, "every stage for a few steps on a CPU")
    cloning = _command(train, "cloning", _train_cloning, "a policy from the demonstrations of an episode store")
    _flags(cloning, device=str, out=str)
    ppo = _command(train, "ppo", _train_ppo, "a policy, by PPO in the dream or in the truth")
    _flags(ppo, environment=str, minutes=float, steps=int, num_envs=int, device=str, bundle=str, out=str)
    collect = _command(commands, "collect", _collect, "demonstrations of a scripted expert in an episode store")
    _flags(collect, episodes=int, world=str, device=str, bundle=str, out=str)
    record = _subjects(commands, "record", "episodes drawn by the ray-caster")
    rooms = _command(record, "rooms", _record_rooms, "drives through rooms of a style; goes on where it was cut off")
    _flags(rooms, episodes=int, frames=int, style=str, device=str, bundle=str, out=str)
    convert = _command(
        commands, "convert", _convert, "write a released checkpoint as a bundle", operands=("source", "target")
    )
    _flags(convert, variant=str, revision=str, autoencoder=str)
    convert.set_defaults(flags=("source", "target", *convert.get_default("flags")))
    generate = _command(commands, "generate", _generate, "episodes of a world in bulk; goes on where it was cut off")
    _flags(generate, episodes=int, frames=int, seed=int, device=str, bundle=str, out=str)
    add_stores(commands)
    teleop = _command(commands, "teleop", _teleop, "drive a world by keys, in a browser page or a terminal")
    _flags(teleop, control=str, preset=str, seed=int, port=int, record=str, device=str, bundle=str)
    quantize = _command(
        commands, "quantize", _quantize, "write a bundle with weights of few bits", operands=("bundle",)
    )
    _flags(quantize, precision=str, layers=str, out=str)
    quantize.set_defaults(flags=("bundle", *quantize.get_default("flags")))
    annotate = _command(
        commands,
        "annotate",
        _annotate,
        "real footage as episodes with intrinsics and camera poses",
        operands=("video",),
    )
    _flags(annotate, out=str, licence=str, fps=float, height=int, speed=float, depth=str, device=str)
    for name, told in (("baseline", "{frames: [0, 40], metres: 2.5}"), ("known_length", "two points in two frames")):
        annotate.add_argument(f"--{name.replace('_', '-')}", metavar="LENGTH", help=f"{told}; examples/annotate.md")
    annotate.set_defaults(flags=("video", *annotate.get_default("flags")))
    doctor = commands.add_parser("doctor", help=DOCTOR, description=DOCTOR)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)
    return top


def _subjects(commands: Any, name: str, summary: str) -> Any:
    return commands.add_parser(name, help=summary, description=summary).add_subparsers(required=True, metavar="SUBJECT")


def _command(
    commands: Any, name: str, run: Callable[[Any], None], summary: str, *, operands: Sequence[str] = ()
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    for operand in operands:
        command.add_argument(operand, metavar=operand.upper())
    command.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of those of the YAML file")
    command.set_defaults(run=run, name=name, flags=())
    return command


def _flags(command: argparse.ArgumentParser, **kinds: Callable[[str], Any]) -> None:
    for name, kind in kinds.items():
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=name.split("_")[-1].upper())
    command.set_defaults(flags=tuple(kinds))


def _build(cls: type[T], command: str, options: argparse.Namespace) -> T:
    """The dataclass of a command from its YAML, `key=value` arguments, and flags, the later the stronger."""
    given = {name: getattr(options, name) for name in options.flags}
    mapping = compose(command, options.overrides) | {name: value for name, value in given.items() if value is not None}
    return from_mapping(cls, mapping)


def _demo(options: argparse.Namespace) -> None:
    from sanawm_env.demo import DemoConfig, run

    run(_build(DemoConfig, "demo", options))


def _eval_rooms(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.command import EvalRooms, run
    from sanawm_env.evaluation.summary import summary

    report = run(_build(EvalRooms, "eval_rooms", options))
    print(json.dumps(report) if options.json else summary(report))


def _eval_parity(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.parity import EvalPrecisionParity, run
    from sanawm_env.evaluation.summary import parity_summary

    report = run(_build(EvalPrecisionParity, "eval_precision_parity", options))
    print(json.dumps(report) if options.json else parity_summary(report))
    if not report["passed"]:
        sys.exit(1)


def _eval_transfer(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.transfer import EvalTransfer, command

    print(command(_build(EvalTransfer, "eval_transfer", options)))


def _eval_world(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.world import EvalWorld, command

    print(command(_build(EvalWorld, "eval_world", options)))


def _eval_ablations(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.ablations import EvalAblations, command

    print(command(_build(EvalAblations, "eval_ablations", options)))


def _eval_recipe(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.recipe_report import Recipe, run

    print(run(_build(Recipe, "eval_recipe", options)))


def _eval_guard(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.drift_guard import EvalDriftGuard, run

    print(json.dumps(run(_build(EvalDriftGuard, "eval_drift_guard", options))))


def _bench_rooms(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.rooms import BenchRooms, run

    options.flags = (*options.flags, "batch")
    report = run(_build(BenchRooms, "bench_rooms", options))
    print(json.dumps(report))


def _bench_vector(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.vector import BenchVector, run

    options.flags = (*options.flags, "num_envs")
    print(json.dumps(run(_build(BenchVector, "bench_vector", options))))


def _bench_sana_wm(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.sana_wm import BenchSanaWM, run

    report = run(_build(BenchSanaWM, "bench_sana_wm", options))
    print(json.dumps(report))
    if report["failed"]:
        sys.exit(1)


def _bench_kernels(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.kernels import BenchKernels, run

    print(json.dumps(run(_build(BenchKernels, "bench_kernels", options))))


def _bench_store(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.store import BenchStore, run

    print(json.dumps(run(_build(BenchStore, "bench_store", options))))


def _bench_training(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.training import BenchTraining, run

    print(json.dumps(run(_build(BenchTraining, "bench_training", options))))


def _bench_report(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.report import Report, run

    print(run(_build(Report, "bench_report", options)))


def _bench_logging(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.logging import BenchLogging, run

    print(json.dumps(run(_build(BenchLogging, "bench_logging", options))))


def _bench_futures(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.futures import BenchFutures, run

    options.flags = (*options.flags, "futures")
    print(json.dumps(run(_build(BenchFutures, "bench_futures", options))))


def _train(options: argparse.Namespace) -> None:
    from sanawm_env.training import run_stage

    figures = run_stage(options.name, compose(f"train_{options.name.replace('-', '_')}", options.overrides))
    print(json.dumps(figures))


def _train_cloning(options: argparse.Namespace) -> None:
    from sanawm_env.policies.cloning_train import CloningTraining, train

    print(json.dumps(train(_build(CloningTraining, "train_cloning", options))))


def _collect(options: argparse.Namespace) -> None:
    from sanawm_env.demonstrations import Collect, collect

    print(json.dumps(collect(_build(Collect, "collect", options))))


def _record_rooms(options: argparse.Namespace) -> None:
    from sanawm_env.training.rooms_drives import RecordRooms, record

    print(json.dumps(record(_build(RecordRooms, "record_rooms", options))))


def _train_ppo(options: argparse.Namespace) -> None:
    from sanawm_env.training.ppo import PpoTraining, run

    print(json.dumps(run(_build(PpoTraining, "train_ppo", options))))


def _convert(options: argparse.Namespace) -> None:
    config = _build(Convert, "convert", options)
    from sanawm_env.pretrained import convert, plan

    told: dict[str, Any] = {
        "variant": config.variant,
        "revision": config.revision,
        "autoencoder": config.autoencoder,
    }
    files = plan(config.source, **told)
    for name, count in files:
        print(f"{count / 1e6:12.1f} MB  {name}")
    print(f"{sum(count for _, count in files) / 1e6:12.1f} MB  to download", flush=True)
    size = (config.height, config.width)
    folder = convert(config.source, config.target, **told, size=size, replace=config.replace)
    print(json.dumps({"bundle": str(folder)}))


def _teleop(options: argparse.Namespace) -> None:
    from sanawm_env.teleop import Teleop, run

    run(_build(Teleop, "teleop", options))


def _generate(options: argparse.Namespace) -> None:
    from sanawm_env.generation.config import Generate
    from sanawm_env.generation.run import generate
    from sanawm_env.generation.summary import text

    config = _build(Generate, "generate", options)
    print(f"{text(generate(config))}\n{config.out / 'summary.png'} shows them")


def _annotate(options: argparse.Namespace) -> None:
    from sanawm_env.annotate.command import run
    from sanawm_env.annotate.settings import Annotate

    lengths = {"baseline": options.baseline, "known_length": options.known_length}
    options.overrides += [f"{name}={value}" for name, value in lengths.items() if value is not None]
    config = _build(Annotate, "annotate", options)
    with _stages() as progress:
        outcomes = run(config, progress=progress)
    for outcome in outcomes:
        print(outcome.text())
    written = sum(outcome.episode is not None for outcome in outcomes)
    print(f"{config.out}: {written} episodes added, {sum(outcome.rejected for outcome in outcomes)} shots rejected")
    if any(outcome.rejected for outcome in outcomes):
        sys.exit(1)


@contextlib.contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that is told what is done, how much of it, and of how much."""
    from tqdm import tqdm

    doing = ""
    with tqdm(disable=None) as bar:

        def show(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing or done < bar.n:
                bar.reset(total)
                bar.set_description(what)
            doing, bar.total = what, total
            bar.update(done - bar.n)

        yield show


def _quantize(options: argparse.Namespace) -> None:
    from sanawm_env.quantise import Quantize, run

    print(json.dumps(run(_build(Quantize, "quantize", options))))


def _doctor(options: argparse.Namespace) -> None:
    from sanawm_env.doctor import examine, report

    found = examine()
    print(json.dumps(found) if options.json else report(found))


if __name__ == "__main__":
    sys.exit(main())
