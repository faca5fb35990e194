"""The truth of Rooms as an environment: the ray-caster gives the frames, all else is that of the learned world."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sanawm_env import bundle as bundles
from sanawm_env.config import from_mapping
from sanawm_env.env import SanaWMEnv
from sanawm_env.env_config import EnvConfig
from sanawm_env.episodes import Episodes
from sanawm_env.errors import ConfigError, SceneError
from sanawm_env.model.config import WorldConfig
from sanawm_env.placement import find_device
from sanawm_env.rooms import Scenes, render
from sanawm_env.running import Shown
from sanawm_env.source import WorldSource
from sanawm_env.start import ResetOptions, Start
from sanawm_env.state import WorldState, fresh_fields
from sanawm_env.tasks import Columns
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel, set_out


class RoomsTruth:
    """The ray-caster with the clock, frame size and lens of a world model, in the place of one; it has no weights.

    config: of that model. device: where frames are rendered. compiled: see `rooms.render`; the first steps then take a
    minute.
    """

    refiner = None
    licence = ""
    reads_text = False
    dtype = torch.float32

    def __init__(self, config: WorldConfig, device: torch.device | str = "cpu", *, compiled: bool = False) -> None:
        self.config = replace(config, name=f"{config.name}-truth")
        self.device = torch.device(device)
        self.compiled = compiled

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the name and of what the model's configuration says of frames."""
        config = self.config
        facts = [config.name, config.fps, config.frames_per_chunk, config.height, config.width, config.intrinsics]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def empty_state(self, batch: int, *, decoder: bool = True, device: torch.device | str | None = None) -> WorldState:
        """A state in which nothing has happened yet. The truth remembers nothing but where the camera is."""
        return WorldState(
            **fresh_fields(batch, self.config),
            first_latent=torch.zeros(batch, 0, device=self.device if device is None else device),
            text={},
            memory=[],
            decoder={} if decoder else None,
            refiner=None,
            fingerprint=self.fingerprint,
            frames_per_chunk=self.config.frames_per_chunk,
        )

    def look(self, scenes: Scenes, poses: np.ndarray, intrinsics: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3]: rooms seen from poses [B, T, 4, 4] through lenses [B, 4], on the device."""
        return render(
            scenes.to(self.device),
            torch.from_numpy(poses).to(self.device),
            intrinsics.to(self.device),
            (self.config.height, self.config.width),
            geometry=False,
            compiled=self.compiled,
        ).rgb


class TruthEpisodes(Episodes):
    """A batch of running episodes whose frames are the truth."""

    model: RoomsTruth
    placement: ClassVar[tuple[str, ...]] = ("device", "compiled")

    def __init__(self, model: RoomsTruth, config: EnvConfig, batch: int) -> None:
        for option in ("latents", "prompts", "resident", "guard"):
            if value := getattr(config, option):
                raise ConfigError(f"{option} is {value!r}, but the truth is drawn and has none; leave {option} out.")
        super().__init__(model, config, batch)

    @classmethod
    def open(cls, bundle: str | Path | WorldSource, **placement: Any) -> RoomsTruth:
        """The truth of a bundle by its name or folder, of which the description alone is read, or of a model."""
        device, compiled = placement.get("device"), bool(placement.get("compiled"))
        if isinstance(bundle, RoomsTruth):
            return bundle
        if isinstance(bundle, WorldModel):
            return RoomsTruth(
                bundle.config, bundle.device if device is None else find_device(device), compiled=compiled
            )
        if not isinstance(bundle, str | Path):
            raise ConfigError(f"bundle is a {type(bundle).__name__}, allowed is a bundle's name or folder, or a model.")
        config = from_mapping(WorldConfig, bundles.description(bundle)["config"])
        return RoomsTruth(config, find_device(device), compiled=compiled)

    def _begin(self, start: Start, seeds: Sequence[int], options: ResetOptions) -> tuple[WorldState, Shown, Columns]:
        if start.geometry is None:
            raise SceneError(
                "a world started from a picture has no known truth; start from a room with options={'scene': seed}."
            )
        empty = self.model.empty_state(len(seeds), decoder=self.decode)
        world = set_out(empty, seeds, start.poses, start.intrinsics, self._horizon(options), start.units)
        seen = torch.from_numpy(start.images)[:, None].to(self.model.device)
        return world, Shown(seen if self.decode else None), {}

    @property
    def _drawn(self) -> int:
        """Frames of a chunk, counted from its end, that anybody is shown: no other is drawn."""
        all_shown = "all" in (self.config.frames, self.config.observation)
        return self.model.config.frames_per_chunk if all_shown else 1

    def _step(self, world: WorldState, poses: np.ndarray) -> tuple[WorldState, Shown, np.ndarray]:
        scenes = self.now.scenes
        assert scenes is not None
        moved = replace(world, chunk=world.chunk + 1, pose=torch.from_numpy(poses[:, -1].copy()))
        seen = self.model.look(scenes, poses[:, -self._drawn :], world.intrinsics) if self.decode else None
        return moved, Shown(seen), np.ones(len(poses), bool)


class RoomsTruthEnv(SanaWMEnv):
    """Rooms as it is: every frame drawn by the ray-caster, exactly where the camera is. To try in it what a learned
    world has made.

    bundle: name or folder of the Rooms bundle (or a `WorldModel`) whose clock, frame size and lens it has; no weights
    are read. device: where frames are rendered, the best there is if None. compiled: see `RoomsTruth`. The rest as for
    `SanaWMEnv`, without latents and prompts. The same seed gives the same room, start pose and goal as in the learned
    world; the first picture is the truth that the learned world is shown. A picture cannot be a start. Of a step only
    frames that `frames` and `observation` ask for are drawn: all, or the last one, which `render` then shows. Noise has
    no part in it, so futures of one instant differ by their actions alone.
    """

    episodes_kind: ClassVar[type[Episodes]] = TruthEpisodes

    def __init__(
        self,
        bundle: str | Path | WorldModel = "rooms",
        *,
        device: str | None = None,
        compiled: bool = False,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        self._start_up(bundle, render_mode, {"device": device, "compiled": compiled, **options})


class RoomsTruthVectorEnv(SanaWMVectorEnv):
    """num_envs rooms as they are, in one batch; arguments as for `RoomsTruthEnv`, the rest as for `SanaWMVectorEnv`."""

    episodes_kind: ClassVar[type[Episodes]] = TruthEpisodes
