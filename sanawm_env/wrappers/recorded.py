"""Recorded: what a recording must know of an environment, as a value that another process can be given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sanawm_env.actions import ActionMap
from sanawm_env.env import Worlds
from sanawm_env.errors import ConfigError

if TYPE_CHECKING:
    from sanawm_env.model.config import WorldConfig

PRECISIONS = {"torch.bfloat16": "bf16", "torch.float32": "fp32"}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Facts of an environment of ours. config, fingerprint, licence: of its model. precision: "bf16" or "fp32".
    refiner: whether its frames are refined. task: of the running episodes, in words. device: "cpu" or "cuda". latents:
    whether its `info` has them."""

    config: WorldConfig
    action_map: ActionMap
    task: str
    fingerprint: str
    licence: str
    precision: str
    refiner: bool
    device: str
    latents: bool

    @property
    def fps(self) -> float:
        """Frames a second of world time."""
        return self.config.fps

    @property
    def frames_per_step(self) -> int:
        """Frames F of a step."""
        return self.config.frames_per_chunk


def recorded(env: Any) -> Recorded:
    """What is to be known of an environment as it is now. ConfigError for one that is not ours."""
    if not isinstance(env, Worlds):
        raise ConfigError(
            f"{type(env).__name__} has no world to record; wrap an environment of sanawm_env, or use wrappers.record "
            "for one that has a camera."
        )
    model = env.model
    return Recorded(
        config=model.config,
        action_map=env.action_map,
        task=repr(env.task),
        fingerprint=model.fingerprint,
        licence=model.licence,
        precision=PRECISIONS.get(str(model.dtype), str(model.dtype)),
        refiner=model.refiner is not None,
        device=model.device.type,
        latents=env.gives_latents,
    )
