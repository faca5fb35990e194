"""What became of a job: numbers as JSON, and a page with a contact sheet, counts and histograms as PNG."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sanawm_env.datasets.atomic import appearing
from sanawm_env.datasets.layout import METADATA
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.evaluation.sheet import BACKGROUND, INK, save_sheet
from sanawm_env.generation.config import Generate
from sanawm_env.generation.record import STORE, Line
from sanawm_env.generation.worker import Timing

SHEET_ROWS, SHEET_COLUMNS = 8, 6
CELL = 160  # pixels across a picture of the sheet
PLOT = (300, 150)  # of a histogram
BINS, GAP, LINE = 24, 12, 14
BAR, LIMIT = (66, 133, 244), (219, 68, 55)
SCORES = ("contrast", "sharpness", "drift", "degrees", "metres")


def report(config: Generate, lines: Mapping[int, Line], timings: Sequence[Timing], wall: float) -> dict[str, Any]:
    """Counts over the whole job, and the times of this run, as plain JSON.

    seconds: "wall" of the run; of its workers, summed: "work" since model and processes were up, "step" in world.step,
    "start" in world.initial, on "paths" and rooms, "waiting" for what is written. outside_model: the share of "work" in
    neither of the first two.
    """
    told = list(lines.values())
    stored = [line for line in told if line["stored"]]
    seconds = {name: round(sum(one[name] for one in timings), 3) for name in ("step", "start", "paths", "waiting")}
    work, frames = sum(one["wall"] for one in timings), sum(one["frames"] for one in timings)
    made = sum(one["episodes"] for one in timings)
    return {
        "episodes": len(told),
        "stored": len(stored),
        "rejected": sum(bool(line["rejected"]) for line in told),
        "reasons": dict(Counter(reason for line in told for reason in line["rejected"])),
        "ends": dict(Counter(line["end"] for line in told)),
        "frames": sum(line["frames"] for line in stored),
        "bytes": sum(path.stat().st_size for path in (config.out / STORE).rglob("*") if path.is_file()),
        "made_now": int(made),
        "episodes_per_second": round(made / wall, 3),
        "frames_per_second": round(frames / wall, 2),
        "seconds": {"wall": round(wall, 3), "work": round(work, 3), **seconds},
        "outside_model": round(1 - (seconds["step"] + seconds["start"]) / work, 4) if work else None,
        "outside_step": round(1 - seconds["step"] / work, 4) if work else None,
    }


def text(told: Mapping[str, Any]) -> str:
    """The report in a few lines."""
    why = ", ".join(f"{count} by {reason}" for reason, count in sorted(told["reasons"].items()))
    ends = ", ".join(f"{count} {end}" for end, count in sorted(told["ends"].items()))
    lines = [
        f"{told['stored']} episodes stored of {told['episodes']} made, {told['frames']} frames, "
        f"{told['bytes'] / 1e6:.1f} MB; ends: {ends or '-'}",
        f"rejected: {told['rejected']}{f' ({why})' if why else ''}",
    ]
    if told["made_now"]:
        took = told["seconds"]
        lines.append(
            f"this run: {told['made_now']} episodes in {took['wall']:.1f} s, {told['episodes_per_second']:.2f} "
            f"episodes/s, {told['frames_per_second']:.1f} frames/s; workers {took['work']:.1f} s, of which "
            f"{took['step']:.1f} in world.step, {took['start']:.1f} in world.initial, {took['paths']:.1f} on paths, "
            f"{took['waiting']:.1f} waiting for the store: {100 * told['outside_model']:.1f} % not in the model"
        )
    return "\n".join(lines)


def write_summary(config: Generate, lines: Mapping[int, Line], told: Mapping[str, Any]) -> None:
    """Writes summary.json and summary.png into the job's folder."""
    with appearing(config.out / "summary.json") as draft:
        draft.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    save_sheet(page(config, lines, told), config.out / "summary.png")


