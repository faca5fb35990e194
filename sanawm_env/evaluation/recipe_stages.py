"""What the shipped bundles say of how they were made: stages with their minutes, and variants with their sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sanawm_env import bundle
from sanawm_env.refiner_bundle import DESCRIPTION as REFINER

LIMIT = 40 * 2**20  # bytes of all bundles together
VARIANTS = {
    "rooms": "what is opened by default: closest to the truth",
    "rooms-distilled": "a student that learned from its own rollouts: sharp where nobody has seen",
    "rooms-teacher": "many steps",
    "rooms-refiner": "refiner of its latents",
}
NOT_THERE = "not made yet"


def stage_rows(root: Path = bundle.EMBEDDED) -> list[list[str]]:
    """A table of all stages that the bundles in `root` came through, each once."""
    rows = [["stage", "of", "steps", "batch", "GPUs", "minutes", "GPU minutes", "device"]]
    seen: dict[str, tuple[str, Mapping[str, Any], list[str]]] = {}
    for name in _names(root):
        for kind, one in stages(_provenance(root / name)):
            key = json.dumps(one, sort_keys=True)
            seen.setdefault(key, (kind, one, []))[2].append(name)
    total = 0.0
    for kind, one, names in seen.values():
        minutes = float(one.get("minutes", 0.0)) + float(one.get("compiling_minutes", 0.0))
        spent = minutes * int(one.get("devices", 1))
        total += spent
        if "shares" in one:
            kind += ": " + ", ".join(f"{share:g} {stage}" for stage, share in one["shares"].items())
        row = [kind, ", ".join(names), *(str(one.get(key, "")) for key in ("steps", "batch", "devices", "minutes"))]
        rows.append([*row, f"{spent:.1f}", str(one.get("device", ""))])
    rows += [[NOT_THERE, name, *[""] * 6] for name in VARIANTS if name not in _names(root)]
    return [*rows, ["all", "", "", "", "", "", f"{total:.1f}", ""]]


def stages(provenance: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Stages of a provenance, in order: their names and what they say."""
    told = provenance.get("source", provenance)  # of a quantised bundle, that of the plain one
    if "steps" in told:  # of a refiner, which has one stage
        return [("refiner", told)]
    found = [("autoencoder", told["autoencoder"])] if "autoencoder" in told else []
    return found + [(str(one.get("stage", "denoiser")), one) for one in told.get("denoiser", [])]


def variant_rows(root: Path = bundle.EMBEDDED) -> list[list[str]]:
    """A table of the bundles in `root` with their sizes."""
    rows = [["bundle", "what", "steps", "weights", "MiB"]]
    total = 0
    for name in dict.fromkeys((*VARIANTS, *_names(root))):
        if name not in _names(root):
            rows.append([name, VARIANTS.get(name, ""), NOT_THERE, "", ""])
            continue
        size = folder_bytes(root / name)
        total += size
        told = _described(root / name)
        steps = len(told.get("timesteps", told.get("config", {}).get("sigmas", [0])[1:]))
        kind = told.get("quantisation", {}).get("precision", f"{told.get('bits', 8)} bits")
        if "difference_bits" in told:
            kind = f"{told['difference_bits']} bits of difference"
        rows.append([name, VARIANTS.get(name, ""), str(steps), kind, f"{size / 2**20:.2f}"])
    return [*rows, [f"all, allowed {LIMIT / 2**20:.0f}", "", "", "", f"{total / 2**20:.2f}"]]


def folder_bytes(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _names(root: Path) -> list[str]:
    found = (path for path in root.iterdir() if (path / bundle.DESCRIPTION).exists() or (path / REFINER).exists())
    return sorted(path.name for path in found)


def _described(folder: Path) -> dict[str, Any]:
    path = folder / bundle.DESCRIPTION if (folder / bundle.DESCRIPTION).exists() else folder / REFINER
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return told


def _provenance(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = _described(folder)["provenance"]
    return told
