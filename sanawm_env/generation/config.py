"""What `sanawm generate` is told, and which of it decides the episodes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sanawm_env.errors import ConfigError
from sanawm_env.placement import Precision

# What may change between two runs of one job: how much is made, where and how fast, never what an episode is.
HOW = ("episodes", "batch", "device", "workers", "writers", "launcher", "out", "queue", "durable")


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Where episodes start: in rooms first_room .. first_room + rooms - 1, or, if any are named, at the pictures of
    scene files (`scene.load_scene`). Episode k takes number k of them, and begins again behind the last."""

    first_room: int = 0
    rooms: int = 10**9
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.first_room < 0 or self.rooms < 1:
            raise ConfigError(
                f"scenes.first_room is {self.first_room}, scenes.rooms {self.rooms}; allowed are >= 0 and >= 1."
            )


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Limits beyond which an episode is rejected; None for no limit. What each number is: `filters.py`. Of the truth
    along the default paths, 2 % have less than 13 grey levels of contrast, and 2 % a sharpness below 0.17.

    contrast: grey levels, at least. sharpness: grey levels a pixel, at least. drift: of latents, at most. degrees,
    metres: between the pose that was asked for and the one that a frame shows, at most, in rooms only; measured every
    pose_every frames, where the first picture shows enough of the place.
    """

    contrast: float | None = 4.0
    sharpness: float | None = 0.15
    drift: float | None = 3.0
    degrees: float | None = None
    metres: float | None = None
    pose_every: int = 32
    confidence: float | None = None
    guard: str | None = None

    def __post_init__(self) -> None:
        if self.pose_every < 1:
            raise ConfigError(f"filters.pose_every is {self.pose_every}, allowed is a number of frames >= 1.")
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise ConfigError(f"filters.confidence is {self.confidence}, allowed is 0 .. 1, or null for no limit.")
        if self.guard is not None and self.confidence is None:
            raise ConfigError(f"filters.guard is {self.guard!r} without filters.confidence; give both or neither.")

    @property
    def poses(self) -> bool:
        """Whether poses are measured."""
        return self.degrees is not None or self.metres is not None


@dataclass(frozen=True, kw_only=True)
class Generate:
    """A job.

    episodes: how many, of `frames` frames each unless the task ends them. bundle: name or folder of a world model; or
    sana_wm: arguments of `sana_wm.open_sana_wm`, for a released one. threads: of each worker on a CPU, where they
    decide how sums are rounded. kind: of path, see `rooms.trajectories`; None draws one for each episode. policy:
    `module:callable`, given a batch of observations (of the kind `observation`), returns actions [B, A], or [B, F, A]
    with action_mode="per_frame"; it takes the place of paths. It may also be a policy (`policies.base`), or a class or
    function that makes one of observation_space, action_space and policy_options, as those of `policies.exploring` do.
    out: folder. batch: worlds at a time on a device. workers: processes; None is one a GPU, one on a CPU. writers:
    processes that write what a worker steps, each into a store of its own; 0 is a thread of the worker, None is 0 on a
    CPU and up to 4 beside a GPU. queue: steps that may wait to be written. keep_rejected: stores
    what the filters reject too. keep: of a step, its frames, or the latents that they were decoded from, or both, as
    `EpisodeLog` does. truth: also stores what the ray-caster shows. durable: of `EpisodeWriter`.

    What is not in `HOW` decides the episodes and stays as it is while a job goes on. On a GPU `batch` decides how the
    decoder rounds besides: latents do not depend on it, pixels do by a grey level or two.
    """

    out: Path
    episodes: int = 16
    frames: int = 64
    seed: int = 0
    bundle: str = "rooms"
    sana_wm: Mapping[str, Any] | None = None
    precision: Precision = "auto"
    threads: int = 1
    scenes: Scenes = field(default_factory=Scenes)
    task: Any = "drive"
    action_map: str = "diff_drive"
    action_options: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None
    policy: str | None = None
    policy_options: Mapping[str, Any] = field(default_factory=dict)
    observation: str = "last"
    action_mode: str = "hold"
    filters: Filters = field(default_factory=Filters)
    keep_rejected: bool = False
    keep: Literal["frames", "latents", "both"] = "frames"
    truth: bool = False
    picture_codec: str = "jpeg"
    picture_quality: int = 95
    device: str | None = None
    batch: int = 8
    workers: int | None = None
    writers: int | None = None
    launcher: Literal["local", "ray"] = "local"
    queue: int = 4
    durable: bool = True

    def __post_init__(self) -> None:
        for name in ("episodes", "frames", "threads", "batch", "queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, allowed is a whole number >= 1.")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}, allowed is a whole number >= 1, or null for one a GPU.")
        if self.writers is not None and self.writers < 0:
            raise ConfigError(f"writers is {self.writers}, allowed is a whole number >= 0, or null for a choice.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, allowed is a whole number >= 0.")
        if self.policy is not None and self.kind is not None:
            raise ConfigError(f"kind {self.kind!r} and policy {self.policy!r} were given; name one of them.")
        if self.policy is None and self.action_options:
            raise ConfigError("action_options need a policy: paths are drawn for the action maps as they are.")
        if self.scenes.files and (self.truth or self.filters.poses):
            raise ConfigError("truth, filters.degrees and filters.metres need rooms; scenes.files have no truth.")

    @property
    def job(self) -> dict[str, Any]:
        """What decides the episodes, as plain JSON."""
        told = {name: value for name, value in dataclasses.asdict(self).items() if name not in HOW}
        plain: dict[str, Any] = json.loads(json.dumps(told, default=str))
        return plain

    @property
    def job_id(self) -> bytes:
        """8 bytes that stand for `job`."""
        return hashlib.sha256(json.dumps(self.job, sort_keys=True).encode()).digest()[:8]

    def identity(self, number: int) -> bytes:
        """Of episode `number` in stores."""
        return self.job_id + number.to_bytes(8, "big")
