"""Tables, plots and page of what `sanawm eval world` wrote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from sanawm_env.canvas import canvas
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.world import Results
from sanawm_env.evaluation.world_figures import (
    FACTS,
    MEASURES,
    Line,
    Mean,
    Measure,
    curve,
    difference,
    mean_of,
    throughput,
)

COLOURS = ("#1f6fb4", "#d9822b", "#2f8f4e", "#a23b72", "#777777", "#6b4fb0")
CAMERA = [measure for measure in MEASURES if measure.key in ("rot_err_first", "trans_share_first")]
PAGE = """# Evaluation: camera, pixels and drift

Made by `sanawm eval world report=true page=examples/{page}` from what `sanawm eval world` wrote: {frames} frames a clip
at {fps:g} frames/s, {source}, every world on the same clips. The measures are those of the paper
(RotErr, TransErr, CamMC, delta-IQ, revisit PSNR). Brackets hold 95 % bootstrap intervals over clips; "better" and
"worse" stand where that of the difference leaves out zero.

- RotErr, TransErr, CamMC: the pose of every {every}th frame is estimated ({poses});
  the estimate is aligned to the path asked for by a similarity of camera centres, as in the paper. Half the speed then
  scores the same, so the table has them again aligned by a rigid motion (scale counts, rotation stays), and with
  nothing but the first pose in its place. On short and nearly straight paths only the last says what the rotation is:
  centres on a line leave open how the path is turned about it, and an error of a centimetre turns all of it.
- visible: what of a frame the first picture has shown. Sharpness is the mean difference between neighbouring pixels,
  over that of the truth: below 1 is blur. Flicker is what moves against its neighbours in time, over that of the truth.
  Better is nearer to 1; noise raises both, so read them beside PSNR.
- Learned scores need weights of other networks, which are used where they lie on the machine and never downloaded.
- frames/s: of the fastest batch. Peak memory is the process's on a CPU, with the ray-caster's part in it.

{tables}

![Over time]({picture})

Measured:

{sources}
"""


def summary(results: Results) -> str:
    """The tables, for a terminal."""
    return "\n\n".join(f"{split}, {_counts(results, split)}\n{_table(results, split)}" for split in _splits(results))


def write_page(results: Results, page: Path) -> Path:
    """Writes the page in Markdown and its picture, and returns the page."""
    picture = write_plot(results, page.with_name("media") / f"{page.stem}.png")
    setup = results.setup
    body = PAGE.format(
        page=page.name,
        frames=setup["frames"],
        fps=setup["fps"],
        source="held-out rooms" if setup["source"] == "rooms" else f"the scenes of {setup['source']}",
        every=setup["pose_every"],
        poses={"render": "by comparing it with the ray-caster's picture around that pose", None: "not here"}.get(
            setup["poses"], f"by {setup['poses']}"
        ),
        tables="\n\n".join(f"## {split.capitalize()}\n\n{_table(results, split)}" for split in _splits(results)),
        picture=f"media/{picture.name}",
        sources="\n".join(_sources(results)),
    )
    with appearing(page) as draft:
        draft.write_text(body, encoding="utf-8")
    return page


def write_plot(results: Results, target: Path) -> Path:
    """PSNR and sharpness over time, and the camera by template: a row of panels a split, a colour a world."""
    splits = _splits(results)
    figure = canvas(13, 3.6 * len(splits))
    panels = figure.subplots(len(splits), 3, squeeze=False)
    seconds = results.setup["frames"] / results.setup["fps"]
    for row, split in zip(panels, splits, strict=True):
        there = {model: lines for model in results.models if (lines := _lines(results, split, model))}
        for number, (model, lines) in enumerate(there.items()):
            colour = COLOURS[results.models.index(model) % len(COLOURS)]
            for axes, key in zip(row, ("psnr_curve", "sharpness_curve")):
                values = curve(lines, key)
                times = [(k + 0.5) * seconds / max(1, len(values)) for k in range(len(values))]
                axes.plot(times, values, color=colour, marker="o", markersize=3, label=model)
            _camera_bars(row[2], lines, number, len(there), colour)
        row[0].set(title=f"{split}: PSNR, visible pixels", xlabel="seconds", ylabel="dB")
        row[1].set(title="sharpness over the truth's", xlabel="seconds")
        row[1].axhline(1, color="0.8", zorder=0)
        row[2].set(title="rotation error by template", ylabel="degrees")
        for axes in row:
            axes.grid(color="0.93")
            axes.set_axisbelow(True)
    panels[0][0].legend(frameon=False)
    with appearing(target) as draft:
        figure.savefig(draft, format="png", dpi=110)
    return target


def _camera_bars(axes: object, lines: Sequence[Line], number: int, models: int, colour: str) -> None:
    """Rotation error of the first-pose alignment, a bar a template."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line["template"] or "all", []).append(line)
    means = [mean_of(own, CAMERA[0]).value for own in found.values()]
    places = [k + (number - (models - 1) / 2) * 0.8 / models for k in range(len(found))]
    axes.bar(places, [0 if math.isnan(x) else x for x in means], width=0.8 / models, color=colour)  # type: ignore[attr-defined]
    axes.set_xticks(range(len(found)), list(found), rotation=45, ha="right", fontsize=8)  # type: ignore[attr-defined]


