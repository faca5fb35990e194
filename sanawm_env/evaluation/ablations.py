"""What a bundle's parts are worth at run time, without training: `sanawm eval ablations`.

Each row is the bundle with one thing changed, judged on the same held-out rooms; rows that are there are not made
again. On a machine without the command line's packages: `python3 -m sanawm_env.evaluation.ablations device=cuda ...`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import machine
from sanawm_env.bundle import fingerprint, folder_of, load
from sanawm_env.errors import BackendError, BundleError, ConfigError, nearest
from sanawm_env.evaluation.form_scores import MEASURES, Drive, Judging, drives_of, judge
from sanawm_env.evaluation.judged_lines import JudgedLines
from sanawm_env.evaluation.world_figures import mean_of
from sanawm_env.model.config import Schedule
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.forms import FORMS, reform, reshaped
from sanawm_env.world import WorldModel

SHIFT = 2.0  # flow shift of the steps, as the stages train


@dataclass(frozen=True, kw_only=True)
class EvalAblations:
    """What to judge. bundle: name or folder, of plain weights; variants and refiner are those beside it. rows: names,
    all if null. judging: on what. out: JSON lines, one a row.
    """

    bundle: str = "rooms"
    rows: tuple[str, ...] | None = None
    judging: Judging = field(default_factory=Judging)
    device: str | None = None
    out: Path = Path("outputs/ablations/bundle.jsonl")

    def __post_init__(self) -> None:
        for name in self.rows or ():
            if name not in ROWS:
                raise ConfigError(f"rows holds {name!r}; {nearest(name, ROWS)}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """group: what is varied. what: in words. open: the world; BundleError or BackendError where there is none."""

    group: str
    what: str
    open: Callable[[EvalAblations], WorldModel]


@dataclass(frozen=True, kw_only=True)
class Results(JudgedLines):
    """setup: the bundle and on what it was judged. lines: a row each."""

    BENCHMARK = "ablations"
    KEYS = frozenset({"row", "execution", "clips"})


def run(config: EvalAblations) -> Results:
    """Judges the rows that `config.out` does not have, each written when it is done, and returns all that it then has.
    Rows that this machine or bundle does not have are said on standard error and left out. ConfigError: the file is of
    another bundle or other scenes.
    """
    results = _opened(config)
    done = {line["row"] for line in results.lines}
    todo = [name for name in config.rows or ROWS if name not in done]
    drives: list[Drive] | None = None  # of the first row that opens, for all
    with tqdm(todo, desc="ablations", unit="row", disable=None) as bar:
        for name in bar:
            try:
                model = ROWS[name].open(config)
            except (BundleError, BackendError) as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            began = time.monotonic()
            told = {"row": name, "world": model.fingerprint, "execution": model.execution}
            drives = drives_of(model, config.judging) if drives is None else drives
            clips = judge(model, config.judging, drives)
            spent = {"seconds": round(time.monotonic() - began, 1), **machine(model.device)}
            results.lines.append({**told, **spent, "clips": clips})
            results.write(config.out)
    return results


def _opened(config: EvalAblations) -> Results:
    setup = {
        "benchmark": Results.BENCHMARK,
        "bundle": fingerprint(config.bundle),
        "name": folder_of(config.bundle).name,
        "judging": asdict(config.judging),
    }
    if not config.out.exists():
        return Results(setup=setup, lines=[])
    found = Results.read(config.out)
    if found.setup != setup:
        raise ConfigError(f"{config.out} was judged with {found.setup}, asked for is {setup}; choose another out=.")
    return found


def command(config: EvalAblations) -> str:
    """What both command lines do: judge; the text to print."""
    results = run(config)
    width = max(map(len, ROWS))
    rows = [[line["row"].ljust(width), *(_shown(line, key.key) for key in MEASURES)] for line in results.lines]
    return "\n".join("  ".join(row) for row in [["".ljust(width), *(key.key[:9].rjust(9) for key in MEASURES)], *rows])


def _shown(line: dict[str, Any], key: str) -> str:
    mean = mean_of(line["clips"], next(measure for measure in MEASURES if measure.key == key))
    return (f"{mean.value:.3f}" if mean.count else "-").rjust(9)


def _plain(config: EvalAblations) -> WorldModel:
    return load(config.bundle, device=config.device)


def _steps(count: int, config: EvalAblations) -> WorldModel:
    model = _plain(config)
    levels = Schedule(steps=count, shift=SHIFT).timesteps
    return WorldModel(replace(model.config, timesteps=levels), model.denoiser, model.autoencoder, model.fingerprint)


def _form(names: str, config: EvalAblations) -> WorldModel:
    model = _plain(config)
    if model.denoiser.quantisation is not None:
        raise BundleError(f"{config.bundle} holds quantised weights; give one of plain weights.")
    told = replace(model.config, denoiser=reshaped(model.config.denoiser, names))
    with torch.device("meta"):
        denoiser = Denoiser(told.denoiser)
    denoiser.load_state_dict(model.denoiser.state_dict(), assign=True)  # the same tensors
    reform(denoiser, names, told.grid[0] * told.grid[1])
    return WorldModel(told, denoiser, model.autoencoder, model.fingerprint)


def _loaded(config: EvalAblations, **given: Any) -> WorldModel:
    return load(config.bundle, device=config.device, **given)


def _rows() -> dict[str, Row]:
    rows = {"as it is": Row(group="as it is", what="the bundle", open=_plain)}
    for count in (1, 2, 4, 8, 16):
        rows[f"steps {count}"] = Row(group="steps", what=f"sampling steps: {count}", open=partial(_steps, count))
    for name in ("forgetful", "linear", "no_sink", "no_convolution", "no_ucpe", "no_plucker", "no_ucpe+no_plucker"):
        what = " and ".join(FORMS[one].what for one in name.split("+"))
        rows[name] = Row(group="parts", what=what, open=partial(_form, name))
    for chunks in (2, 3, 5, 9):
        form = FORMS[f"window_{chunks}"]
        rows[f"window {chunks}"] = Row(group="window", what=form.what, open=partial(_form, f"window_{chunks}"))
    for precision in ("fp32", "bf16", "fp8", "nvfp4"):
        opened = partial(_loaded, precision=precision)
        rows[precision] = Row(group="precision", what=f"precision {precision}", open=opened)
    # In fp32, to be compared with that row: wherever it is judged, nothing but the refiner is between them.
    refined = partial(_loaded, refiner=True, precision="fp32")
    rows["refiner"] = Row(group="variants", what="with the bundle's refiner, precision fp32", open=refined)
    for variant in ("distilled", "teacher", "bidirectional"):
        opened = partial(_loaded, variant=variant)
        rows[variant] = Row(group="variants", what=f"the {variant} variant", open=opened)
    return rows


ROWS = _rows()


def main(arguments: list[str]) -> int:
    """Judges what `key=value` arguments describe; see `run_bare`."""
    return run_bare(EvalAblations, command, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
