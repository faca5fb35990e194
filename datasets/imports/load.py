"""`sanawm import`: episodes of another format, with camera poses and actions, into a store."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sanawm_env.datasets.exports.export import Progress, check_extra, check_kind, read_sidecar
from sanawm_env.datasets.layout import METADATA
from sanawm_env.datasets.provenance import Provenance, StoreInfo
from sanawm_env.datasets.trajectory import Trajectory, add, identity
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import PoseError, StorageError

FORMATS = ("lerobot", "diffusion_policy", "mp4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A dataset of another format: what its episodes share, how many there are, and they themselves, read one by one.

    info: with F = 1 where the dataset was not exported from a store.
    """

    info: StoreInfo
    count: int
    trajectories: Iterator[Trajectory]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """How many episodes were added, and how many the store had already."""

    added: int
    known: int

    def text(self) -> str:
        """The same in words."""
        return f"{self.added} episodes added" + (f"; {self.known} were there already" if self.known else "")


def load(
    source: Path | str,
    kind: str,
    store: Path | str,
    *,
    fps: float | None = None,
    licences: Sequence[str] = (),
    synthetic: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Appends the episodes of a dataset to a store, which is made if it is not there. Each is committed by itself, and
    one that is in the store already is left out: an import that was cut off goes on when it is called again.

    kind: of `FORMATS`; examples/formats.md says what a dataset must have: poses of the camera, intrinsics, actions.
    fps: where the dataset does not say it. licences, synthetic: of the pictures, where it has no `sanawm.json`. An
    episode of another origin is one action shorter than it has rows: where the last action led is not in it.

    StorageError: not a dataset of this format, without camera poses, or damaged; episodes before the fault are kept.
    """
    source, store = Path(source), Path(store)
    check_kind(kind, FORMATS)
    check_extra(kind)
    if not source.is_dir():
        raise StorageError(f"{source} is not a folder; give the folder of the dataset")
    sidecar = read_sidecar(source)
    stranger = Provenance(licences=tuple(licences), synthetic=synthetic, extra={"imported_from": kind}).mapping()
    found = importlib.import_module(f"sanawm_env.datasets.imports.{kind}").read(source, sidecar, fps)
    fresh, added, known = not (store / METADATA).exists(), 0, 0
    try:
        with EpisodeWriter(store, found.info) as writer:
            for index, trajectory in enumerate(found.trajectories):
                check(trajectory, index)
                unique = identity(trajectory, kind, index)
                if unique in writer:
                    known += 1
                else:
                    told = trajectory if trajectory.source else dataclasses.replace(trajectory, source=stranger)
                    add(writer, told, unique)
                    added += 1
                if progress is not None:
                    progress(index + 1, found.count)
    finally:
        if fresh and not added and store.is_dir():
            shutil.rmtree(store)  # what was made for nothing
    return Imported(added=added, known=known)


def check(trajectory: Trajectory, index: int) -> None:
    """StorageError unless poses are rigid and intrinsics usable."""
    import torch

    from sanawm_env.camera import check_intrinsics, check_rigid

    try:
        check_rigid(torch.from_numpy(trajectory.poses))
        check_intrinsics(torch.from_numpy(trajectory.intrinsics))
    except PoseError as error:
        raise StorageError(f"episode {index}: {error}") from error


def facts(sidecar: Mapping[str, Any] | None, index: int) -> dict[str, Any]:
    """What `sanawm.json` tells of an episode, as fields of a `Trajectory`."""
    if sidecar is None:
        return {}
    entry = sidecar["episodes"][index]
    source = dict(sidecar["sources"][entry["source"]])
    source["extra"] = {**source.get("extra", {}), "imported_from": sidecar["format"]}
    return {"told": entry, "source": source}


def info_of(sidecar: Mapping[str, Any] | None, fps: float | None, columns: Sequence[str]) -> StoreInfo:
    """What a store of the dataset's episodes says of all of them. fps: of the dataset, or as the caller gave it."""
    if sidecar is not None:
        return StoreInfo.of(sidecar["store"])
    if fps is None:
        raise StorageError("the dataset does not say how many frames a second it has; pass fps (--fps)")
    return StoreInfo(
        fps=float(fps), frames_per_step=1, action_columns=tuple(columns), action_units=("",) * len(columns)
    )


def numbered(count: int) -> list[str]:
    """Names of action columns that have none."""
    return [f"action_{k}" for k in range(count)]
