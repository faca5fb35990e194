"""Goal-image navigation: how often a planner drives to where a picture was taken, knowing nothing but the picture.

`sanawm eval goal-images`. On a machine without the command line's packages:
`PYTHONPATH=. python3 -m sanawm_env.evaluation.goal_images scenes=50 batch=10 device=cuda`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import machine
from sanawm_env.bundle_choice import BundleChoice
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.goal_problems import GoalImages, Reached, drive_to, goal_images, solvable
from sanawm_env.evaluation.held_out import FIRST_SEED, SEEDS_EACH
from sanawm_env.evaluation.intervals import wilson
from sanawm_env.evaluation.judged_lines import JudgedLines, Line
from sanawm_env.evaluation.sheet import save_sheet, stacked
from sanawm_env.placement import Precision
from sanawm_env.policies.cem import ICEM, ICEMConfig
from sanawm_env.policies.costs import GoalImageCost, GoalLatentCost
from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel

OPTIONS: dict[str, Any] = {"task": "drive", "frames": "none", "arrays": "torch"}  # a task that gives no goal away
SHOWN = 8  # missed cases of a sheet


@dataclass(frozen=True, kw_only=True)
class EvalGoalImages(BundleChoice):
    """What to try.

    bundle, variant, refiner: see `BundleChoice`. precision, device: of `bundle.load`. scenes: held-out problems, the
    first so many that have a free goal. seed: of the held-out rooms. batch: worlds at a time, of which each has
    planner.candidates futures (planner.at_once bounds these). planner: of iCEM. cost: of dreamed pictures or latents.
    plan_in: the dream, or the truth, as a planner whose dreams are perfect. steps: until it must have arrived. near:
    metres, degrees: what counts as arrived. out: JSON lines, one a scene; what is there is not driven again. Missed
    cases are drawn in the folder of that name, and in a sheet beside it.
    """

    precision: Precision = "auto"
    device: str | None = None
    scenes: int = 50
    seed: int = 0
    batch: int = 10
    planner: ICEMConfig = ICEMConfig(horizon=3, candidates=32, iterations=3)
    cost: Literal["image", "latent"] = "image"
    plan_in: Literal["dream", "truth"] = "dream"
    steps: int = 8
    near: float = 0.3
    degrees: float = 15.0
    out: Path = Path("outputs/eval/goal_images.jsonl")

    def __post_init__(self) -> None:
        for name in ("scenes", "batch", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, allowed is a whole number >= 1.")
        if self.plan_in == "truth" and self.cost == "latent":
            raise ConfigError("plan_in is 'truth', which has no latents for cost 'latent'; allowed is cost 'image'.")


@dataclass(frozen=True, kw_only=True)
class Results(JudgedLines):
    """setup: on what all were tried. lines: a scene each."""

    BENCHMARK = "goal-images"
    KEYS = frozenset({"seed", "success", "collision", "metres", "degrees"})

    def figures(self) -> dict[str, Any]:
        """How many arrived, with Wilson's 95 % interval, and why the others did not, in the order asked: a collision,
        too far away, looking elsewhere. Medians over all scenes."""
        hits, near = sum(line["success"] for line in self.lines), self.setup["near"]
        missed = dict.fromkeys(("collision", "too far", "turned away"), 0)
        for line in self.lines:
            if not line["success"]:
                away = "too far" if line["metres"] > near else "turned away"
                missed["collision" if line["collision"] else away] += 1
        medians = {name: float(np.median([line[name] for line in self.lines])) for name in ("metres", "degrees")}
        return {
            "scenes": len(self.lines),
            "success": hits,
            "rate": round(hits / len(self.lines), 4),
            "interval": [round(end, 4) for end in wilson(hits, len(self.lines))],
            "missed": missed,
            "missed_seeds": [line["seed"] for line in self.lines if not line["success"]],
            "median_metres": round(medians["metres"], 3),
            "median_degrees": round(medians["degrees"], 2),
        }


def run(config: EvalGoalImages, model: WorldModel | None = None) -> Results:
    """Drives what `config.out` does not have yet, and returns all that it then has. Each group of scenes is written
    when it is done, so that an interrupted run goes on where it was.

    model: in the place of the bundle's. ConfigError: the file is of another setup.
    """
    model = config.load(device=config.device, precision=config.precision) if model is None else model
    results = _opened(config, model)
    done = {line["seed"] for line in results.lines}
    todo = [seed for seed in _seeds(config, model) if seed not in done]
    with tqdm(total=len(todo) * config.steps, unit="step", desc="eval goal-images", disable=None) as bar:
        for first in range(0, len(todo), config.batch):
            group = todo[first : first + config.batch]
            began = time.perf_counter()
            problems, starts, reached = _driven(config, model, group, bar)
            seconds = round((time.perf_counter() - began) / len(group), 2)
            results.lines.extend(_line(problems, reached, row) | {"seconds": seconds} for row in range(len(group)))
            _draw_missed(config, problems, starts, reached)
            results.setup.update(machine(model.device))
            results.write(config.out)
    _draw_sheet(config, results)
    return results


def _opened(config: EvalGoalImages, model: WorldModel) -> Results:
    """Results to go on with, or new ones."""
    asked = {name: getattr(config, name) for name in ("seed", "cost", "plan_in", "steps", "near", "degrees", "refiner")}
    told = {"benchmark": Results.BENCHMARK, "world": model.fingerprint, **asked, "planner": asdict(config.planner)}
    if not config.out.exists():
        return Results(setup=told, lines=[])
    before = Results.read(config.out)
    if known := {name: before.setup.get(name) for name in told if before.setup.get(name) != told[name]}:
        raise ConfigError(
            f"{config.out} was made with {known}, asked for is { {name: told[name] for name in known} }; choose "
            "another file with out=."
        )
    return before


def _seeds(config: EvalGoalImages, model: WorldModel) -> list[int]:
    """The first seeds of the held-out rooms that have a free goal."""
    truth, found = RoomsTruthVectorEnv(config.batch, model, **OPTIONS), list[int]()
    first = FIRST_SEED + config.seed * SEEDS_EACH
    while len(found) < config.scenes:
        found += solvable(truth, list(range(first, first + config.batch)))
        first += config.batch
    truth.close()
    return found[: config.scenes]


def _driven(
    config: EvalGoalImages, model: WorldModel, seeds: Sequence[int], bar: Any
) -> tuple[GoalImages, np.ndarray, Reached]:
    """Problems, true pictures at their starts [B, H, W, 3], and what came of them."""
    truth = RoomsTruthVectorEnv(len(seeds), model, **OPTIONS)
    kind = SanaWMVectorEnv if config.plan_in == "dream" else RoomsTruthVectorEnv
    dream = kind(len(seeds), model, **OPTIONS)
    problems = goal_images(truth, seeds)

    def progress(step: int, steps: int) -> None:
        bar.update(len(seeds))

    truth.reset(seed=list(seeds))
    seen = truth.last_output[0]
    assert seen is not None
    pictures = problems.pictures
    cost = GoalImageCost(pictures) if config.cost == "image" else GoalLatentCost(dream, pictures)
    reached = drive_to(
        ICEM(dream, cost, config.planner),
        problems,
        truth,
        dream,
        steps=config.steps,
        near=config.near,
        degrees=config.degrees,
        progress=progress,
    )
    for env in (truth, dream):
        env.close()
    return problems, seen[:, -1].cpu().numpy(), reached


def _line(problems: GoalImages, reached: Reached, row: int) -> Line:
    away = np.linalg.norm(problems.goals[row, :3, 3] - problems.starts[row, :3, 3])
    return {
        "seed": int(problems.seeds[row]),
        "success": bool(reached.success[row]),
        "collision": bool(reached.collision[row]),
        "metres": round(float(reached.metres[row]), 4),
        "degrees": round(float(reached.degrees[row]), 2),
        "metres_at_start": round(float(away), 4),
    }


def _draw_missed(config: EvalGoalImages, problems: GoalImages, starts: np.ndarray, reached: Reached) -> None:
    """A file for each problem that was not solved: start, goal and end, as they are in truth, side by side."""
    for row in np.flatnonzero(~reached.success):
        parts = [starts[row], problems.pictures[row], reached.pictures[row]]
        path = config.out.with_suffix("") / f"{problems.seeds[row]}.png"
        save_sheet(stacked([np.concatenate(parts, axis=1)]), path)


def _draw_sheet(config: EvalGoalImages, results: Results) -> None:
    """The first missed cases in one picture; none where all arrived."""
    from PIL import Image

    folder, seeds = config.out.with_suffix(""), results.figures()["missed_seeds"][:SHOWN]
    rows = [np.asarray(Image.open(folder / f"{seed}.png")) for seed in seeds if (folder / f"{seed}.png").exists()]
    if rows:
        save_sheet(stacked(rows), config.out.with_suffix(".png"))


def command(config: EvalGoalImages) -> str:
    """What both command lines do; one line of JSON."""
    results = run(config)
    return json.dumps(results.setup | results.figures() | {"out": str(config.out)})


if __name__ == "__main__":
    sys.exit(run_bare(EvalGoalImages, command, sys.argv[1:]))
