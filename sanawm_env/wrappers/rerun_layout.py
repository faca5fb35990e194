"""Where things are in a recording and how the viewer lays them out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import rerun as rr
import rerun.blueprint as rrb

TIMELINE = "world_time"
PLOT_COLUMNS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a recording shows. tracks: names of worlds that move. videos: names of what is shown beside their frames.
    depth: whether the first track has it. plots: names. text: Markdown. start: [4, 4], a pose to look at at first."""

    tracks: tuple[str, ...] = ("world",)
    videos: tuple[str, ...] = ()
    depth: bool = False
    plots: tuple[str, ...] = ()
    text: str = ""
    start: np.ndarray | None = None


def camera(track: str) -> str:
    """Entity of a track's camera; its pictures are in `image` and `depth` below it."""
    return rr.new_entity_path(["world", track, "camera"])


def video(name: str) -> str:
    """Entity of a video that no camera carries."""
    return rr.new_entity_path(["video", name])


def plot(group: str, track: str) -> str:
    """Entity of a plot's values."""
    return rr.new_entity_path(["plots", group, track])


def layout(contents: Contents) -> rrb.Blueprint:
    """Space, events and notes on the left; pictures in a row on the right, the plots below them."""
    pictures: list[Any] = [
        rrb.Spatial2DView(origin=camera(track), contents="$origin/image", name=track) for track in contents.tracks
    ]
    pictures += [rrb.Spatial2DView(origin=video(name), name=name) for name in contents.videos]
    if contents.depth:
        first = camera(contents.tracks[0])
        pictures.append(rrb.Spatial2DView(origin=first, contents="$origin/depth", name="depth (m)"))
    legend = rrb.PlotLegend(corner=rrb.Corner2D.LeftTop)
    plots = [
        rrb.TimeSeriesView(origin=rr.new_entity_path(["plots", name]), name=name, plot_legend=legend)
        for name in contents.plots
    ]
    right: list[Any] = [rrb.Horizontal(*pictures)]
    right += [rrb.Grid(*plots, grid_columns=PLOT_COLUMNS)] if plots else []
    body = rrb.Horizontal(_left(contents), rrb.Vertical(*right, row_shares=[2, 3][: len(right)]), column_shares=[2, 3])
    panels = (rrb.BlueprintPanel(state="collapsed"), rrb.SelectionPanel(state="collapsed"))
    # It opens at its newest instant: while it grows that is what one watches, and at the end what went wrong is there.
    time = rrb.TimePanel(state="collapsed", timeline=TIMELINE, play_state="following")
    return rrb.Blueprint(body, *panels, time)


def _left(contents: Contents) -> Any:
    # Cameras of other tracks are often at the same place, where two pictures would flicker through each other.
    hidden = [f"- {camera(track)}/image" for track in contents.tracks[1:]]
    space = rrb.Spatial3DView(
        origin="world",
        contents=["$origin/**", *hidden],
        name="space (y is down)",
        eye_controls=None if contents.start is None else _eye(contents.start),
    )
    told: list[Any] = [rrb.TextLogView(origin="events", name="events")]
    told += [rrb.TextDocumentView(origin="notes", name="notes")] if contents.text else []
    return rrb.Vertical(space, rrb.Horizontal(*told), row_shares=[4, 1])


def _eye(start: np.ndarray) -> rrb.EyeControls3D:
    """From behind and above a start, so that the path and what the camera sees are in view."""
    position, ahead = start[:3, 3], start[:3, 2]
    return rrb.EyeControls3D(
        position=position - 1.8 * ahead - [0, 1.8, 0], look_target=position + 1.2 * ahead, eye_up=[0, -1, 0]
    )
