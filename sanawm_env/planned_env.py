"""PlannedEnv: a clip that is planned and generated as a whole, replayed behind Gymnasium's contract.

The bidirectional model and the chunk-causal teacher denoise a trajectory that is known from the first to the last
frame. Their environment therefore asks for the plan first: a reset generates the clip, steps show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np
import torch
from tqdm import tqdm

from sanawm_env.actions import DiffDrive
from sanawm_env.camera import check_rigid
from sanawm_env.clips import generate
from sanawm_env.env import SanaWMEnv
from sanawm_env.env_config import EnvConfig
from sanawm_env.episodes import Episodes
from sanawm_env.errors import ActionError, ConfigError, LifecycleError, PoseError, SceneError, StateError
from sanawm_env.learned import LearnedEpisodes
from sanawm_env.running import Shown
from sanawm_env.start import ResetOptions, Start
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.tasks import Columns
from sanawm_env.world import WorldModel

POSES, FRAMES, SOUND = "clip.poses", "clip.frames", "clip.sound"  # the clip among an episode's rows
PACE, CHUNKS = 0.4, 4  # the drive that is planned where nobody plans one: m/s straight ahead, chunks
TOLERANCE = 1e-4  # metres, and entries of rotations, by which an action may miss the plan and still follow it


@dataclass(frozen=True, kw_only=True)
class PlannedConfig(EnvConfig):
    """`EnvConfig`, and what to plan where a reset says nothing else: trajectory or actions, as `PlannedEnv.reset` takes
    them, or with neither a drive straight ahead. strict: also refuses actions that do not follow the plan.
    """

    trajectory: Any = None
    actions: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trajectory is not None and self.actions is not None:
            raise ConfigError("trajectory and actions are both given, allowed is one of them; drop the other.")
        if self.resident is not None:
            raise ConfigError(f"resident is {self.resident!r}, but a planned clip is one world; leave it out.")
        if self.latents:
            raise ConfigError("a planned clip is decoded as a whole and gives no latents chunk by chunk; drop latents.")


@dataclass(frozen=True, kw_only=True)
class PlannedOptions(ResetOptions):
    """What `PlannedEnv.reset(options=...)` takes."""

    trajectory: Any = None
    actions: Any = None


class PlannedEpisodes(LearnedEpisodes):
    """Episodes whose frames are there from the start. The clip lies among the rows, so a snapshot holds it."""

    config: PlannedConfig
    config_kind: ClassVar[type[EnvConfig]] = PlannedConfig
    options_kind: ClassVar[type[ResetOptions]] = PlannedOptions
    stepping: ClassVar[bool] = False

    def __init__(self, model: WorldModel, config: EnvConfig, batch: int) -> None:
        super().__init__(model, config, batch)
        # A plan that does not fit is told here and not after the first reset has drawn its room.
        if self.config.trajectory is not None:
            self._read_trajectory(self.config.trajectory)
        if self.config.actions is not None:
            self._rolled(np.eye(4)[None], self.config.actions)

    @property
    def steering(self) -> str:
        return f"{super().steering} over a planned clip"

    def start(
        self,
        seeds: Sequence[int],
        options: ResetOptions,
        slots: Sequence[int] | None = None,
        lines: np.ndarray | None = None,
    ) -> dict[str, Any]:
        planned = self._with_plan(options)
        if planned.trajectory is not None:
            poses = self._read_trajectory(planned.trajectory)
            planned = replace(planned, trajectory=poses, pose=poses[0])
        facts = super().start(seeds, planned, slots, lines)
        return facts | {"trajectory": self.now.rows[POSES].copy()}

    def _with_plan(self, options: ResetOptions) -> PlannedOptions:
        """The options with one plan at most: their own, else the environment's."""
        assert isinstance(options, PlannedOptions)
        if options.trajectory is not None and options.actions is not None:
            raise SceneError("reset options hold both 'trajectory' and 'actions'; pass one of them.")
        if options.trajectory is None and options.actions is None:
            options = replace(options, trajectory=self.config.trajectory, actions=self.config.actions)
        if options.trajectory is not None and options.pose is not None:
            raise SceneError(
                "a 'pose' is given beside a trajectory, whose first pose is that of the picture already; drop the pose."
            )
        return options

    def _begin(self, start: Start, seeds: Sequence[int], options: ResetOptions) -> tuple[WorldState, Shown, Columns]:
        assert isinstance(options, PlannedOptions)
        path = self._path(options, start.poses)
        world, _, _ = super()._begin(start, seeds, options)
        last = path.shape[1] - 1
        world.horizon = torch.where(world.horizon < 0, last, world.horizon.clamp(max=last))
        clip = self._generate(start, world, path)
        assert clip.frames is not None
        chunks = clip.latents[:, 1:].unflatten(1, (-1, self.model.config.chunk_latents))
        sound = torch.isfinite(chunks).flatten(2).all(dim=2)
        rows = {POSES: path, FRAMES: clip.frames.cpu().numpy(), SOUND: sound.cpu().numpy()}
        # Nothing is denoised any more, so decode cache and refiner window are let go.
        return world.plan(), Shown(clip.frames[:, :1].cpu()), rows

    def _generate(self, start: Start, world: WorldState, path: np.ndarray) -> StepOutput:
        prompts = self.config.prompts
        with tqdm(desc="generating the clip", unit="pass", disable=None, leave=False) as bar:

            def note(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return generate(
                self.model,
                start.images,
                path,
                seeds=world.seed,
                intrinsics=start.intrinsics,
                text=world.text,
                units=start.units,
                negative=None if prompts is None else prompts.read_negative(len(path)),
                progress=note,
            )

    def _path(self, options: PlannedOptions, start: np.ndarray) -> np.ndarray:
        """Poses of the whole clip [B, 1 + F k, 4, 4] from the start poses [B, 4, 4]."""
        if options.trajectory is not None:
            return np.repeat(options.trajectory[None], len(start), axis=0)
        if options.actions is not None:
            return self._rolled(start, options.actions)
        drive, world = DiffDrive(), self.model.config
        ahead = np.tile([PACE, 0.0], (len(start), CHUNKS * world.frames_per_chunk, 1))
        poses, _ = drive.rollout(start, drive.initial(len(start)), ahead, world.fps)
        return np.concatenate([start[:, None], poses], axis=1)

    def _rolled(self, start: np.ndarray, actions: Any) -> np.ndarray:
        """Where actions, one a chunk, lead from the start poses."""
        try:
            chunks = list(actions)
        except TypeError:
            chunks = []
        if not chunks:
            raise ActionError(
                f"actions of the plan are {actions!r:.80}, allowed are one or more, each as step() takes it; pass one "
                "a chunk."
            )
        poses, motion = [start[:, None]], self.action_map.initial(len(start))
        for action in chunks:
            moved, motion, _ = self._lead([action] * len(start), poses[-1][:, -1], motion)
            poses.append(moved)
        return np.concatenate(poses, axis=1)

    def _read_trajectory(self, given: Any) -> np.ndarray:
        """A trajectory [1 + F k, 4, 4] as float64, once it is found to be one."""
        frames = self.model.config.frames_per_chunk
        try:
            poses = np.array(given, np.float64)
        except (TypeError, ValueError) as error:
            raise PoseError(f"trajectory is not an array of numbers ({error}); pass poses [N, 4, 4].") from error
        if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) <= frames or (len(poses) - 1) % frames:
            raise PoseError(
                f"trajectory has shape {poses.shape}, allowed is [1 + {frames} k, 4, 4] with k >= 1: the first "
                "picture's pose and those of whole chunks; cut or extend it."
            )
        check_rigid(torch.from_numpy(poses), "trajectory")
        return poses

    def _steer(self, actions: Any) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """The planned chunk, wherever the actions lead, and whether they lead there."""
        clip, number = self.now.rows[POSES], int(self.now.world.frame[0])
        if number + 1 >= clip.shape[1]:
            raise LifecycleError(f"the clip of {clip.shape[1]} frames is over; call reset(), which plans another.")
        wanted, motion, told = super()._steer(actions)
        planned = clip[:, number + 1 : number + 1 + wanted.shape[1]].copy()
        missed = np.abs(wanted - planned).max(axis=(1, 2, 3))
        if self.config.strict and (missed > TOLERANCE).any():
            raise ActionError(
                f"the action leads {missed.max():.3g} away from the planned poses, allowed is {TOLERANCE:g}: the clip "
                "is generated already and no action changes it; pass the planned action, plan this one in reset(), or "
                "use strict=False."
            )
        return planned, motion, told | {"followed": missed <= TOLERANCE}

    def _step(self, world: WorldState, poses: np.ndarray) -> tuple[WorldState, Shown, np.ndarray]:
        chunk, first = int(world.chunk[0]), int(world.frame[0]) + 1
        shown = self.now.rows[FRAMES][:, first : first + poses.shape[1]]
        moved = replace(world, chunk=world.chunk + 1, pose=torch.from_numpy(poses[:, -1].copy()))
        return moved, Shown(torch.from_numpy(shown)), self.now.rows[SOUND][:, chunk]


