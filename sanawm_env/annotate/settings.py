"""What `sanawm annotate` is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from sanawm_env.annotate.scale import Baseline, KnownLength
from sanawm_env.annotate.shots import Filters
from sanawm_env.annotate.structure import Mapping
from sanawm_env.errors import ConfigError

SCALES = ("speed", "baseline", "known_length", "depth")


@dataclass(frozen=True, kw_only=True)
class Annotate:
    """What to annotate, and how.

    video: file. out: store, made if absent. licence: of the footage. fps, height: that it is brought to, its own if
    None. intrinsics: (fx, fy, cx, cy) in pixels of frames of that height, of footage without distortion; estimated,
    with one radial distortion that is then taken out of the pictures, if None. One of speed (mean, m/s), baseline,
    known_length and depth (a model as of `load_depth`) gives the scale; without one, units are uncalibrated. shortest,
    longest: frames of an episode; longer shots are cut in pieces. prompt: what the footage shows in words, without one
    about the camera, for models that read text. cut: FFmpeg's scene score of a cut, 0 to 100. device:
    of the depth estimator.
    """

    video: Path
    out: Path
    licence: str
    fps: float | None = None
    height: int | None = None
    intrinsics: tuple[float, float, float, float] | None = None
    speed: float | None = None
    baseline: Baseline | None = None
    known_length: KnownLength | None = None
    depth: str | None = None
    prompt: str | None = None
    shortest: int = 16
    longest: int = 961
    cut: float = 10.0
    filters: Filters = field(default_factory=Filters)
    mapping: Mapping = field(default_factory=Mapping)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.licence.strip():
            raise ConfigError("licence is empty; say under which licence the footage may be used (--licence)")
        if len(given := [name for name in SCALES if getattr(self, name) is not None]) > 1:
            raise ConfigError(f"{given} each give a scale; keep one of them")
        if self.speed is not None and not 0 < self.speed < math.inf:
            raise ConfigError(f"speed is {self.speed}; give the camera's mean speed in m/s, above 0")
        if not 3 <= self.shortest <= self.longest:
            raise ConfigError(
                f"shortest is {self.shortest}, longest {self.longest}; allowed is 3 <= shortest <= longest"
            )
        if self.intrinsics is not None and not min(self.intrinsics[:2]) > 0:
            raise ConfigError(f"intrinsics are {list(self.intrinsics)}; give fx, fy > 0, cx, cy in pixels")
