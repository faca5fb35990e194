"""What a store and its episodes say of themselves: rates, columns, and where every picture comes from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from sanawm_env.config import from_mapping
from sanawm_env.datasets import schema
from sanawm_env.errors import ConfigError, StorageError, nearest

CODECS = ("jpeg", "webp", "jpegxl", "av1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What all episodes of a store share.

    fps: frames a second of world time. frames_per_step: F. action_columns, action_units: of `actions`, in order.
    picture_codec: "jpeg" (picture_quality 1 to 100), "webp" (the same; 0 is lossless), "jpegxl" (always lossless)
    or "av1" (1 to 99; 0 is lossless), which encodes the F frames of a step together.
    """

    fps: float
    frames_per_step: int
    action_columns: tuple[str, ...]
    action_units: tuple[str, ...]
    picture_codec: str = "jpeg"
    picture_quality: int = 95

    def __post_init__(self) -> None:
        if not self.fps > 0 or self.frames_per_step < 1:
            raise StorageError(f"fps is {self.fps}, frames_per_step {self.frames_per_step}; both must be above 0")
        if self.picture_codec not in CODECS:
            raise StorageError(f"picture_codec is {self.picture_codec!r}; {nearest(self.picture_codec, CODECS)}")
        if len(self.action_columns) != len(self.action_units):
            raise StorageError(f"{len(self.action_columns)} action_columns have {len(self.action_units)} action_units")

    def attributes(self, sources: list[dict[str, Any]]) -> dict[str, Any]:
        """The attributes of a store."""
        named = {"schema": schema.NAME, "version": schema.VERSION, "end_reasons": list(schema.END_REASONS)}
        own = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}
        return {**named, **own, "sources": sources}

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> StoreInfo:
        """What the attributes of a store say. StorageError where one is missing."""
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            return from_mapping(cls, {name: attributes[name] for name in names})
        except (KeyError, ConfigError) as error:
            raise StorageError(f"the store's attributes are damaged ({error}); restore its zarr.json") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an episode comes from; stored once for all episodes that share it, their seeds apart.

    bundle: name of the world model; bundle_sha256: its fingerprint, "" for one made in memory. precision: "bf16" or
    "fp32". action_map, task: in words. intrinsics_source: "bundle", or `Scene.intrinsics_from`. units_per_metre: None
    where the scale is not known. licences: of weights and pictures. extra: what else is worth keeping, plain JSON; its
    "prompt" is what the pictures show in words, without one about the camera (`prompt_of`).
    """

    bundle: str = ""
    bundle_sha256: str = ""
    variant: str = ""
    refiner: bool = False
    precision: str = ""
    action_map: str = ""
    task: str = ""
    intrinsics_source: str = ""
    units_per_metre: float | None = None
    package_version: str = ""
    package_commit: str | None = None
    licences: tuple[str, ...] = ()
    synthetic: bool = True
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def mapping(self) -> dict[str, Any]:
        """As plain JSON. StorageError where `extra` is none."""
        values = {**dataclasses.asdict(self), "licences": list(self.licences), "extra": dict(self.extra)}
        try:
            return dict(json.loads(json.dumps(values, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise StorageError(f"provenance cannot be written as JSON ({error}); pass plain values") from error


def prompt_of(told: Mapping[str, Any]) -> str | None:
    """What an episode's pictures show in words, of what `EpisodeStore.describe` tells; None where nobody said.
    StorageError where it is no text."""
    prompt = told["extra"].get("prompt")
    if prompt is None or isinstance(prompt, str):
        return prompt
    raise StorageError(f"the prompt of episode {told['id']} is {prompt!r:.60}, allowed is text; write it anew")
