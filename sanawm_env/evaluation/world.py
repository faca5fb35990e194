"""The evaluation of SANA-WM's paper on worlds of ours: `sanawm eval world`.

Worlds side by side on the same clips: held-out rooms along the benchmark's templates, or the benchmark of 80 scenes.
On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.evaluation.world scenes=4 ...`.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import machine, peak_memory, reset_peak
from sanawm_env.bundle_choice import BundleChoice
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.benchmark_paths import Caps, Split
from sanawm_env.evaluation.clip_scores import Shown, score
from sanawm_env.evaluation.judged_lines import JudgedLines, Line
from sanawm_env.evaluation.perceptual import Perceptual, find_perceptual
from sanawm_env.evaluation.pose_estimators import device_of, estimator, numbers_of
from sanawm_env.evaluation.rollout import Dream, Progress, dream
from sanawm_env.evaluation.sheet import contact_sheet, save_sheet
from sanawm_env.evaluation.visibility import visible
from sanawm_env.evaluation.world_clips import Clips, folder_clips, folder_rows, rooms_clips
from sanawm_env.placement import Precision
from sanawm_env.prompts import PromptReader
from sanawm_env.world import WorldModel

GROUPS = {"cpu": 2, "cuda": 16}  # clips of a batch
SHEET_CLIPS, SHEET_COLUMNS = 4, 6


@dataclass(frozen=True, kw_only=True)
class Judged(BundleChoice):
    """A world to judge. bundle, variant, refiner: see `BundleChoice`. precision: of `bundle.load`. Or sana_wm:
    arguments of `sana_wm.open_sana_wm`, for a released model, which reads prompts."""

    precision: Precision = "auto"
    sana_wm: Mapping[str, Any] | None = None

    def open(self, device: str | None) -> tuple[WorldModel, PromptReader | None]:
        """The model, and what reads its prompts."""
        if self.sana_wm is None:
            return self.load(device=device, precision=self.precision), None
        from sanawm_env.sana_wm import open_sana_wm

        return open_sana_wm(**{"device": device, "precision": self.precision, **self.sana_wm})


@dataclass(frozen=True, kw_only=True)
class EvalWorld:
    """What to judge.

    models: by name; the first is what the others are compared with. scenes: clips, the first so many of the set. split:
    "simple" or "hard" templates. frames: of each clip, rounded up to whole chunks. seed: of the held-out rooms.
    benchmark: folder of SANA-WM-Bench, whose scenes and paths take the place of rooms. poses: estimator, see
    `pose_estimators`, null for none; pose_every: frames between two that it looks at. caps: of paths in rooms. batch:
    clips at a time, by device if null. out: JSON lines, one a clip and model; what is there is not made again. report:
    judge nothing, write page and plots from `out`. page: in Markdown; pictures lie in `media` beside it.
    """

    models: dict[str, Judged] = field(default_factory=lambda: {"rooms": Judged()})
    scenes: int = 10
    split: Split = "simple"
    frames: int = 64
    seed: int = 0
    benchmark: Path | None = None
    poses: str | None = "render"
    pose_every: int = 4
    caps: Caps = field(default_factory=Caps)
    device: str | None = None
    batch: int | None = None
    out: Path = Path("outputs/eval/world.jsonl")
    report: bool = False
    page: Path | None = None

    def __post_init__(self) -> None:
        for name in ("scenes", "frames", "pose_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, allowed is a whole number >= 1.")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch is {self.batch}, allowed is a whole number >= 1, or null.")
        if self.seed < 0 or not self.models:
            raise ConfigError(f"seed is {self.seed}, models are {list(self.models)}; allowed are >= 0 and one or more.")
        if self.poses is not None:
            estimator(self.poses)
        if self.poses == "render" and self.benchmark is not None:
            raise ConfigError("poses is 'render', which needs rooms; with benchmark= allowed are 'colmap' and null.")


@dataclass(frozen=True, kw_only=True)
class Results(JudgedLines):
    """setup: what all clips share. lines: a model on a clip each."""

    BENCHMARK = "world"
    KEYS = frozenset({"model", "split", "clip", "scores"})

    def done(self, model: str, split: str) -> set[int]:
        """Numbers of the clips of a split on which a model was judged."""
        return {line["clip"] for line in self.lines if (line["model"], line["split"]) == (model, split)}

    @property
    def models(self) -> list[str]:
        """In the order in which they were judged first."""
        return list(dict.fromkeys(line["model"] for line in self.lines))


def run(config: EvalWorld, models: Mapping[str, WorldModel] | None = None) -> Results:
    """Judges what `config.out` does not have yet, and returns all that it then has. Each group of clips is written
    when it is done, so that an interrupted run goes on where it was.

    models: in the place of `config.models`. ConfigError: the file is of another setup, or has another world under a
    name.
    """
    names = list(config.models if models is None else models)
    results = read(config.out) if config.out.exists() else None
    for name in names:
        model, prompts = config.models[name].open(config.device) if models is None else (models[name], None)
        results = _opened(config, model, results)
        _judge(config, name, model, prompts, results)
    assert results is not None
    return results


def read(path: Path) -> Results:
    """What `run` has written. StorageError: no such file, or another one."""
    return Results.read(path)


def _opened(config: EvalWorld, model: WorldModel, before: Results | None) -> Results:
    """Results to go on with, or new ones."""
    chunk = model.config.frames_per_chunk
    told = {
        "frames": math.ceil(config.frames / chunk) * chunk,
        "fps": model.config.fps,
        "size": [model.config.height, model.config.width],
        "seed": config.seed,
        "source": "rooms" if config.benchmark is None else config.benchmark.name,
        "poses": config.poses,
        "pose_every": config.pose_every,
        "caps": asdict(config.caps) if config.benchmark is None else None,
    }
    if before is None:
        return Results(setup={"benchmark": "world", **told}, lines=[])
    if other := {name: before.setup.get(name) for name in told if before.setup.get(name) != told[name]}:
        raise ConfigError(
            f"{config.out} was judged with {other}, asked for is { {name: told[name] for name in other} }; choose "
            "another file with out=."
        )
    return before


def _judge(config: EvalWorld, name: str, model: WorldModel, prompts: PromptReader | None, results: Results) -> None:
    identity = {"world": model.fingerprint, "execution": model.execution}
    for line in results.lines:
        if line["model"] == name and line["identity"] != identity:
            raise ConfigError(
                f"{config.out} has another world named {name!r}: {line['identity']}, asked for is {identity}; give it "
                "another name, or choose another file with out=."
            )
    scenes = config.scenes if config.benchmark is None else _within(config, config.benchmark)
    done = results.done(name, config.split)
    todo = [number for number in range(scenes) if number not in done]
    perceptual = find_perceptual(model.device)
    size = config.batch or GROUPS[model.device.type]
    frames = int(results.setup["frames"])
    with tqdm(total=len(todo) * frames, unit="frame", desc=f"{name}, {config.split}", disable=None) as bar:
        for first in range(0, len(todo), size):
            numbers = todo[first : first + size]
            clips = _clips(config, model, numbers, frames)
            made, lines = _scored(config, model, prompts, clips, perceptual, bar.update)
            told = {"model": name, "split": config.split, "identity": identity, **machine(model.device)}
            results.lines.extend({**told, "clip": number, **line} for number, line in zip(numbers, lines, strict=True))
            results.write(config.out)
            if first == 0:
                _save_sheet(config.out.with_name(f"{config.out.stem}-{slug(name)}-{config.split}.png"), made)


def slug(name: str) -> str:
    """A name as a part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "world"


