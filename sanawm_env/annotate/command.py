"""`sanawm annotate`: a video as episodes with intrinsics and camera poses, one a shot that passes the filters."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sanawm_env.annotate import scale
from sanawm_env.annotate.depth import load_depth
from sanawm_env.annotate.episode import store_info, taken, trajectory
from sanawm_env.annotate.features import Stage, load_pycolmap
from sanawm_env.annotate.footage import Footage
from sanawm_env.annotate.settings import Annotate
from sanawm_env.annotate.shots import Rejected, Shot, find_shots
from sanawm_env.annotate.structure import Structure, reconstruct
from sanawm_env.datasets.imports.load import check
from sanawm_env.datasets.layout import METADATA
from sanawm_env.datasets.trajectory import add
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import StorageError

KNOWN = "in the store already"
# Settings that say where, not what: an episode of a file that was moved is the same one.
PLACES = ("video", "out", "device")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a shot. frames: its first and the one after its last. episode: its index, None where none was
    written. reason: why not. scale: where the scale comes from. figures: quality, by name."""

    frames: tuple[int, int]
    episode: int | None = None
    reason: str = ""
    scale: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def rejected(self) -> bool:
        """Whether the shot did not pass."""
        return self.episode is None and self.reason != KNOWN

    def text(self) -> str:
        """The same in a line."""
        where, told = f"frames {self.frames[0]} to {self.frames[1] - 1}", self.figures
        if self.episode is None:
            return f"{where}: {'rejected: ' if self.rejected else ''}{self.reason}"
        return (
            f"{where}: episode {self.episode}, {told['registered_share']:.0%} of the frames have a pose, reprojection "
            f"error {told['reprojection_error']:.2f} px, {told['inliers']:.0f} points a frame, scale: {self.scale}"
        )


def run(config: Annotate, *, depth: scale.DepthEstimator | None = None, progress: Stage | None = None) -> list[Outcome]:
    """Appends an episode to the store for each shot that passes; what became of every shot, in order.

    depth: gives metres, in place of a model that `config.depth` names. A shot that is in the store with the same
    settings is left out, so that a command that was cut off goes on when it is called again. StorageError: the file is
    no video, or the store does not take its frames. MissingExtraError: pycolmap is not installed.
    """
    load_pycolmap()
    footage = Footage.open(config.video, config.fps, config.height)
    if config.depth is not None and depth is None:
        depth = load_depth(config.depth, config.device)
    work = _Work(config, footage, depth, progress or (lambda what, done, total: None))
    shots = work.shots()
    fresh, outcomes = not (config.out / METADATA).exists(), list[Outcome]()
    try:
        with EpisodeWriter(config.out, store_info(footage)) as writer:
            _check_size(writer, footage)
            for shot in shots:
                outcomes.append(work.annotate(shot, writer))
    finally:
        if fresh and all(one.episode is None for one in outcomes) and config.out.is_dir():
            shutil.rmtree(config.out)  # what was made for nothing
    return outcomes


class _Work:
    """A footage and what is done with it."""

    def __init__(self, config: Annotate, footage: Footage, depth: scale.DepthEstimator | None, stage: Stage) -> None:
        self.config, self.footage, self.depth, self.stage = config, footage, depth, stage

    def shots(self) -> list[Shot]:
        measured = []
        for told in self.footage.measure():
            measured.append(told)
            self.stage("reading", len(measured), len(measured))
        if not measured:
            raise StorageError(f"{self.footage.path} has no frame; give another file")
        return find_shots(measured, self.config.cut, self.config.longest)

    def annotate(self, shot: Shot, writer: EpisodeWriter) -> Outcome:
        frames, unique = (shot.first, shot.first + shot.count), self._identity(shot)
        if unique in writer:
            return Outcome(frames=frames, reason=KNOWN)
        try:
            structure = self._structure(shot)
            known = self._scale(shot, structure)
            figures = {**shot.figures, **structure.figures, **known.figures}
            self.config.filters.check(figures)
        except Rejected as reason:
            return Outcome(frames=frames, reason=str(reason))
        made = trajectory(self.footage, shot, structure, known, self.config.licence, self._facts())
        check(made, len(writer))
        index = add(writer, made, unique)
        return Outcome(frames=frames, episode=index, scale=known.source, figures=figures)

    def _structure(self, shot: Shot) -> Structure:
        config, filters = self.config, self.config.filters
        filters.check(shot.figures)
        if shot.count < config.shortest:
            raise Rejected(f"{shot.count} frames, kept is {config.shortest} and more")

        def check_flow(flow: np.ndarray) -> None:
            if np.isnan(flow).all():
                raise Rejected("no point is found again in the next frame: too little texture")
            filters.check({"flow": _half_second(flow, self.footage.fps)})

        def frames() -> Any:
            return self.footage.frames(shot.first, shot.count)

        structure = reconstruct(frames, shot.count, config.mapping, config.intrinsics, check_flow, self.stage)
        if len(structure) < config.shortest:
            raise Rejected(f"{len(structure)} successive frames have a pose, kept is {config.shortest} and more")
        figures = structure.figures | {"flow": _half_second(structure.flow, self.footage.fps)}
        return dataclasses.replace(structure, figures=figures | _lens(structure, self.footage.size))

    def _scale(self, shot: Shot, structure: Structure) -> scale.Scale:
        config, first = self.config, shot.first + structure.first
        if config.speed is not None:
            return scale.from_speed(structure, config.speed, self.footage.fps)
        if config.baseline is not None:
            return scale.from_baseline(structure, config.baseline, first)
        if config.known_length is not None:
            return scale.from_length(structure, config.known_length, first)
        if self.depth is not None:
            return scale.from_depth(structure, taken(self.footage, shot, structure), self.depth)
        return scale.uncalibrated(structure, "no scale given")

    @functools.cached_property
    def _sha256(self) -> str:
        return self.footage.sha256()

    def _facts(self) -> dict[str, Any]:
        """What the provenance keeps beside the figures."""
        settings = {key: value for key, value in _plain(self.config).items() if key not in PLACES}
        told = {"video": {"name": self.footage.path.name, "sha256": self._sha256}, "settings": settings}
        # Without one an episode is the one that it was before there were prompts.
        prompt = settings.pop("prompt")
        return told if prompt is None else told | {"prompt": prompt}

    def _identity(self, shot: Shot) -> bytes:
        facts = self._facts()
        content = [facts["video"]["sha256"], facts["settings"], shot.first, shot.count]
        content += [facts["prompt"]] if "prompt" in facts else []
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()


def _plain(config: Annotate) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dataclasses.asdict(config), default=str)))


def _half_second(flow: np.ndarray, fps: float) -> float:
    """Median displacement in half a second, pixels. flow: from each frame to the next."""
    return float(np.nanmedian(flow) * fps / 2)


def _lens(structure: Structure, size: tuple[int, int]) -> dict[str, float]:
    fx, fy, _, _ = structure.intrinsics.astype(float)
    views = {
        f"view_{axis}": float(np.degrees(2 * np.arctan(length / 2 / focal)))
        for axis, length, focal in (("x", size[1], fx), ("y", size[0], fy))
    }
    return {**views, "skew": float(abs(fx - fy) / ((fx + fy) / 2))}


def _check_size(writer: EpisodeWriter, footage: Footage) -> None:
    there = writer.sizes()
    size = (there.get("height", footage.size[0]), there.get("width", footage.size[1]))
    if size != footage.size:
        raise StorageError(
            f"{writer.path} has frames of {size[0]}x{size[1]}, the footage {footage.size[0]}x{footage.size[1]}; "
            "give height, or another store"
        )
