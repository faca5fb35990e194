"""The evaluation as a command: its settings as one dataclass, its report from one call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanawm_env.bundle_choice import BundleChoice
from sanawm_env.evaluation.rooms import RETURNS, evaluate
from sanawm_env.placement import Precision


@dataclass(frozen=True, kw_only=True)
class EvalRooms(BundleChoice):
    """bundle, variant, refiner: see `BundleChoice`. device: CUDA if there is one, by default. The others are those of
    `evaluate`."""

    device: str | None = None
    precision: Precision = "auto"
    scenes: int = 32
    seed: int = 0
    frames: int = 64
    returns: tuple[int, ...] = RETURNS
    sheet: Path | None = None


def run(config: EvalRooms) -> dict[str, Any]:
    """Loads the bundle and evaluates it; the report of `evaluate`."""
    return evaluate(
        config.load(device=config.device, precision=config.precision),
        scenes=config.scenes,
        seed=config.seed,
        frames=config.frames,
        returns=config.returns,
        sheet=config.sheet,
    )
