"""The page of figures: what was measured beside goals, floors and other implementations: `sanawm bench report`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanawm_env.benchmarks.counts import Work, counted
from sanawm_env.benchmarks.goals import GOALS, Goal, Lines
from sanawm_env.benchmarks.sana_wm import real_time_factors
from sanawm_env.canvas import canvas
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import ConfigError, StorageError

MEASURED = Path(__file__).parent / "measured.json"
# What one H200 does: bytes a second from its memory, bf16 multiplications and additions a second, as measured on it.
BANDWIDTH, PEAK = 4.3e12, 790e12
PAGE = """# Performance

Made by `sanawm bench report` from what the benchmarks wrote. The released model runs at 704x1280 with random weights of
full size. Public figures: one H200, as shipped / with torch.compile on the blocks. Floor: the multiplications alone at
{peak} TFLOP/s.

{table}

![Achieved rate over work for each byte that must be moved]({picture})

The line is what an H200 can do: {bandwidth} TB/s from memory up to its knee, {peak} TFLOP/s behind it. Bytes are the
least ones: weights, state and tokens once.

Measured:

{sources}
"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """measured: files with lines of benchmarks, of which the last of each kind counts; None for what the package
    brings. out: page; its picture lies in `media` beside it.
    """

    measured: tuple[Path, ...] | None = None
    out: Path = Path("examples/performance.md")


def run(config: Report) -> Path:
    """Writes the page and its picture, and returns the page. ConfigError: the files hold no line of a benchmark."""
    lines = newest((MEASURED,) if config.measured is None else config.measured)
    picture = config.out.with_name("media") / f"{config.out.stem}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    with appearing(picture) as draft:
        _roofline(lines, draft)
    with appearing(config.out) as draft:
        draft.write_text(page(lines, f"media/{picture.name}"), encoding="utf-8")
    return config.out


def newest(files: Sequence[Path]) -> Lines:
    """What was measured last, by benchmark and, where there are several, precision or device.

    Of one whose rows have names, rows that its last line lacks are those of lines before. sources: where each row comes
    from, in words.
    """
    lines: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            for text in file.read_text(encoding="utf-8").splitlines():
                told = json.loads(text)
                lines[_kind(told)] = _joined(lines.get(_kind(told), {}), told)
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"{file} cannot be read: {error}; run the benchmarks, they write it.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is no file of `sanawm bench` ({error!r}); give what its `out` named.") from error
    if not lines:
        raise ConfigError(f"{', '.join(map(str, files))} hold no line of a benchmark; run one first.")
    return lines


def page(lines: Lines, picture: str) -> str:
    """The page in Markdown."""
    rows = [_row(goal, goal.measured(lines)) for goal in GOALS]
    head = ("what", "best public, shipped / compiled", "floor", "goal", "measured", "")
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))
    known = sorted({(kind, source) for kind, told in lines.items() for source in told["sources"].values()})
    sources = "\n".join(f"- `{kind}`: {source}" for kind, source in known)
    return PAGE.format(
        table=table, picture=picture, sources=sources, peak=f"{PEAK / 1e12:.0f}", bandwidth=f"{BANDWIDTH / 1e12:.1f}"
    )


def _row(goal: Goal, value: float | None) -> tuple[str, ...]:
    target = f"{'>=' if goal.at_least else '<='} {goal.goal:g} {goal.unit}"
    floor = "" if goal.floor is None else f"{goal.floor:g} {goal.unit}"
    if value is None:
        return goal.what, goal.public, floor, target, "not measured", ""
    return goal.what, goal.public, floor, target, f"{value:.4g} {goal.unit}", "met" if goal.reached(value) else "missed"


def _joined(before: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    rows, source = told.get("rows"), _source(told)
    if not isinstance(rows, Mapping):
        return {**told, "sources": {"": source}}
    rows = {**before.get("rows", {}), **rows}
    sources = {**before.get("sources", {}), **dict.fromkeys(told["rows"], source)}
    return {**told, "rows": rows, "sources": sources, "real_time_factor": real_time_factors(rows)}


def _source(told: Mapping[str, Any]) -> str:
    device = told.get("gpu") or f"{told.get('cpu')}, {told.get('threads')} threads"
    captured = _captured(told)
    steps = "" if captured is None else "steps replayed from CUDA graphs" if captured else "eager"
    commit = str(told.get("commit"))  # with a plus behind it where files had changed since
    facts = (
        told.get("time"),
        f"commit {commit[:12]}{'+' * commit.endswith('+')}",
        device,
        f"torch {told.get('torch')}",
        steps,
    )
    return ", ".join(str(fact) for fact in facts if fact)


def _captured(told: Mapping[str, Any]) -> bool | None:
    """Whether steps were replayed from graphs, where the line says it."""
    rows = told.get("rows")
    memory = rows.get("distilled.memory", {}) if isinstance(rows, dict) else {}
    found = {**memory, **told}.get("captured")
    return None if found is None else bool(found)


def _kind(told: dict[str, Any]) -> str:
    name = str(told["benchmark"])
    if name == "sana_wm":
        precision = told["settings"].get("precision")
        return f"{name} {precision if precision in ('fp8', 'nvfp4') else told['dtype']}"
    return f"{name} {'cuda' if told.get('gpu') else 'cpu'}" if name == "rooms" else name


def _roofline(lines: Lines, target: Path) -> None:
    """Rate over intensity of what was measured, under the card's limits."""
    figure = canvas(8, 4.6)
    axes = figure.subplots()
    low, high = 1.0, 1e5
    axes.loglog([low, PEAK / BANDWIDTH, high], [low * BANDWIDTH / 1e12, PEAK / 1e12, PEAK / 1e12], color="0.35")
    for work, seconds in _points(lines):
        intensity, rate = work.flops / work.bytes, work.flops / seconds / 1e12
        axes.plot(intensity, rate, "o", label=f"{work.what}: {rate:.3g} TFLOP/s")
    axes.set(xlabel="FLOP a byte", ylabel="TFLOP/s", xlim=(low, high), ylim=(1, 2000))
    axes.grid(True, which="major", color="0.9")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(target, format="png", dpi=110)


def _points(lines: Lines) -> list[tuple[Work, float]]:
    found = []
    for work in counted():
        goal = next(goal for goal in GOALS if goal.what == work.what)
        value = goal.measured(lines)
        if value is not None:
            found.append((work, value * {"ms": 1e-3, "us": 1e-6}[goal.unit]))
    return found
