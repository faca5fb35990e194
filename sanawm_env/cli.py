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
from typing import Any, Literal

from sanawm_env.cli_parts import build, command, flags, subjects
from sanawm_env.cli_stores import add_stores
from sanawm_env.cli_training import add_training
from sanawm_env.errors import SanaWMError

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
    adapter: Path | None = None
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


def parser() -> argparse.ArgumentParser:
    """Every subcommand with its flags."""
    top = argparse.ArgumentParser(prog="sanawm", description="The SANA-WM world model as a simulator.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    demo = command(commands, "demo", _demo, "step the shipped world along a tour, beside its ground truth")
    flags(demo, frames=int, scene_seed=int, out=str, device=str, bundle=str)
    evaluate = subjects(commands, "eval", "how faithful a world is to its ground truth")
    rooms = command(evaluate, "rooms", _eval_rooms, "on held-out rooms and drives")
    flags(rooms, scenes=int, seed=int, device=str, bundle=str, sheet=str)
    rooms.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parity = command(evaluate, "precision-parity", _eval_parity, "what a low precision costs, chunk by chunk")
    flags(parity, precision=str, layers=str, scenes=int, chunks=int, seed=int, device=str, bundle=str)
    parity.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    transfer = command(evaluate, "transfer", _eval_transfer, "policies in the dream and in the truth")
    flags(transfer, scenes=int, batch=int, device=str, bundle=str, out=str)
    paper = command(evaluate, "world", _eval_world, "the paper's evaluation: camera, pixels, drift, side by side")
    flags(paper, scenes=int, frames=int, split=str, batch=int, device=str, out=str)
    guard = command(evaluate, "drift-guard", _eval_guard, "calibrate how far a world's chunks can be believed")
    flags(guard, scenes=int, frames=int, device=str, bundle=str, out=str)
    parts = command(evaluate, "ablations", _eval_ablations, "a bundle with one thing changed at a time")
    flags(parts, bundle=str, device=str, out=str)
    command(evaluate, "recipe", _eval_recipe, "a page of stages, variants, ablations and the paper's claims")
    goals = command(evaluate, "goal-images", _eval_goals, "drive to where a picture was taken, by dreamed pictures")
    flags(goals, scenes=int, batch=int, device=str, bundle=str, out=str)
    bench = subjects(commands, "bench", "speed and memory")
    rooms = command(bench, "rooms", _bench_rooms, "frames/s, latency and memory of the Rooms world")
    flags(rooms, device=str, bundle=str, chunks=int, out=str)
    rooms.add_argument("--batch", type=int, nargs="+", metavar="N", help="worlds at a time, one measurement each")
    batches = command(bench, "vector", _bench_vector, "batches of worlds through the vector environment's step")
    flags(batches, device=str, bundle=str, steps=int, out=str)
    batches.add_argument("--num-envs", type=int, nargs="+", metavar="N", help="worlds at a time, one measurement each")
    released = command(bench, "sana-wm", _bench_sana_wm, "the released configuration at full size, on random weights")
    flags(released, size=str, device=str, out=str)
    ops = command(bench, "kernels", _bench_kernels, "each op's reference and fused form")
    flags(ops, device=str, out=str)
    store = command(bench, "store", _bench_store, "writing and reading of episode stores")
    flags(store, episodes=int, seconds=float, scratch=str, out=str)
    logging = command(bench, "logging", _bench_logging, "what logging to Rerun costs a step")
    flags(logging, device=str, bundle=str, turns=int, out=str)
    training = command(bench, "training", _bench_training, "tokens/s of the Rooms denoiser in training")
    flags(training, bundle=str, steps=int, out=str)
    command(bench, "adapting", _bench_adapting, "time and memory of adapters beside a released model")
    futures = command(bench, "futures", _bench_futures, "many futures of one instant: time and memory")
    flags(futures, device=str, bundle=str, seconds=float, out=str)
    futures.add_argument("--futures", type=int, nargs="+", metavar="N", help="of one instant, one measurement each")
    command(bench, "report", _bench_report, "a page of what was measured, beside goals and floors")
    add_training(commands)
    collect = command(commands, "collect", _collect, "demonstrations of a scripted expert in an episode store")
    flags(collect, episodes=int, world=str, device=str, bundle=str, out=str)
    record = subjects(commands, "record", "episodes drawn by the ray-caster")
    rooms = command(record, "rooms", _record_rooms, "drives through rooms of a style; goes on where it was cut off")
    flags(rooms, episodes=int, frames=int, style=str, device=str, bundle=str, out=str)
    convert = command(
        commands, "convert", _convert, "write a released checkpoint as a bundle", operands=("source", "target")
    )
    flags(convert, variant=str, revision=str, autoencoder=str)
    convert.set_defaults(flags=("source", "target", *convert.get_default("flags")))
    generate = command(commands, "generate", _generate, "episodes of a world in bulk; goes on where it was cut off")
    flags(generate, episodes=int, frames=int, seed=int, device=str, bundle=str, out=str)
    add_stores(commands)
    teleop = command(commands, "teleop", _teleop, "drive a world by keys, in a browser page or a terminal")
    flags(teleop, control=str, preset=str, seed=int, port=int, record=str, device=str, bundle=str)
    quantize = command(commands, "quantize", _quantize, "write a bundle with weights of few bits", operands=("bundle",))
    flags(quantize, precision=str, layers=str, out=str)
    quantize.set_defaults(flags=("bundle", *quantize.get_default("flags")))
    annotate = command(
        commands,
        "annotate",
        _annotate,
        "real footage as episodes with intrinsics and camera poses",
        operands=("video",),
    )
    flags(annotate, out=str, licence=str, fps=float, height=int, speed=float, depth=str, device=str)
    for name, told in (("baseline", "{frames: [0, 40], metres: 2.5}"), ("known_length", "two points in two frames")):
        annotate.add_argument(f"--{name.replace('_', '-')}", metavar="LENGTH", help=f"{told}; examples/annotate.md")
    annotate.set_defaults(flags=("video", *annotate.get_default("flags")))
    doctor = commands.add_parser("doctor", help=DOCTOR, description=DOCTOR)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)
    return top