class PlannedEnv(SanaWMEnv):
    """A clip planned first, generated at once by the reset, and replayed a chunk of F frames a step.

    **No action changes what is seen.** The models behind it denoise a whole trajectory, so every frame is decided when
    `reset` returns. The action of a step is compared with the plan and reported: `info["followed"]` is False where it
    would have led elsewhere. To steer, use a distilled model and `SanaWMEnv`; to learn from a fixed drive, look at one,
    or compare the variants, use this.

    bundle: a model of any variant. trajectory, actions: the plan where a reset brings none, as `reset` takes them; with
    neither, 0.4 m/s straight ahead for four chunks. strict: refuses actions that are out of limits or do not follow the
    plan. The rest as for `SanaWMEnv`; spaces and the keys of `info` are the same.

    The episode is truncated with its last frame ("horizon"), or earlier by a shorter horizon, the task or a fault of
    the model. Past the clip's last frame there is nothing to step into, which is an error. A snapshot holds the clip
    and the place in it; there is no fork, since all futures of a clip are the same.
    """

    episodes_kind: ClassVar[type[Episodes]] = PlannedEpisodes

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Plans a clip, generates all of it, and returns its first frame; takes as long as the clip.

        options: "trajectory", [1 + F k, 4, 4] camera-to-world in metres, OpenCV axes, of every frame from the picture's
        on, in the room's frame or the caller's; or "actions", k of them, each as `step` takes it ([k, A], or [k, F, A]
        with action_mode="per_frame"), which lead from the start pose. The others are those of `SanaWMEnv.reset`,
        without "pose" beside a trajectory. `info["trajectory"]` [1 + F k, 4, 4] is what was planned. Raises PoseError
        or ActionError for a plan that does not fit, and SceneError; the episode before then goes on. The frames are
        those of `sanawm_env.generate` with these poses and the world's seed.
        """
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The next F frames of the clip, whatever the action.

        action: as for `SanaWMEnv.step`, and compared with the plan only. `info` is that of `SanaWMEnv.step` with
        "followed": whether the action would have led from the planned pose, with the motion that the actions so far
        have built up, along the planned poses (within 0.1 mm and 0.0001 in a rotation's entries). With strict=True it
        is an ActionError where it would not. LifecycleError once the clip is over.
        """
        return super().step(action)

    def fork(self, n: int, *, reseed: bool = False, decode: bool | Literal["later"] = True) -> NoReturn:
        """StateError: every future of a clip is the clip. `get_state` keeps the place in it."""
        raise StateError(
            f"fork({n!r}) of a planned clip has no meaning: all its futures are the same frames; fork a distilled "
            "world (SanaWMEnv), or keep this place with get_state()."
        )
