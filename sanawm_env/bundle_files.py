"""Files of a bundle: what its description says of them, where they lie, whether they are whole, and what bundles beside
one another share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanawm_env.errors import BundleError
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.checkpoint import differences, is_matrix, read_weights, shapes_of
from sanawm_env.model.denoiser import Denoiser

DESCRIPTION = "bundle.json"
# The second has a quantised denoiser.
PLAIN, QUANTISED = 1, 2
DENOISER, DIFFERENCE = "denoiser", "difference"  # stems of files; the second is added to the first
AGAIN = "install or download the bundle again."


def read_description(folder: Path) -> tuple[dict[str, Any], str]:
    """What bundle.json in a folder says, and the fingerprint. BundleError: it is damaged, or of another version."""
    path = folder / DESCRIPTION
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        config, files, version = told["config"], told["files"], told["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path} is damaged ({type(error).__name__}: {error}); {AGAIN}") from error
    if version != (QUANTISED if "quantisation" in told else PLAIN):
        raise BundleError(
            f"{path} has format {version}, this version reads {PLAIN}, and {QUANTISED} of quantised weights; install a "
            "matching sanawm-env."
        )
    return told, _fingerprint(config, files)


def _fingerprint(config: Any, files: Any) -> str:
    """SHA-256 of what decides the frames: configuration and weights, not the provenance, nor where the files lie."""
    weights = {name: {key: x for key, x in told.items() if key != "of"} for name, told in files.items()}
    return hashlib.sha256(json.dumps([config, weights], sort_keys=True).encode()).hexdigest()


def placed(folder: Path, name: str, expected: Mapping[str, Any]) -> Path:
    """Where a file of a bundle lies: in its folder, or in that of the bundle beside it that lends the file."""
    lender = expected.get("of")
    if lender is None:
        return folder / name
    if not isinstance(lender, str) or Path(lender).name != lender or lender in (".", ".."):
        raise BundleError(
            f"{folder / DESCRIPTION} says {name} is of {lender!r}, allowed is the name of a folder beside it; {AGAIN}"
        )
    return folder.parent / lender / name


def verify(path: Path, expected: Mapping[str, Any]) -> None:
    """BundleError: a weight file is missing or not the one that the description tells."""
    if not path.is_file():
        raise BundleError(f"weight file {path} is missing; {AGAIN}")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise BundleError(f"weight file {path} has {size} bytes, expected {expected['bytes']}; {AGAIN}")
    found = _sha256(path)
    if found != expected["sha256"]:
        expected_start = expected["sha256"][:12]
        raise BundleError(f"weight file {path} has SHA-256 {found[:12]}..., expected {expected_start}...; {AGAIN}")


def told_of(path: Path) -> dict[str, Any]:
    """What a description says of a weight file."""
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_of(files: Mapping[str, Path], stem: str) -> dict[str, Tensor]:
    """The weights of a part, from where its files lie; matrices of differences are added to those that they are of."""
    found = read_weights(path for name, path in files.items() if name.startswith(f"{stem}-"))
    if stem == DENOISER:
        apart = read_weights(path for name, path in files.items() if name.startswith(f"{DIFFERENCE}-"))
        found |= {name: found[name] + x if is_matrix(x) and name in found else x for name, x in apart.items()}
    return found


class Beside:
    """A bundle beside the one in `target`, which is to read some of its files."""

    def __init__(self, folder: Path, target: Path) -> None:
        """BundleError: it is elsewhere."""
        if folder.resolve().parent != target.resolve().parent:
            raise BundleError(f"shared is {folder}, allowed is a bundle's folder beside {target}; move one of them.")
        self.folder = folder
        self.told, _ = read_description(folder)

    def autoencoder(self, mine: Autoencoder) -> dict[str, Any]:
        """What a description says of its autoencoder's files. BundleError: it is not the same one."""
        theirs, lent = self._part("autoencoder")
        weights = mine.state_dict()
        same = weights.keys() == theirs.keys() and all(close(weights[name], x) for name, x in theirs.items())
        if not same:
            raise BundleError(f"{self.folder} has another autoencoder than the model; save without shared.")
        return lent

    def denoiser(self, mine: Denoiser) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its denoiser's weights, and what a description says of their files. BundleError: they are quantised for the
        run, differences themselves, or of other shapes.
        """
        weights, lent = self._part(DENOISER)
        if self.told["format"] != PLAIN or any(name.startswith(f"{DIFFERENCE}-") for name in self.told["files"]):
            raise BundleError(f"{self.folder} holds no plain weights of its own; share a bundle that does.")
        wrong = differences(shapes_of(mine), {name: tuple(x.shape) for name, x in weights.items()})
        if wrong:
            raise BundleError(f"the denoiser of {self.folder} is of another kind ({wrong}); save without shared.")
        return weights, lent

    def _part(self, stem: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        files = {name: x for name, x in self.told["files"].items() if name.startswith(f"{stem}-")}
        weights = read_weights(placed(self.folder, name, x) for name, x in files.items())
        return weights, {name: {"of": self.folder.resolve().name, **x} for name, x in files.items()}


def close(one: Tensor, other: Tensor) -> bool:
    """Whether weights are the same but for having been written in 8 bits once more."""
    return one.shape == other.shape and torch.allclose(one.float().cpu(), other.float().cpu(), rtol=1e-4, atol=1e-6)
