"""Everything an environment needs to continue from an instant, as one object in memory or one folder on disk."""

from __future__ import annotations

import io
import json
import os
import reprlib
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sanawm_env.errors import StateError, StorageError
from sanawm_env.state import WorldState

if TYPE_CHECKING:
    from sanawm_env.source import WorldSource

FORMAT = "sanawm-snapshot-2"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One instant of an environment; independent of whatever the environment does later.

    world: the worlds, horizon and seeds included. rows: the episodes' numbers, one row a world (motion, task, ends).
    frames: uint8 [B, T, H, W, 3], those of the latest chunk. task: its name and fields. rng: state of the environment's
    random generator. actions: the action map in words, since motion only fits the map that made it.
    """

    world: WorldState
    rows: dict[str, np.ndarray]
    frames: np.ndarray | None
    task: dict[str, Any]
    rng: dict[str, Any]
    actions: str

    def save(self, folder: str | Path) -> None:
        """Writes the snapshot to a new folder, complete or not at all. Raises StorageError."""
        target = Path(folder)
        if target.exists():
            raise StorageError(f"{target} exists already; choose another folder, or remove it first.")
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        arrays = self.rows if self.frames is None else {**self.rows, "frames": self.frames}
        facts = {"format": FORMAT, "task": self.task, "rng": self.rng, "actions": self.actions}
        try:
            partial.mkdir(parents=True)
            self.world.save(partial / "world.safetensors")
            save_file({name: np.ascontiguousarray(rows) for name, rows in arrays.items()}, partial / "rows.safetensors")
            (partial / "snapshot.json").write_text(json.dumps(facts), encoding="utf-8")
            partial.replace(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StorageError(f"snapshot cannot be written to {target}: {error}; choose a writable folder.") from error

    def to_bytes(self) -> bytes:
        """The folder that `save` writes as one archive, for an episode store. Raises StorageError."""
        packed = io.BytesIO()
        with tempfile.TemporaryDirectory() as place, tarfile.open(fileobj=packed, mode="w") as archive:
            self.save(Path(place) / "snapshot")
            archive.add(Path(place) / "snapshot", arcname=".")
        return packed.getvalue()

    @staticmethod
    def from_bytes(content: bytes, model: WorldSource) -> Snapshot:
        """The snapshot of `to_bytes`. Raises like `load`."""
        with tempfile.TemporaryDirectory() as place:
            try:
                with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                    archive.extractall(place, filter="data")
            except tarfile.TarError as error:
                raise StorageError(f"these {len(content)} bytes are no snapshot: {error}; save it again.") from error
            return Snapshot.load(place, model)

    @staticmethod
    def load(folder: str | Path, model: WorldSource) -> Snapshot:
        """The snapshot in `folder`. Raises StorageError when unreadable, StateError when it is of another bundle."""
        source = Path(folder)
        try:
            facts = json.loads((source / "snapshot.json").read_text(encoding="utf-8"))
            rows = load_file(source / "rows.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise StorageError(f"{source} is not a readable snapshot: {error}; save it again.") from error
        if facts.get("format") != FORMAT:
            raise StorageError(f"{source} has format {facts.get('format')!r}, allowed is {FORMAT!r}; save it again.")
        return Snapshot(
            world=WorldState.load(source / "world.safetensors", model),
            frames=rows.pop("frames", None),
            rows=rows,
            task=facts["task"],
            rng=facts["rng"],
            actions=facts["actions"],
        )


def check_fits(taken: Any, *, fingerprint: str, worlds: int, actions: str) -> None:
    """StateError unless `taken` is a snapshot of this bundle, this many worlds and this action map."""
    if not isinstance(taken, Snapshot):
        raise StateError(
            f"the state is {reprlib.repr(taken)} ({type(taken).__name__}), allowed is a Snapshot; pass one from "
            "get_state() or Snapshot.load()."
        )
    if taken.world.fingerprint != fingerprint:
        raise StateError(
            f"the snapshot is of bundle {taken.world.fingerprint[:12]!r}, this environment runs {fingerprint[:12]!r}; "
            "make the environment with the bundle that took it."
        )
    if taken.world.batch_size != worlds:
        raise StateError(
            f"the snapshot holds {taken.world.batch_size} worlds, this environment {worlds}; make one of that size."
        )
    if taken.actions != actions:
        raise StateError(
            f"the snapshot was taken with action map {taken.actions}, this environment has {actions}; "
            "build it with the same map."
        )