def page(config: Generate, lines: Mapping[int, Line], told: Mapping[str, Any]) -> Image.Image:
    """The page: text, histograms, contact sheet, from top to bottom."""
    values = {"frames of an episode": [line["frames"] for line in lines.values()]}
    values["return"] = [line["return"] for line in lines.values()]
    limits: dict[str, float | None] = dict.fromkeys(values)
    for name in SCORES:
        found = [line["scores"].get(name) for line in lines.values()]
        if any(one is not None for one in found):
            values[name] = [one for one in found if one is not None]
            limits[name] = getattr(config.filters, name)
    plots = [histogram(name, values[name], limits[name]) for name in values]
    parts = [_words(text(told)), _grid(plots, 3), contact_sheet(config.out / STORE)]
    width = max(part.width for part in parts) + 2 * GAP
    whole = Image.new("RGB", (width, sum(part.height + GAP for part in parts) + GAP), BACKGROUND)
    top = GAP
    for part in parts:
        whole.paste(part, (GAP, top))
        top += part.height + GAP
    return whole


def histogram(name: str, values: Sequence[float], limit: float | None = None) -> Image.Image:
    """Bars of how often values occur, a line at the limit."""
    picture = Image.new("RGB", PLOT, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    bottom, height = PLOT[1] - LINE - 2, PLOT[1] - 2 * LINE - 6
    draw.text((0, 0), name if limit is None else f"{name} (limit {limit:g})", fill=INK)
    if not values:
        return picture
    known = [*values, *([] if limit is None else [limit])]
    low, high = min(known), max(known)
    high = high if high > low else low + max(1.0, abs(low)) * 1e-3
    counts, _ = np.histogram(values, bins=BINS, range=(low, high))
    across = (PLOT[0] - 1) / BINS
    for index, count in enumerate(counts):
        top = bottom - round(height * count / counts.max())
        if count:
            draw.rectangle((index * across, top, (index + 1) * across - 1, bottom), fill=BAR)
    draw.line((0, bottom + 1, PLOT[0], bottom + 1), fill=INK)
    if limit is not None:
        x = (limit - low) / (high - low) * (PLOT[0] - 1)
        draw.line((x, LINE, x, bottom), fill=LIMIT, width=2)
    draw.text((0, bottom + 2), f"{low:.4g}", fill=INK)
    label = f"{high:.4g}"
    draw.text((PLOT[0] - draw.textlength(label), bottom + 2), label, fill=INK)
    most = f"at most {counts.max()}"
    draw.text((PLOT[0] - draw.textlength(most), 0), most, fill=INK)
    return picture


def contact_sheet(path: Path) -> Image.Image:
    """A row an episode, its first picture on the left and its last on the right, for episodes spread over a store; the
    first alone where latents are kept in place of frames."""
    store = EpisodeStore(path) if (path / METADATA).exists() else None
    if store is None or not len(store):
        return _words("no episode is stored")
    rows = [_strip(store, int(index)) for index in _spread(len(store), SHEET_ROWS)]
    return _grid(rows, 1)


def _strip(store: EpisodeStore, index: int) -> Image.Image:
    arrays, rows = store.arrays, store.rows("valid", index)
    count = int(np.count_nonzero(arrays["valid"][rows]))
    chosen = _spread(count + 1 if "frames" in arrays else 1, SHEET_COLUMNS)
    height = round(CELL * arrays["start_frames"].shape[1] / arrays["start_frames"].shape[2])
    strip = Image.new("RGB", (SHEET_COLUMNS * (CELL + 2), LINE + height), BACKGROUND)
    told = store.describe(index)
    number = int.from_bytes(bytes.fromhex(told["id"])[8:], "big")
    label = f"episode {number}: {count} frames, {told['reason']}, room {told['room']}, frames {chosen.tolist()}"
    ImageDraw.Draw(strip).text((0, 0), label, fill=INK)
    for column, frame in enumerate(chosen):
        shown = arrays["start_frames"][index] if frame == 0 else arrays["frames"][rows.start + int(frame) - 1]
        strip.paste(Image.fromarray(shown).resize((CELL, height)), (column * (CELL + 2), LINE))
    return strip


def _spread(count: int, most: int) -> np.ndarray:
    """Up to `most` of the numbers 0 .. count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _words(words: str) -> Image.Image:
    lines = words.split("\n")
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = max(int(draw.textlength(line)) for line in lines) + 1
    picture = Image.new("RGB", (width, LINE * len(lines)), BACKGROUND)
    ImageDraw.Draw(picture).multiline_text((0, 0), words, fill=INK, spacing=LINE - 11)
    return picture


def _grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = (max(one.size[axis] for one in pictures) + GAP for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (width * min(columns, len(pictures)), height * rows), BACKGROUND)
    for index, one in enumerate(pictures):
        grid.paste(one, (index % columns * width, index // columns * height))
    return grid