def _splits(results: Results) -> list[str]:
    if not results.lines:
        raise ConfigError("no clip was judged yet; run `sanawm eval world` first.")
    return sorted({line["split"] for line in results.lines}, reverse=True)


def _lines(results: Results, split: str, model: str) -> list[Line]:
    return [line for line in results.lines if (line["split"], line["model"]) == (split, model)]


def _counts(results: Results, split: str) -> str:
    counts = (f"{model}: {len(_lines(results, split, model))}" for model in results.models)
    return f"{results.setup['frames']} frames a clip, clips {', '.join(counts)}"


def _table(results: Results, split: str) -> str:
    """A row a measure, a column a world, and one more a world but the first: its differences from that one."""
    of_model = {model: lines for model in results.models if (lines := _lines(results, split, model))}
    first, *others = of_model
    rows = [["", *of_model, *(f"{other} less {first}" for other in others)]]
    for measure in MEASURES:
        means = [mean_of(lines, measure) for lines in of_model.values()]
        if all(mean.count == 0 and not mean.missing for mean in means):
            continue
        row = [measure.label, *(_cell(mean, measure) for mean in means)]
        rows.append([*row, *(_compared(of_model[first], of_model[other], measure) for other in others)])
    blank = [""] * len(others)
    rows.append(["frames/s", *(f"{throughput(lines):.1f}" for lines in of_model.values()), *blank])
    for key, label in (("state_bytes", "state of a world, MiB"), ("peak_bytes", "peak memory, MiB")):
        most = (max(line["cost"][key] for line in lines) / 2**20 for lines in of_model.values())
        rows.append([label, *(f"{x:.0f}" for x in most), *blank])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    head, *body = ([cell.ljust(width) for cell, width in zip(row, widths)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["-" * width for width in widths], *body))


def _compared(first: Sequence[Line], other: Sequence[Line], measure: Measure) -> str:
    if measure.key in FACTS:
        return ""
    found = difference(first, other, measure)
    return f"{_cell(found.mean, measure, sign='+')} {found.verdict}".strip() if found.mean.count else ""


def _cell(mean: Mean, measure: Measure, sign: str = "") -> str:
    if not mean.count:
        return mean.missing
    value = f"{mean.value:{sign}.{measure.digits}f}"
    if mean.interval is None:
        return value
    return f"{value} [{', '.join(f'{end:{sign}.{measure.digits}f}' for end in mean.interval)}]"


def _sources(results: Results) -> list[str]:
    """On what machine, with what, how many clips."""
    counted: dict[str, int] = {}
    for line in results.lines:
        device = line["gpu"] or f"{line['cpu']}, {line['threads']} threads"
        told = f"{line['model']} (world {line['identity']['world'][:12]}, {line['identity']['execution']})"
        key = f"{told}: {line['time'][:10]}, commit {str(line['commit'])[:12]}, {device}, torch {line['torch']}"
        counted[key] = counted.get(key, 0) + 1
    return [f"- {count} clips, {key}" for key, count in counted.items()]
