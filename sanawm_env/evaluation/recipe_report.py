"""The page of the recipe: stages, variants, ablations and the paper's claims at this size, from what was measured.

`sanawm eval recipe`; without the command line's packages `python3 -m sanawm_env.evaluation.recipe_report`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanawm_env import bundle
from sanawm_env.bare import run_bare
from sanawm_env.benchmarks.machine import read_lines
from sanawm_env.canvas import canvas
from sanawm_env.datasets.atomic import appearing
from sanawm_env.evaluation.ablations import ROWS, Results
from sanawm_env.evaluation.form_scores import MEASURES
from sanawm_env.evaluation.recipe_claims import BY_KEY, CLAIMS, NOT_MEASURED, Clips, Decision, broken, decide
from sanawm_env.evaluation.recipe_stages import stage_rows, variant_rows
from sanawm_env.evaluation.world_figures import Mean, difference, mean_of
from sanawm_env.model.forms import FORMS

TRAINED = Path(__file__).with_name("recipe_training.json")
JUDGED = Path(__file__).with_name("recipe_bundle.json")
FORM_ROWS = (
    *("gdn", "linear", "softmax", "no_softmax", "l2_keys", "no_key_scale", "no_ucpe", "no_plucker"),
    *("no_ucpe+no_plucker", "no_convolution", "no_sink"),
)
KEYS = {"l2_keys": "keys scaled by 1 / sqrt(D) break training", "no_key_scale": "keys without a scale break training"}
PAGE = """# The recipe: stages, variants, and what each part is worth

Made by `sanawm eval recipe` from the provenance of the shipped bundles and from what `sanawm train ablation` and
`sanawm eval ablations` wrote. Brackets hold 95 % bootstrap intervals over held-out rooms; a difference is paired by
room. What was not measured says so.

## Stages

{stages}

GPU minutes: minutes, with those of compiling, times GPUs, over all runs of a stage.
`sanawm train recipe` runs such stages one after another, from nothing to bundles like those that ship, and goes on
where it was stopped; `minutes=` makes them shorter or longer.

## Variants

{variants}

## The paper's claims at this size

{claims}

A claim holds where the interval of the difference leaves out zero on its side (or, with a margin, where all of it is
within); "not seen": it does not leave out zero.

## Ablations of training

The same small denoiser from nothing, one part missing or another. Operations: of one clip, forward and backward,
matrices and convolutions outside the scan over frames. Forms that train side by side on one card lengthen each other's
minutes and milliseconds, not their operations.

{training}

## Ablations without training

{judged_on}

{bundle}

Windows, steps and parts are changed in weights that were trained without the change, so a loss says what the weights
rely on, not what a model trained so would reach.

![Differences in PSNR]({picture})

Measured:

