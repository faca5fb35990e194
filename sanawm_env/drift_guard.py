"""How far what a world shows can be believed, 0 .. 1 a chunk, from the signals of drift that need no truth.

A guard is a logistic fit, calibrated on Rooms, which knows the truth (`sanawm eval drift-guard`): the confidence is the
probability that what the first picture has shown still looks as it should. It belongs to one bundle and lies in its
folder. Environments may end episodes below a confidence, dataset filters reject them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sanawm_env.config import from_mapping
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from sanawm_env.generation.filters import Measured

FILE = "drift_guard.json"
SIGNALS = ("shift", "spread", "sharpness", "contrast", "texture", "age")
REMEDY = "calibrate one with `sanawm eval drift-guard bundle=...`"


@dataclass(frozen=True, kw_only=True)
class DriftGuard:
    """world: fingerprint of the bundle that it is calibrated for. signals, mean, scale, weights: of each signal in
    turn. bias: of the logistic function. told: how it was calibrated, and what it is worth on scenes it has not seen.
    """

    world: str
    signals: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    told: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(self.mean), len(self.scale), len(self.weights)}
        if self.signals != SIGNALS or lengths != {len(SIGNALS)} or min(self.scale) <= 0:
            raise ConfigError(f"the guard reads {self.signals}, this version {SIGNALS} with a scale above 0; {REMEDY}.")

    def confidence(self, told: np.ndarray) -> np.ndarray:
        """Of `signals` [B, 6]: [B], 0 .. 1; NaN where a signal is."""
        standard = (told - np.array(self.mean)) / np.array(self.scale)
        # Signals far beyond those of the calibration say no more than the farthest of them.
        logit = np.clip(standard, -6, 6) @ np.array(self.weights) + self.bias
        likely: np.ndarray = 1 / (1 + np.exp(-np.clip(logit, -50, 50)))
        return likely

    def check_fits(self, fingerprint: str) -> DriftGuard:
        """The guard itself. ConfigError for a bundle that it was not calibrated for."""
        if self.world != fingerprint:
            raise ConfigError(
                f"the drift guard is calibrated for bundle {self.world[:12]!r}, the world is {fingerprint[:12]!r}; "
                f"{REMEDY}."
            )
        return self

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        with appearing(path) as draft:
            draft.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def open_guard(guard: DriftGuard | str | Path) -> DriftGuard:
    """The guard itself, or that of a file, a bundle's folder, or an embedded bundle's name. BundleError without one."""
    if isinstance(guard, DriftGuard):
        return guard
    from sanawm_env.bundle import folder_of

    path = Path(guard) if Path(guard).is_file() else folder_of(guard) / FILE
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"drift guard {path} cannot be read ({type(error).__name__}: {error}); {REMEDY}.") from error
    return from_mapping(DriftGuard, told)


def rows_of(measured: Measured) -> np.ndarray:
    """What is kept of a chunk of B worlds to compare later ones with: [B, 2 + 2 C] contrast, sharpness, then mean and
    standard deviation of every channel."""
    shown = np.stack([measured.contrast.mean(axis=1), measured.sharpness.mean(axis=1)], axis=1)
    return np.concatenate([shown, measured.latents.reshape(len(shown), -1)], axis=1)


def signals(first: np.ndarray, now: np.ndarray, chunk: np.ndarray | Sequence[int]) -> np.ndarray:
    """Signals [B, 6] of chunks `now` [B, K] of episodes that began with chunks `first` [B, K], `rows_of` both.

    chunk: [B] number of the chunk, 0 the first. shift and spread: of latents, as `filters.drift` has them; sharpness,
    contrast: logarithm of now over first; texture: logarithm of the first sharpness; age: logarithm of chunks.
    """
    seen, shown = (np.log(np.maximum(rows[:, :2], 1e-6)) for rows in (first, now))
    before, after = (rows[:, 2:].reshape(len(rows), -1, 2) for rows in (first, now))
    spread, later = np.maximum(before[..., 1], 1e-6), np.maximum(after[..., 1], 1e-6)
    columns = [
        (np.abs(after[..., 0] - before[..., 0]) / spread).mean(axis=1),
        np.abs(np.log(later / spread)).mean(axis=1),
        shown[:, 1] - seen[:, 1],
        shown[:, 0] - seen[:, 0],
        seen[:, 1],
        np.log1p(np.asarray(chunk, float)),
    ]
    return np.stack(columns, axis=1)


def fit(told: np.ndarray, good: np.ndarray, *, world: str, ridge: float = 1.0) -> DriftGuard:
    """The guard that `signals` [N, 6] of chunks and whether each was good, bool [N], calibrate: logistic regression by
    Newton's method on standardised signals, weights held back by a ridge. ConfigError where all are alike."""
    if good.all() or not good.any():
        raise ConfigError(
            f"{int(good.sum())} of {len(good)} chunks are good, so that nothing tells them apart; choose another "
            "bad_psnr, or more and longer scenes."
        )
    mean, scale = told.mean(axis=0), np.maximum(told.std(axis=0), 1e-6)
    design = np.concatenate([(told - mean) / scale, np.ones((len(told), 1))], axis=1)
    held = np.diag([ridge] * len(SIGNALS) + [0.0])
    weights = np.zeros(len(SIGNALS) + 1)
    for _ in range(50):
        likely = 1 / (1 + np.exp(-np.clip(design @ weights, -50, 50)))
        slope = design.T @ (good - likely) - held @ weights
        step = np.linalg.solve(
            (design.T * (likely * (1 - likely))) @ design + held + 1e-9 * np.eye(len(weights)), slope
        )
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    numbers = (tuple(round(float(x), 9) for x in column) for column in (mean, scale, weights[:-1]))
    means, scales, factors = numbers
    return DriftGuard(
        world=world, signals=SIGNALS, mean=means, scale=scales, weights=factors, bias=round(float(weights[-1]), 9)
    )
