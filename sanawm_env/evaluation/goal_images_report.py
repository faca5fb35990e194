"""What a page tells of goal-image navigation, from the file that `sanawm eval goal-images` wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

from sanawm_env.datasets.atomic import appearing
from sanawm_env.evaluation.goal_images import Results

SECTION = """
## To where a picture was taken

A planner (iCEM, {candidates} candidates, {iterations} iterations, {horizon} steps ahead) is shown a picture taken
{least:.1f} to {most:.1f} m ahead of it, turned by up to 20 degrees, and nothing else. It plans in the {plan_in} by
comparing {compared} with that picture, and acts in the truth. After {steps} steps it has arrived, within {near:g} m and
{degrees:g} degrees and without a collision, in {success} of {scenes} held-out rooms: {rate:.0f} % [{low:.0f},
{high:.0f}]. Missed: {missed}. At the end it is {median_metres:.2f} m and {median_degrees:.1f} degrees away (medians).
Made by `sanawm eval goal-images`: world {world}, {when}, commit {commit}, {device}.
"""
PICTURES = """
![Missed cases]({name})

The first of those missed, as they are in the truth: start, goal picture, end.
"""


def section(file: Path, media: Path) -> str:
    """In Markdown; pictures of missed cases go to the folder `media`. StorageError: the file is another one."""
    results = Results.read(file)
    setup, figures = results.setup, results.figures()
    starts = [line["metres_at_start"] for line in results.lines]
    missed = ", ".join(f"{count} {why}" for why, count in figures["missed"].items() if count) or "none"
    facts = setup["planner"] | {name: x for name, x in setup.items() if name != "commit"} | figures
    facts |= {"rate": 100 * figures["rate"], "missed": missed, "world": setup["world"][:12]}
    told = SECTION.format(
        **facts,
        least=min(starts),
        most=max(starts),
        compared="pictures" if setup["cost"] == "image" else "latents",
        low=100 * figures["interval"][0],
        high=100 * figures["interval"][1],
        when=setup["time"][:10],
        commit=str(setup["commit"])[:12],
        device=setup["gpu"] or setup["cpu"],
    )
    sheet = file.with_suffix(".png")
    if not figures["missed_seeds"] or not sheet.exists():
        return told
    with appearing(media / "goal_images.png") as draft:
        shutil.copyfile(sheet, draft)
    return told + PICTURES.format(name=f"{media.name}/goal_images.png")
