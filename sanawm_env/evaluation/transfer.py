"""Whether what works in the dream works in the truth: `sanawm eval transfer`.

The same policies on the same held-out scenes in the learned world and in the ray-caster. On a machine without the
command line's packages: `PYTHONPATH=. python3 -m sanawm_env.evaluation.transfer device=cuda policies.NAME.kind=...`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import machine
from sanawm_env.bundle import load
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.judged_lines import JudgedLines, Line
from sanawm_env.evaluation.transfer_policies import PolicySpec, Stages, Where, baselines, knows, named
from sanawm_env.evaluation.transfer_scenes import find_scenes
from sanawm_env.placement import Precision
from sanawm_env.policies.episodes import Episode, action_noise, run_episodes
from sanawm_env.spaces import check_policy
from sanawm_env.tasks import GoTo, make_task, task_fields
from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.dream_beside import DreamBeside

PLACES: tuple[Where, ...] = ("truth", "dream")


@dataclass(frozen=True, kw_only=True)
class EvalTransfer:
    """What to judge.

    policies: by name; baselines: likewise, those that are always there. scenes: held-out ones whose goal is seen at the
    start. task: "goto" or a mapping of its fields. batch: worlds at a time. bundle, device, precision: of
    `bundle.load`. out: JSON lines, one a policy and place; what is there is not judged again. report: judge nothing,
    write the page from `out`. page: in Markdown; its pictures lie in `media` beside it. goal_images: what
    `sanawm eval goal-images` wrote, which the page tells too where it is there.
    """

    policies: dict[str, PolicySpec] = field(default_factory=dict)
    baselines: dict[str, PolicySpec] = field(default_factory=baselines)
    bundle: str = "rooms"
    device: str | None = None
    precision: Precision = "auto"
    scenes: int = 200
    task: Any = "goto"
    batch: int = 64
    out: Path = Path("outputs/eval/transfer.jsonl")
    report: bool = False
    page: Path = Path("examples/transfer.md")
    goal_images: Path = Path("outputs/eval/goal_images.jsonl")

    def __post_init__(self) -> None:
        if self.batch < 1 or self.scenes < 1:
            raise ConfigError(f"batch is {self.batch}, scenes {self.scenes}; allowed are counts >= 1.")


@dataclass(frozen=True, kw_only=True)
class Results(JudgedLines):
    """setup: on what all were judged, the scenes among it. lines: a policy in a place each."""

    BENCHMARK = "transfer"
    KEYS = frozenset({"policy", "where", "reasons"})

    def find(self, name: str, where: Where) -> Line | None:
        """The line of a policy in a place."""
        return next((one for one in self.lines if (one["policy"], one["where"]) == (name, where)), None)


def run(config: EvalTransfer, model: WorldModel | None = None, progress: Callable[[str], None] = print) -> Results:
    """Judges what `config.out` does not have yet, and returns all that it then has.

    model: in the place of the bundle's. progress: gets a line of text a policy and place. Nothing is run before all
    policies are known to fit. ConfigError: the file is of another setup, or has another policy under a name.
    """
    policies = named(config.baselines, config.policies)
    identities = {name: spec.identity() for name, spec in policies.items()}
    model = load(config.bundle, device=config.device, precision=config.precision) if model is None else model
    task = _goto(config.task)
    before = read(config.out) if config.out.exists() else None
    results = _opened(config, model, task, before)
    todo: list[tuple[str, Where]] = []
    for name, identity in identities.items():
        for where in PLACES:
            done = results.find(name, where)
            if done is None:
                todo.append((name, where))
            elif done["identity"] != identity:
                raise ConfigError(
                    f"{config.out} has another policy named {name!r}: {done['identity']}, asked for is {identity}; "
                    "give it another name, or choose another file with out=."
                )
    if todo:
        _judge(config, model, task, results, policies, todo, progress)
    return results


def read(path: Path) -> Results:
    """What `run` has written. StorageError: no such file, or another one."""
    return Results.read(path)


def _goto(task: Any) -> GoTo:
    made = make_task(task)
    if not isinstance(made, GoTo) or made.time_limit is None:
        raise ConfigError(f"task is {task!r}, allowed is 'goto', or a mapping of its fields with a time_limit.")
    return made


def _opened(config: EvalTransfer, model: WorldModel, task: GoTo, before: Results | None) -> Results:
    """Results to go on with, or new ones."""
    told = {"world": model.fingerprint, "task": json.loads(json.dumps(task_fields(task))), "scenes": config.scenes}
    if before is None:
        scenes = find_scenes(model.config, task, config.scenes, model.device)
        return Results(setup={"benchmark": "transfer", **told, "found": asdict(scenes)}, lines=[])
    if known := {name: before.setup[name] for name in told if before.setup[name] != told[name]}:
        raise ConfigError(
            f"{config.out} was judged with {known}, asked for is { {name: told[name] for name in known} }; choose "
            "another file with out=."
        )
    return before


def _judge(
    config: EvalTransfer,
    model: WorldModel,
    task: GoTo,
    results: Results,
    policies: Mapping[str, PolicySpec],
    todo: list[tuple[str, Where]],
    progress: Callable[[str], None],
) -> None:
    seeds = list(results.setup["found"]["seeds"])
    options: dict[str, Any] = {"task": task, "observation": "dict", "frames": "none", "arrays": "torch"}
    worlds = min(config.batch, len(seeds))
    dream = SanaWMVectorEnv(worlds, model, **options)
    truth = RoomsTruthVectorEnv(worlds, model, **options)
    stages = Stages(dream=dream, truth=truth, beside=DreamBeside(truth, dream))
    for name, where in todo:
        env, policy = stages.made(policies[name], where, model.device)
        check_policy(policy, env)
    for name, where in todo:
        spec = policies[name]
        env, policy = stages.made(spec, where, model.device)
        began = time.perf_counter()
        ran = run_episodes(env, policy, seeds, perturb=action_noise(env.single_action_space, spec.noise))
        shown = tqdm(ran, total=len(seeds), unit="episode", desc=f"{name}, {where}", disable=None)
        episodes = {one.seed: one for one in shown}
        line: Line = {
            "policy": name,
            "where": where,
            "identity": spec.identity(),
            "knows": knows(spec, policy)._asdict(),
        }
        line |= _columns([episodes[seed] for seed in seeds])
        line |= {"wall_seconds": round(time.perf_counter() - began, 1), "worlds": worlds, **machine(model.device)}
        results.lines.append(line)
        results.write(config.out)
        hits = line["reasons"].count("success")
        progress(f"{name}, {where}: {hits} of {len(seeds)} in {line['wall_seconds']:.0f} s")
    stages.beside.close()


def _columns(episodes: list[Episode]) -> Line:
    """Of episodes in the order of the scenes."""
    return {
        "reasons": [one.reason for one in episodes],
        "seconds": [round(one.seconds, 2) for one in episodes],
        "metres": [round(one.metres, 4) for one in episodes],
    }


def main(arguments: Sequence[str]) -> int:
    """Judges what `key=value` arguments describe; see `run_bare`."""
    return run_bare(EvalTransfer, command, arguments)


def command(config: EvalTransfer) -> str:
    """What both command lines do: judge, or write the page; the text to print."""
    from sanawm_env.evaluation.transfer_report import summary, write

    if config.report:
        return str(write(read(config.out), config.page, config.goal_images))
    return summary(run(config, progress=lambda text: print(text, file=sys.stderr, flush=True)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