{sources}
"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """training: lines of `sanawm train ablation`; judged: file of `sanawm eval ablations`; null for what the package
    brings. out: page in Markdown; its picture lies in `media` beside it.
    """

    training: Path | None = None
    judged: Path | None = None
    out: Path = Path("examples/recipe.md")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """training: lines. judged: None where nothing is."""

    training: list[dict[str, Any]]
    judged: Results | None

    @property
    def rows(self) -> dict[str, Clips]:
        """Clips of the bundle's rows by name."""
        return {} if self.judged is None else {line["row"]: line["clips"] for line in self.judged.lines}

    @property
    def setups(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Lines by setup, in words, and form; setups in which the model as it is was trained."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for line in self.training:
            found.setdefault(_setup(line), {})[line["form"]] = line
        return {name: forms for name, forms in found.items() if "gdn" in forms}


def read(config: Recipe) -> Measured:
    """What the files hold. StorageError: they hold something else."""
    judged = config.judged or JUDGED
    return Measured(
        training=read_lines(config.training or TRAINED),
        judged=Results.read(judged) if config.judged or judged.exists() else None,
    )


def run(config: Recipe) -> str:
    """Writes the page and its picture, and returns the page's path."""
    found = read(config)
    picture = config.out.with_name("media") / f"{config.out.stem}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    with appearing(picture) as draft:
        _plot(found, draft)
    with appearing(config.out) as draft:
        draft.write_text(text(found, f"media/{picture.name}"), encoding="utf-8")
    return str(config.out)


def text(found: Measured, picture: str) -> str:
    """The page in Markdown."""
    return PAGE.format(
        stages=_markdown(stage_rows()),
        variants=_markdown(variant_rows()),
        claims=_markdown(_claims(found)),
        training="\n\n".join(_trained(found)),
        judged_on=_judged_on(found),
        bundle=_markdown(_judged(found)),
        picture=picture,
        sources="\n".join(_sources(found)) or f"- {NOT_MEASURED}",
    )


def _setup(line: Mapping[str, Any]) -> str:
    budget = line["budget"]
    if "operations" in budget:
        spent = f"{budget['operations'] / 1e15:g} P operations"
    else:
        spent = f"{budget['steps']} steps" if "steps" in budget else f"{budget['minutes']:g} minutes"
    objective = "one-pass mixture" if line["mixture_share"] >= 1 else "streamed objective"
    return (
        f"{spent}; width {line['width']}, depth {line['depth']}, {line['batch']} clips of {line['latents']} latents, "
        f"{objective}, seed {line['seed']}"
    )


def _claims(found: Measured) -> list[list[str]]:
    rows = [["claim", "compared", "where", "difference", "verdict"]]
    rows += [[what, form, "training", "", broken(form, found.training)] for form, what in KEYS.items()]
    for claim in CLAIMS:
        if claim.of == "bundle":
            rows += [_decision(one, "bundle") for one in decide(claim, found.rows)]
            continue
        clips = {name: {form: line["clips"] for form, line in forms.items()} for name, forms in found.setups.items()}
        told = {name: forms for name, forms in clips.items() if claim.other in forms}
        for name, forms in (told or {"training": {}}).items():
            rows += [_decision(one, name.split(";")[0]) for one in decide(claim, forms)]
    return rows


def _decision(one: Decision, where: str) -> list[str]:
    claim, measure = one.claim, one.measure
    told = "" if one.found is None else _number(one.found.mean, measure.digits, signed=True)
    return [claim.what, f"{claim.other} less {claim.base}, {measure.label}", where, told, one.verdict]


def _trained(found: Measured) -> list[str]:
    tables, known = [], {form for forms in found.setups.values() for form in forms}
    for name, forms in (found.setups or {NOT_MEASURED: {}}).items():
        rows = [["form", "steps", "ms a step", "minutes", "operations", "parameters", *(x.label for x in MEASURES)]]
        for form in dict.fromkeys((*FORM_ROWS, *forms)):
            if form in known - forms.keys():  # another table has it
                continue
            what = f"{form}: {' and '.join(FORMS[one].what for one in form.split('+'))}"
            rows.append([what, *_trained_row(forms.get(form), len(rows[0]) - 1)])
        tables.append(f"{name[0].upper()}{name[1:]}:\n\n{_markdown(rows)}")
    return tables


def _trained_row(line: Mapping[str, Any] | None, columns: int) -> list[str]:
    if line is None:
        return [NOT_MEASURED, *[""] * (columns - 1)]
    cost = [str(line["steps"]), "" if line["ms_a_step"] is None else f"{line['ms_a_step']:.0f}"]
    cost += [f"{line['minutes']:.1f}", f"{line['operations_a_clip'] / 1e9:.0f} G", f"{line['parameters'] / 1e6:.2f} M"]
    if line["diverged"] is not None:
        return [*cost, f"no number at step {line['diverged']}", *[""] * (len(MEASURES) - 1)]
    return [*cost, *_scores(line["clips"])]


def _judged_on(found: Measured) -> str:
    if found.judged is None:
        return f"Rows: {NOT_MEASURED}."
    setup = found.judged.setup
    told = f"Bundle `{setup['name']}` ({setup['bundle'][:12]}), {setup['judging']['scenes']} held-out rooms."
    if bundle.fingerprint(setup["name"]) != setup["bundle"]:
        told += f" The one that ships now is another ({bundle.fingerprint(setup['name'])[:12]})."
    return told


def _judged(found: Measured) -> list[list[str]]:
    rows = [["row", "what", *(measure.label for measure in MEASURES)]]
    for name, row in ROWS.items():
        clips = found.rows.get(name)
        told = [NOT_MEASURED, *[""] * (len(MEASURES) - 1)] if clips is None else _scores(clips)
        rows.append([name, row.what, *told])
    return rows


def _scores(clips: Clips) -> list[str]:
    return [_number(mean_of(clips, measure), measure.digits) for measure in MEASURES]


def _number(mean: Mean, digits: int, *, signed: bool = False) -> str:
    if not mean.count:
        return NOT_MEASURED
    sign = "+" if signed else ""
    ends = "" if mean.interval is None else " [{}]".format(", ".join(f"{x:{sign}.{digits}f}" for x in mean.interval))
    return f"{mean.value:{sign}.{digits}f}{ends}"


def _sources(found: Measured) -> list[str]:
    """On what machine, with what, how many lines of which command."""
    counted: dict[str, int] = {}
    lines = [("sanawm train ablation", line) for line in found.training]
    lines += [("sanawm eval ablations", line) for line in (found.judged.lines if found.judged else [])]
    for command, line in lines:
        device = line["gpu"] or f"{line['cpu']}, {line['threads']} threads"
        key = f"`{command}`, {line['time'][:10]}, commit {str(line['commit'])[:12]}, {device}, torch {line['torch']}"
        counted[key] = counted.get(key, 0) + 1
    return [f"- {key}: {count} lines" for key, count in counted.items()]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def _plot(found: Measured, target: Path) -> None:
    """What each change does to PSNR, with intervals: forms against the model as it is, rows against the bundle. The
    tables tell which were not measured, or were no number."""
    panels: list[tuple[str, str, Mapping[str, Clips], Sequence[str]]] = [
        (f"trained: {name.split(';')[0]}", "gdn", {form: x["clips"] for form, x in forms.items()}, FORM_ROWS)
        for name, forms in (found.setups or {NOT_MEASURED: {}}).items()
    ]
    panels.append(("bundle, not trained", "as it is", found.rows, tuple(ROWS)))
    figure = canvas(6 * len(panels), 6.5)
    for axes, (title, base, rows, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shown = [name for name in names if name != base and rows.get(base) and rows.get(name)]
        for offset, (key, colour) in enumerate((("psnr_32", "#1f6fb4"), ("back", "#d9822b"))):
            for place, name in enumerate(shown):
                mean = difference(rows[base], rows[name], BY_KEY[key]).mean
                low, high = mean.interval or (mean.value, mean.value)
                spread = [[mean.value - low], [high - mean.value]]
                axes.errorbar(mean.value, place + 0.2 * offset, xerr=spread, fmt="o", color=colour, markersize=4)
            axes.plot([], [], "o", color=colour, label=BY_KEY[key].label)
        axes.axvline(0, color="0.6", linewidth=1)
        axes.set_yticks(range(len(shown)), shown, fontsize=8)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set(title=title, xlabel=f"difference to '{base}', dB")
        axes.grid(axis="x", color="0.93")
    axes.legend(loc="best", frameon=False, fontsize=8)
    figure.savefig(target, format="png", dpi=110)


def main(arguments: list[str]) -> int:
    """Writes the page that `key=value` arguments describe; see `run_bare`."""
    return run_bare(Recipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