def _within(config: EvalWorld, folder: Path) -> int:
    rows = len(folder_rows(folder, config.split))
    if config.scenes > rows:
        raise ConfigError(f"scenes is {config.scenes}, {folder} has {rows} of split {config.split!r}; ask for as many.")
    return config.scenes


def _clips(config: EvalWorld, model: WorldModel, numbers: Sequence[int], frames: int) -> Clips:
    if config.benchmark is not None:
        return folder_clips(model.config, config.benchmark, config.split, numbers, frames)
    return rooms_clips(model.config, config.split, numbers, config.seed, frames, model.device, config.caps)


def _scored(
    config: EvalWorld,
    model: WorldModel,
    prompts: PromptReader | None,
    clips: Clips,
    perceptual: Perceptual,
    progress: Progress,
) -> tuple[tuple[Tensor, Tensor | None], list[Line]]:
    """Frames of the clips and their truth, and a line a clip."""
    reset_peak(model.device)
    text = None if prompts is None else prompts(list(clips.prompts))
    keep = range(clips.poses.shape[1])
    given: dict[str, Any] = {"intrinsics": clips.intrinsics, "text": text}
    made: Dream = dream(model, clips.pictures, clips.seeds, clips.poses, keep, progress, **given)
    cost = {
        "seconds": round(made.seconds, 3),
        "made": made.made,
        "worlds": len(clips),
        "state_bytes": model.empty_state(1).nbytes()["total"],
        "peak_bytes": peak_memory(model.device),
    }
    frames, truth, seen = made.frames.to(device_of(clips)), *_truth(clips)
    estimates: Sequence[Any] = [None] * len(clips)
    if config.poses is not None:
        numbers = numbers_of(len(keep) - 1, config.pose_every)
        estimates = estimator(config.poses)(clips, frames, truth, seen, numbers)
    lines = []
    for row in range(len(clips)):
        shown = Shown(
            frames=frames[row],
            truth=None if truth is None else truth[row],
            seen=None if seen is None else seen[row],
            picture=clips.pictures[row].to(frames.device),
            pairs=clips.pairs[row],
            chunk=model.config.frames_per_chunk,
        )
        found = score(shown, estimates[row], clips.poses[row], perceptual)
        lines.append({"name": clips.names[row], "template": clips.templates[row], "scores": found, "cost": cost})
    return (frames, truth), lines


def _truth(clips: Clips) -> tuple[Tensor | None, Tensor | None]:
    """What the ray-caster shows, and what of it the first picture has."""
    if clips.rooms is None:
        return None, None
    told = clips.rooms.truth(clips.poses)
    poses = clips.poses.to(told.depth.device)
    return told.rgb, visible(told.depth, poses, told.depth[:, 0], poses[:, 0], clips.intrinsics)


def _save_sheet(path: Path, made: tuple[Tensor, Tensor | None]) -> None:
    frames, truth = made
    count = frames.shape[1]
    columns = sorted({round(k * (count - 1) / (SHEET_COLUMNS - 1)) for k in range(SHEET_COLUMNS)})
    shown = frames[:SHEET_CLIPS, columns].cpu().numpy()
    real = shown if truth is None else truth[:SHEET_CLIPS, columns].cpu().numpy()
    save_sheet(contact_sheet(real, shown, columns), path)


def command(config: EvalWorld) -> str:
    """What both command lines do: judge, and write plots, and the page if one is asked for; the text to print."""
    from sanawm_env.evaluation.world_report import summary, write_page, write_plot

    results = read(config.out) if config.report else run(config)
    told = [summary(results), str(write_plot(results, config.out.with_suffix(".png")))]
    if config.page is not None:
        told.append(str(write_page(results, config.page)))
    return "\n\n".join(told)


def main(arguments: Sequence[str]) -> int:
    """Judges what `key=value` arguments describe; see `run_bare`."""
    return run_bare(EvalWorld, command, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