def _demo(options: argparse.Namespace) -> None:
    from sanawm_env.demo import DemoConfig, run

    run(build(DemoConfig, "demo", options))


def _eval_rooms(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.command import EvalRooms, run
    from sanawm_env.evaluation.summary import summary

    report = run(build(EvalRooms, "eval_rooms", options))
    print(json.dumps(report) if options.json else summary(report))


def _eval_parity(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.parity import EvalPrecisionParity, run
    from sanawm_env.evaluation.summary import parity_summary

    report = run(build(EvalPrecisionParity, "eval_precision_parity", options))
    print(json.dumps(report) if options.json else parity_summary(report))
    if not report["passed"]:
        sys.exit(1)


def _eval_transfer(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.transfer import EvalTransfer, command

    print(command(build(EvalTransfer, "eval_transfer", options)))


def _eval_world(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.world import EvalWorld, command

    print(command(build(EvalWorld, "eval_world", options)))


def _eval_ablations(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.ablations import EvalAblations, command

    print(command(build(EvalAblations, "eval_ablations", options)))


def _eval_recipe(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.recipe_report import Recipe, run

    print(run(build(Recipe, "eval_recipe", options)))


def _eval_guard(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.drift_guard import EvalDriftGuard, run

    print(json.dumps(run(build(EvalDriftGuard, "eval_drift_guard", options))))


def _eval_goals(options: argparse.Namespace) -> None:
    from sanawm_env.evaluation.goal_images import EvalGoalImages
    from sanawm_env.evaluation.goal_images import command as drive

    print(drive(build(EvalGoalImages, "eval_goal_images", options)))


def _bench_rooms(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.rooms import BenchRooms, run

    options.flags = (*options.flags, "batch")
    report = run(build(BenchRooms, "bench_rooms", options))
    print(json.dumps(report))


def _bench_vector(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.vector import BenchVector, run

    options.flags = (*options.flags, "num_envs")
    print(json.dumps(run(build(BenchVector, "bench_vector", options))))


def _bench_sana_wm(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.sana_wm import BenchSanaWM, run

    report = run(build(BenchSanaWM, "bench_sana_wm", options))
    print(json.dumps(report))
    if report["failed"]:
        sys.exit(1)


def _bench_kernels(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.kernels import BenchKernels, run

    print(json.dumps(run(build(BenchKernels, "bench_kernels", options))))


def _bench_store(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.store import BenchStore, run

    print(json.dumps(run(build(BenchStore, "bench_store", options))))


def _bench_training(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.training import BenchTraining, run

    print(json.dumps(run(build(BenchTraining, "bench_training", options))))


def _bench_adapting(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.adapting import BenchAdapting, run

    print(json.dumps(run(build(BenchAdapting, "bench_adapting", options))))


def _bench_report(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.report import Report, run

    print(run(build(Report, "bench_report", options)))


def _bench_logging(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.logging import BenchLogging, run

    print(json.dumps(run(build(BenchLogging, "bench_logging", options))))


def _bench_futures(options: argparse.Namespace) -> None:
    from sanawm_env.benchmarks.futures import BenchFutures, run

    options.flags = (*options.flags, "futures")
    print(json.dumps(run(build(BenchFutures, "bench_futures", options))))


def _collect(options: argparse.Namespace) -> None:
    from sanawm_env.demonstrations import Collect, collect

    print(json.dumps(collect(build(Collect, "collect", options))))


def _record_rooms(options: argparse.Namespace) -> None:
    from sanawm_env.training.rooms_drives import RecordRooms, record

    print(json.dumps(record(build(RecordRooms, "record_rooms", options))))


def _convert(options: argparse.Namespace) -> None:
    config = build(Convert, "convert", options)
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
    told |= {"adapter": config.adapter, "replace": config.replace}
    folder = convert(config.source, config.target, **told, size=size)
    print(json.dumps({"bundle": str(folder)}))


def _teleop(options: argparse.Namespace) -> None:
    from sanawm_env.teleop import Teleop, run

    run(build(Teleop, "teleop", options))


def _generate(options: argparse.Namespace) -> None:
    from sanawm_env.generation.config import Generate
    from sanawm_env.generation.run import generate
    from sanawm_env.generation.summary import text

    config = build(Generate, "generate", options)
    print(f"{text(generate(config))}\n{config.out / 'summary.png'} shows them")


def _annotate(options: argparse.Namespace) -> None:
    from sanawm_env.annotate.command import run
    from sanawm_env.annotate.settings import Annotate

    lengths = {"baseline": options.baseline, "known_length": options.known_length}
    options.overrides += [f"{name}={value}" for name, value in lengths.items() if value is not None]
    config = build(Annotate, "annotate", options)
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

    print(json.dumps(run(build(Quantize, "quantize", options))))


def _doctor(options: argparse.Namespace) -> None:
    from sanawm_env.doctor import examine, report

    found = examine()
    print(json.dumps(found) if options.json else report(found))


if __name__ == "__main__":
    sys.exit(main())
