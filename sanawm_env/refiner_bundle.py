"""A refiner beside a bundle: its configuration and weights in a folder of its own, for latents of one autoencoder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from sanawm_env.config import from_mapping
from sanawm_env.errors import BundleError
from sanawm_env.model.checkpoint import SHARD_BYTES, differences, fill, read_weights, shapes_of, write_weights
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig

DESCRIPTION = "refiner.json"
AGAIN = "train the refiner again, or install the package again."


def save_refiner(folder: Path, refiner: Refiner, latents_of: dict[str, str], provenance: dict[str, Any]) -> None:
    """Writes a refiner, whole or not at all, over one that is there.

    latents_of: SHA-256 of the autoencoder's files by name, of whose latents it was trained.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = write_weights(partial, "refiner", refiner.state_dict(), bits=8, shard_bytes=SHARD_BYTES)
    told = {
        "config": dataclasses.asdict(refiner.config),
        "transformer": _plain(refiner.transformer.config),
        "latents_of": latents_of,
        "files": names,
        "provenance": provenance,
    }
    (partial / DESCRIPTION).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def load_small_refiner(folder: Path, latents_of: dict[str, str], device: torch.device, dtype: torch.dtype) -> Refiner:
    """The refiner in a folder, for latents of the autoencoder with these files. BundleError: there is none, it is of
    other latents, or its weights do not fit.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise BundleError(
            f"{path} does not exist, so this bundle has no refiner; train one (sanawm train rooms-refiner)."
        )
    told = json.loads(path.read_text(encoding="utf-8"))
    if told["latents_of"] != latents_of:
        raise BundleError(f"the refiner in {folder} is of another autoencoder's latents than the bundle; {AGAIN}")
    with torch.device("meta"):
        refiner = Refiner(from_mapping(RefinerConfig, told["config"]), told["transformer"])
    weights = read_weights(folder / name for name in told["files"])
    wrong = differences(shapes_of(refiner), {name: tuple(x.shape) for name, x in weights.items()})
    if wrong:
        raise BundleError(f"the refiner in {folder} does not fit its config ({wrong}); {AGAIN}")
    fill(refiner, weights.__getitem__, device, dtype)
    return refiner


def _plain(config: Any) -> dict[str, Any]:
    """Diffusers' config without what it keeps for itself, as JSON."""
    return {
        name: list(x) if isinstance(x, tuple) else x for name, x in dict(config).items() if not name.startswith("_")
    }
