"""`sanawm export`: the episodes of a store as a dataset of another format, whole or not at all."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sanawm_env.datasets.atomic import appearing
from sanawm_env.datasets.provenance import StoreInfo
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.trajectory import Trajectory, of_store
from sanawm_env.errors import ConfigError, MissingExtraError, StorageError, nearest

FORMATS = ("lerobot", "diffusion_policy", "minari", "mp4")
SIDECAR, VERSION = "sanawm.json", 1
NEEDS = {"lerobot": ("pyarrow",), "diffusion_policy": (), "minari": ("h5py", "minari"), "mp4": ()}
Progress = Callable[[int, int], None]  # episodes done, all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written. skipped: episodes without a valid frame, which no format can hold."""

    episodes: int
    frames: int
    skipped: int

    def text(self) -> str:
        """The same in words."""
        left_out = f"; {self.skipped} without a valid frame left out" if self.skipped else ""
        return f"{self.episodes} episodes, {self.frames} frames{left_out}"


class Source:
    """The episodes of a store, one after the other, and what is written beside them: `sanawm.json`."""

    def __init__(self, store: EpisodeStore, kind: str, progress: Progress | None) -> None:
        self.store, self.info, self._kind = store, store.info, kind
        self.entries: list[dict[str, Any]] = []
        self.frames = self.skipped = 0
        self._progress = progress or (lambda done, total: None)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of frames."""
        sizes = self.store.sizes
        return sizes["height"], sizes["width"]

    @property
    def licences(self) -> list[str]:
        """Of everything in the store, without repetition."""
        return sorted({licence for source in self.store.sources for licence in source.get("licences", ())})

    @property
    def synthetic(self) -> bool:
        """Whether every picture was generated."""
        return all(source.get("synthetic", False) for source in self.store.sources)

    def __iter__(self) -> Iterator[Trajectory]:
        for index in range(len(self.store)):
            trajectory = of_store(self.store, index)
            if trajectory is None:
                self.skipped += 1
            else:
                yield trajectory
                self._keep(trajectory, index)
            self._progress(index + 1, len(self.store))

    def _keep(self, trajectory: Trajectory, index: int) -> None:
        """What of the episode no format has a place for: where it comes from, and the pose of its last frame."""
        self.entries.append(
            {
                **trajectory.told,
                "source": int(self.store.meta["episode_sources"][index]),
                "steps": len(trajectory),
                "last_pose": trajectory.poses[-1].tolist(),
                "last_intrinsics": trajectory.intrinsics[-1].tolist(),
            }
        )
        self.frames += len(trajectory) + 1

    def sidecar(self) -> str:
        """Text of `sanawm.json`, once every episode was written."""
        told = {"schema": "sanawm-export", "version": VERSION, "format": self._kind}
        told |= {"licences": self.licences, "synthetic": self.synthetic, "store": dataclasses.asdict(self.info)}
        return json.dumps({**told, "sources": self.store.sources, "episodes": self.entries}, allow_nan=False)


def export(
    store: EpisodeStore | Path | str, kind: str, out: Path | str, *, progress: Progress | None = None
) -> Exported:
    """Writes the episodes of a store as a new dataset in the folder `out`, up to their ends; nothing else is changed.

    kind: of `FORMATS`. The folder appears when it is complete; an export that was cut off leaves nothing but a hidden
    folder beside it. Beside the format's own files lies `sanawm.json`: provenance, licences, what the format has no
    place for. Latents, saved states and the truth stay in the store.

    StorageError: something is at `out`, the store is empty or damaged, or the disk is full. MissingExtraError.
    """
    out = Path(out)
    check_kind(kind, FORMATS)
    check_extra(kind)
    opened = store if isinstance(store, EpisodeStore) else EpisodeStore(store)
    if out.exists() or out.is_symlink():
        raise StorageError(f"{out} exists already; remove it, or choose another folder")
    if not len(opened):
        raise StorageError(f"{opened.path} has no episode to export; generate or record some first")
    source = Source(opened, kind, progress)
    with appearing(out) as folder:
        folder.mkdir()
        importlib.import_module(f"sanawm_env.datasets.exports.{kind}").write(source, folder, out.name)
        if not source.entries:
            raise StorageError(f"{opened.path} has no valid frame to export; `sanawm verify` says what is in it")
        (folder / SIDECAR).write_text(source.sidecar())
    return Exported(episodes=len(source.entries), frames=source.frames, skipped=source.skipped)


def check_kind(kind: str, known: tuple[str, ...]) -> None:
    """ConfigError unless the format is one of those known."""
    if kind not in known:
        raise ConfigError(f"format is {kind!r}; {nearest(kind, known)}")


def check_extra(kind: str) -> None:
    """MissingExtraError unless the packages that the format needs are installed."""
    for package in NEEDS[kind]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(
                f"the format {kind!r} needs {package}, which is not installed; pip install 'sanawm-env[export]'"
            ) from error


def read_sidecar(folder: Path) -> dict[str, Any] | None:
    """What an export says of itself, None where a dataset has no `sanawm.json`. StorageError where it is damaged."""
    path = folder / SIDECAR
    if not path.exists():
        return None
    try:
        told = dict(json.loads(path.read_text()))
        if told["schema"] != "sanawm-export" or told["version"] > VERSION:
            raise StorageError(f"{path} is of version {told['version']}, this package reads {VERSION}; upgrade it")
        StoreInfo.of(told["store"])
        return told
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{path} is damaged ({error}); restore it, or remove it to read the dataset alone"
        ) from error
