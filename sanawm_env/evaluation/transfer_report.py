"""The page of the transfer benchmark: tables and a plot, from the file that `sanawm eval transfer` wrote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from sanawm_env.canvas import canvas
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.goal_images_report import section as goal_section
from sanawm_env.evaluation.transfer import Results
from sanawm_env.evaluation.transfer_figures import Figure, Pair, Ran, agreement, correlation, pairs, ratios

_COLOURS = {"pictures": "#1f6fb4", "floor plan": "#2f8f4e", "goal": "#d9822b", "nothing": "#777777"}
_MARKERS = "osD^v<>pPX*dH1+x"
PAGE = """# Transfer: does what works in the dream work in the truth?

Made by `sanawm eval transfer report=true` from what `sanawm eval transfer` wrote. Each policy drives to a goal (task
`goto`) in the learned world, the dream, and in the ray-caster, the truth: the same {count} held-out rooms, starts and
goals. The goal is in the first picture in all of them ({looked_at} seeds were looked at to find them). Brackets hold
95 % intervals: Wilson's for rates, bootstrap over scenes for the rest.

How to read it:

- {straight}
- Rewards, collisions and ends come from poses and the known floor plan, in the dream too. A policy that looks at no
  picture therefore does the same in both by construction, and its agreement says nothing of the dream. Only those that
  see pictures ({seeing}) do.
- Planners with the task's reward ("plan, reward") know the floor plan through it; the pictures dreamed have no part in
  what they do. Those with the goal's place know no obstacles. Both plan in the dream and act where the table says.
- "goal" is where the goal lies from the camera, told exactly in every step. "hard" are the scenes in which driving
  straight fails.

![Success in the truth over success in the dream]({picture})

## In the truth

{truth}

SPL: the shortest free way on a grid of 0.1 m over the metres driven, 0 without success. Seconds: of world time, over
successes.

## In the dream

{dream}

Alike: share of the scenes that end alike, success or not, in dream and truth.

## Trained in the dream, judged in the truth

{ratios}

## Is the dream a fair judge?

Rank correlation (Spearman) of success in the dream with success in the truth:

{correlations}
{goal_images}
Measured:

{sources}
"""


def write(results: Results, page: Path, goal_images: Path | None = None) -> Path:
    """Writes the page and its pictures, and returns the page. goal_images: what `sanawm eval goal-images` wrote, told
    where it is there. ConfigError: no policy was judged in both places."""
    found = _found(results)
    picture = page.with_name("media") / f"{page.stem}.png"
    with appearing(picture) as draft:
        _plot(found, draft)
    goals = "" if goal_images is None or not goal_images.exists() else goal_section(goal_images, picture.parent)
    with appearing(page) as draft:
        draft.write_text(text(results, f"media/{picture.name}", goals), encoding="utf-8")
    return page


def text(results: Results, picture: str, goal_images: str = "") -> str:
    """The page in Markdown. goal_images: a section of it."""
    found, told = _found(results), results.setup["found"]
    seeing = sum(pair.pictures for pair in found)
    return PAGE.format(
        count=len(told["seeds"]),
        looked_at=told["looked_at"],
        straight=_straight(found),
        seeing=f"{seeing} of {len(found)} policies here",
        picture=picture,
        truth=_table([pair.truth for pair in found], found, None),
        dream=_table([pair.dream for pair in found], found, [agreement(pair) for pair in found]),
        ratios=_ratios(found),
        correlations=_correlations(found),
        goal_images=goal_images,
        sources="\n".join(_sources(results)),
    )


def summary(results: Results) -> str:
    """The tables alone, for a terminal; a line for policies judged in one place so far."""
    found = pairs(results.setup, results.lines)
    if not found:
        return f"{len(results.lines)} results; no policy was judged in both places yet"
    truth = _table([pair.truth for pair in found], found, None)
    dream = _table([pair.dream for pair in found], found, [agreement(pair) for pair in found])
    return f"In the truth\n{truth}\n\nIn the dream\n{dream}\n\n{_ratios(found)}\n\n{_correlations(found)}"


def _found(results: Results) -> list[Pair]:
    found = pairs(results.setup, results.lines)
    if not found:
        raise ConfigError("no policy was judged in both dream and truth; run `sanawm eval transfer` first.")
    return found


def _straight(found: Sequence[Pair]) -> str:
    for pair in found:
        if pair.identity["kind"] == "straight" and not pair.identity["noise"]:
            return (
                f"Driving straight at the goal, whatever is in the way, reaches {_percent(pair.truth.rate('success'))} "
                "of the goals, because the goal vector is given. High success of a learned policy proves little by "
                "itself; the hard scenes, which need more than that, tell."
            )
    return "Driving straight at the goal was not judged, so there are no hard scenes."


def _table(runs: Sequence[Ran], found: Sequence[Pair], alike: Sequence[Figure] | None) -> str:
    head = ["policy", "trained in", "goes by", "success", "hard", "SPL", "collisions", "timeouts", "seconds"]
    rows = [head + ["alike"] * (alike is not None)]
    for number, (ran, pair) in enumerate(zip(runs, found, strict=True)):
        hard = ran.hard_success()
        row = [pair.name, _trained(pair), pair.sees, _percent(ran.rate("success"))]
        row.append(f"{_percent(hard)} of {hard.count}" if hard.count else "")
        row += [_number(ran.path_efficiency(), 2), _percent(ran.rate("collision")), _percent(ran.rate("timeout"))]
        row.append(_number(ran.seconds(), 1))
        rows.append(row if alike is None else [*row, _percent(alike[number])])
    return _markdown(rows)


def _trained(pair: Pair) -> str:
    trained = str(pair.identity["trained"])
    return "nowhere" if trained == "none" else trained


def _ratios(found: Sequence[Pair]) -> str:
    rows = [["method", "trained in the dream", "trained in the truth", "ratio of success", "ratio on hard scenes"]]
    for one, other, ratio, hard in ratios(found):
        noise = f", noise {one.identity['noise']:g}" if one.identity["noise"] else ""
        rates = [_percent(pair.truth.rate("success")) for pair in (one, other)]
        rows.append([f"{one.identity['method']}{noise}", *rates, _number(ratio, 2), _number(hard, 2)])
    if len(rows) == 1:
        return "No method was trained in both."
    return _markdown(rows)


def _correlations(found: Sequence[Pair]) -> str:
    seeing = [pair for pair in found if pair.pictures]
    told = []
    for what, some in (("all policies", found), ("those that see pictures", seeing)):
        figure = correlation(some)
        rates = [100 * float(pair.truth.success.mean()) for pair in some]
        spread = f"; success in the truth {min(rates):.0f} .. {max(rates):.0f} %" if rates else ""
        told.append(f"- {what} ({figure.count}): {_number(figure, 2)}{spread}")
    return "\n".join(told)


def _sources(results: Results) -> list[str]:
    """On what machine, with what, how many lines."""
    counted: dict[str, int] = {}
    for line in results.lines:
        device = line["gpu"] or f"{line['cpu']}, {line['threads']} threads"
        key = f"{line['time'][:10]}, commit {str(line['commit'])[:12]}, {device}, torch {line['torch']}"
        counted[key] = counted.get(key, 0) + 1
    world = f"- world {results.setup['world'][:12]}, task {results.setup['task']}"
    return [world, *(f"- {count} of {len(results.lines)}: {key}" for key, count in counted.items())]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def _percent(figure: Figure) -> str:
    if math.isnan(figure.value):
        return ""
    assert figure.interval is not None
    low, high = (100 * end for end in figure.interval)
    return f"{100 * figure.value:.3g} % [{low:.0f}, {high:.0f}]"


def _number(figure: Figure, places: int) -> str:
    if math.isnan(figure.value):
        return "undefined"
    ends = "no interval" if figure.interval is None else ", ".join(f"{end:.{places}f}" for end in figure.interval)
    return f"{figure.value:.{places}f} [{ends}]"


def _plot(found: Sequence[Pair], target: Path) -> None:
    """Success in the truth over success in the dream, with intervals."""
    figure = canvas(9, 5.6)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.75", linewidth=1, zorder=0)
    for number, pair in enumerate(found):
        rates = [ran.rate("success") for ran in (pair.dream, pair.truth)]
        x, y = (100 * rate.value for rate in rates)
        (left, right), (below, above) = ([100 * end for end in rate.interval or (0, 1)] for rate in rates)
        axes.errorbar(
            x,
            y,
            xerr=[[x - left], [right - x]],
            yerr=[[y - below], [above - y]],
            fmt=_MARKERS[number % len(_MARKERS)],
            color=_colour(pair),
            markersize=7,
            elinewidth=0.8,
            label=f"{pair.name} ({pair.sees})",
        )
    axes.set(xlabel="success in the dream, %", ylabel="success in the truth, %", xlim=(0, 102), ylim=(0, 102))
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="policy (what it goes by)")
    figure.savefig(target, format="png", dpi=110)


def _colour(pair: Pair) -> str:
    return next(colour for word, colour in _COLOURS.items() if word in pair.sees)
