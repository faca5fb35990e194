"""Episodes of a batch of worlds: actions in, frames, rewards and ends out. Both environments are thin faces of this.

The scalar environment is a batch of one, so there is one code path. Everything that changes is in one `Running` object,
which a step replaces as a whole: an interrupted step leaves the last committed one.
"""

from __future__ import annotations

import abc
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from sanawm_env.capacity import FEWER, FEWER_FUTURES, Needs, Room
from sanawm_env.env_config import EnvConfig, is_count
from sanawm_env.errors import ActionError, StateError, TaskError
from sanawm_env.rigid import CAMERA_FROM_BODY, body_velocity
from sanawm_env.running import (
    REASONS,
    SUCCESS,
    TASK,
    Judged,
    Outcome,
    Running,
    Shown,
    drop_faulty,
    fresh_lines,
    fresh_rows,
    judge,
    new_seeds,
    rooms_of,
)
from sanawm_env.snapshot import Snapshot, check_fits
from sanawm_env.source import WorldSource
from sanawm_env.start import ResetOptions, Start, make_start
from sanawm_env.state import WorldState
from sanawm_env.tasks import Columns, Drive, make_task, task_fields
from sanawm_env.undecoded import Undecoded


class Episodes(abc.ABC):
    """A batch of running episodes. Where their frames come from, `_begin` and `_step` say: a model in `learned`, the
    ray-caster in `truth`.

    placement: names of the options that `open` takes.
    """

    config_kind: ClassVar[type[EnvConfig]] = EnvConfig
    options_kind: ClassVar[type[ResetOptions]] = ResetOptions
    placement: ClassVar[tuple[str, ...]]

    def __init__(self, model: WorldSource, config: EnvConfig, batch: int) -> None:
        self.model = model
        self.config = config
        self.batch = batch
        self.decode = True
        self.room = self._room(model.empty_state(1, device="meta").nbytes()["total"])
        if batch > 1:
            self.room.check(batch)
        self.action_map = config.make_map()
        self.task = make_task(config.task)
        self.running: Running | None = None
        self.later: Undecoded | None = None
        self.last_timing: dict[str, float] = {}
        self.last_latents: torch.Tensor | None = None

    @property
    def home(self) -> torch.device:
        """Where the states of the worlds lie between steps, and what they show."""
        resident = self.config.resident
        return self.model.device if resident is None or self.batch <= resident else torch.device("cpu")

    def _room(self, state: int, what: str = "num_envs", fewer: str = FEWER) -> Room:
        """The memory that these episodes ask for, with states of so many bytes each."""
        shape = self.model.config
        return Room(
            what=what,
            device=self.model.device,
            home=self.home,
            state=state,
            frames=shape.frames_per_chunk * shape.height * shape.width * 3 if self.decode else 0,
            working=self._working(state),
            resident=self.config.resident,
            fewer=fewer,
        )

    def _working(self, state: int) -> Needs:
        """Bytes of what a step takes beside states, by number of worlds. state: bytes of one."""
        return lambda worlds: 0

    @classmethod
    @abc.abstractmethod
    def open(cls, bundle: str | Path | WorldSource, **placement: Any) -> WorldSource:
        """What gives the frames of worlds like those of a bundle."""

    @property
    def steering(self) -> str:
        """What moves the worlds, in words; a snapshot fits only where it is the same."""
        return repr(self.action_map)

    @property
    def now(self) -> Running:
        """The running episodes; StateError before the first start."""
        if self.running is None:
            raise StateError("no episode is running; start one first.")
        return self.running

    def start(
        self,
        seeds: Sequence[int],
        options: ResetOptions,
        slots: Sequence[int] | None = None,
        lines: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Starts new episodes, one a seed, in all worlds or in the slots; facts for `info`. lines: see `fresh_rows`."""
        began = time.perf_counter()
        if options.scene is None and options.image is None:
            options = replace(options, scene=self.config.scene)
        task = self._task_for(options, slots)
        start = make_start(options, seeds, self.model.config, self.model.device)
        rendered = time.perf_counter()
        columns = {TASK + name: rows for name, rows in task.begin(start.situations).items()}
        with self.room.met(len(seeds)):
            world, shown, own = self._begin(start, seeds, options)
        opened = time.perf_counter() - rendered
        lines = fresh_lines(seeds) if lines is None else lines
        rows = fresh_rows(self.action_map.initial(len(seeds)), start.rooms, lines) | columns | own
        fresh = Running(world=world, rows=rows, task=task, scenes=start.geometry, **shown._asdict())
        self.later = None
        self.running = fresh if slots is None else self.now.write(list(slots), fresh)
        self.last_timing = {"reset_seconds": time.perf_counter() - began, "model_seconds": opened}
        return self._start_facts(start, task, list(range(self.batch)) if slots is None else list(slots))

    @abc.abstractmethod
    def _begin(self, start: Start, seeds: Sequence[int], options: ResetOptions) -> tuple[WorldState, Shown, Columns]:
        """Worlds at their first pictures, these as frames [B, 1, H, W, 3] where they are decoded, and rows to keep."""

    def _horizon(self, options: ResetOptions) -> int | None:
        return self.config.horizon if options.horizon is None else options.horizon

    def advance(self, actions: Any) -> Outcome:
        """Every world moved by one chunk. On any error or interrupt the episodes stay as they were."""
        began = time.perf_counter()
        now, fps = self.now, self.model.config.fps
        before = now.world.pose.numpy()
        poses, motion, told = self._steer(actions)
        judged, rows = judge(now, before, poses, fps)
        rows |= {"motion": motion, "velocity": body_velocity(poses[:, -2], poses[:, -1], fps)}
        steered = time.perf_counter()
        seeds = now.world.seed
        later, (sound, _) = self.later, self.move(poses, rows)
        self.later = None if later is None else later.stepped(poses, seeds)
        stepped = time.perf_counter() - steered
        judged, watched = self._watch(judged, sound)
        seconds = time.perf_counter() - began
        frames = poses.shape[0] * poses.shape[1]
        self.last_timing = {"step_seconds": seconds, "model_seconds": stepped, "frames_per_second": frames / seconds}
        return self._outcome(judged, poses, told | watched)

    def _watch(self, judged: Judged, sound: np.ndarray) -> tuple[Judged, dict[str, np.ndarray]]:
        """What becomes of episodes for what their latest chunk is like, and facts for `info`."""
        self.running, judged = drop_faulty(self.now, judged, sound)
        return judged, {}

    def move(self, poses: np.ndarray, rows: Columns | None = None) -> tuple[np.ndarray, Shown]:
        """A chunk along poses [B, F, 4, 4], with the episodes' rows after it: whether each is sound, what it shows."""
        now = self.now
        with self.room.met(self.batch):
            world, shown, sound = self._step(now.world, poses)
        self.running = replace(now, world=world, rows=now.rows if rows is None else rows, **shown._asdict())
        return sound, shown

    def _steer(self, actions: Any) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Where the worlds go: poses of the coming chunk [B, F, 4, 4], motion after it [B, k], facts for `info`."""
        poses, motion, clipped = self._lead(actions, self.now.world.pose.numpy(), self.now.rows["motion"])
        return poses, motion, {"clipped": clipped}

    def _lead(self, actions: Any, pose: np.ndarray, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where actions lead from a pose and a motion: poses, motion after them, how many numbers were clipped [B]."""
        inside, clipped = self._read_actions(actions, pose)
        return *self.action_map.rollout(pose, motion, inside, self.model.config.fps), clipped

    @abc.abstractmethod
    def _step(self, world: WorldState, poses: np.ndarray) -> tuple[WorldState, Shown, np.ndarray]:
        """The worlds after a chunk along poses [B, F, 4, 4], what it shows, and whether each is still sound [B]."""

    def fork(self, n: int, *, reseed: bool = False, decode: bool | Literal["later"] = True) -> Episodes:
        """n futures of every world, row-major; see `SanaWMEnv.fork`."""
        if not isinstance(decode, bool) and decode != "later":
            raise StateError(f"fork got decode = {decode!r}, allowed are True, False and 'later'.")
        if not is_count(n):
            raise StateError(f"fork got n = {n!r}, allowed is a whole number >= 1; pass how many futures to make.")
        n, now = int(n), self.now
        forked = copy.copy(self)
        forked.batch, forked.decode, forked.later = self.batch * n, decode is True, None
        if decode == "later":
            forked.later = Undecoded.of(self).select(np.repeat(np.arange(self.batch), n))
            decode = False
        parts = now.world.nbytes()
        state = parts["total"] if decode else parts["total"] - parts["decoder"] - parts["refiner"]
        forked.room = forked._room(state // self.batch, "the number of futures", FEWER_FUTURES)
        forked.room.check(forked.batch)
        with forked.room.met(forked.batch):
            world = (now.world if decode or now.world.decoder is None else now.world.plan()).to(forked.home).fork(n)
        if decode and world.decoder is None:
            raise StateError("these worlds have no decoder left (decode=False); fork from ones that have it.")
        if reseed:
            world.seed = new_seeds(world, n)
        rows = {name: np.repeat(rows, n, axis=0) for name, rows in now.rows.items()}
        rows["line"] = fresh_lines(new_seeds(world, n, purpose=5).tolist())
        forked.running = Running(
            world=world,
            rows=rows,
            frames=None if now.frames is None else now.frames.to(forked.home).repeat_interleave(n, dim=0),
            task=now.task,
            scenes=None if now.scenes is None else now.scenes.select(np.repeat(np.arange(self.batch), n).tolist()),
        )
        return forked

    def decoded(self, rows: Sequence[int]) -> Any:
        """Frames of these futures since they were forked, [n, k F, H, W, 3], as `config.arrays` says."""
        if self.later is None:
            raise StateError(
                "pictures were not kept possible here; fork with decode='later', and do not reset or restore between."
            )
        frames = self.later.select(rows).frames()
        return frames.cpu().numpy() if self.config.arrays == "numpy" else frames.to(self.model.device)

    def select(self, rows: Sequence[int]) -> Episodes:
        """These episodes alone, in this order; the others are untouched."""
        chosen = copy.copy(self)
        chosen.batch, chosen.running = len(rows), self.now.select(list(rows))
        chosen.running = replace(chosen.running, world=chosen.running.world.to(chosen.home))
        chosen.later = None if self.later is None else self.later.select(rows)
        return chosen

    def snapshot(self, rng: Mapping[str, Any]) -> Snapshot:
        """A copy of all that the episodes are made of."""
        now = self.now
        return Snapshot(
            world=now.world.clone(),
            rows={name: rows.copy() for name, rows in now.rows.items()},
            frames=None if now.frames is None else now.frames.cpu().numpy().copy(),
            task=task_fields(now.task),
            rng=copy.deepcopy(dict(rng)),
            actions=self.steering,
        )

    def restore(self, taken: Snapshot) -> None:
        """Continues from a snapshot. StateError: no snapshot, or of another bundle, number of worlds or action map."""
        check_fits(taken, fingerprint=self.model.fingerprint, worlds=self.batch, actions=self.steering)
        self.decode, self.later = taken.world.decoder is not None, None
        self.running = Running(
            world=taken.world.clone().to(self.home),
            rows={name: rows.copy() for name, rows in taken.rows.items()},
            frames=None if taken.frames is None else torch.from_numpy(taken.frames.copy()),
            task=make_task(taken.task),
            scenes=rooms_of(taken.rows["room"]),
        )

    def frames(self, *, last: bool = False) -> np.ndarray | None:
        """Frames of the latest chunk, uint8 [B, T, H, W, 3], or only its last one (T = 1); None where nothing is
        decoded.

        The array is the caller's own. Only what is asked for leaves the device.
        """
        frames = self.now.frames
        if frames is None:
            return None
        shown = (frames[:, -1:] if last else frames).cpu().numpy()
        return shown if frames.is_cuda else shown.copy()

    def _pictures(self, *, last: bool) -> Any:
        """`frames` as `config.arrays` says."""
        if self.config.arrays == "numpy":
            return self.frames(last=last)
        frames = self.now.frames
        # After `restore`, or where states visit the device, they lie on the host.
        return None if frames is None else (frames[:, -1:] if last else frames).to(self.model.device, copy=True)

    def _given(self, array: np.ndarray) -> Any:
        """An array as `config.arrays` says."""
        return array if self.config.arrays == "numpy" else torch.from_numpy(array).to(self.model.device)

    def observation(self) -> Any:
        """Observations as `spaces.observation_space` lays them out, B rows; None where nothing is decoded."""
        pictures = self._pictures(last=self.config.observation != "all")
        if pictures is None:
            return None
        if self.config.observation == "all":
            frames = self.model.config.frames_per_chunk
            return pictures[:, np.minimum(np.arange(frames), pictures.shape[1] - 1)]
        image = pictures[:, 0]
        if self.config.observation == "last":
            return image
        now = self.now
        pose = now.world.pose.numpy()
        parts = {"image": image, "pose": pose[:, :3].reshape(-1, 12), "velocity": now.rows["velocity"]}
        if self.task.has_goal:  # the space has the entry, whatever task a reset has chosen since
            goal = now.columns.get("goal", pose[:, :3, 3])
            parts["goal"] = np.einsum("bji,bj->bi", pose[:, :3, :3], goal - pose[:, :3, 3]) @ CAMERA_FROM_BODY
        return {name: part if name == "image" else self._given(part.astype(np.float32)) for name, part in parts.items()}

    def _task_for(self, options: ResetOptions, slots: Sequence[int] | None) -> Drive:
        if slots is None:
            return self.task if options.task is None else make_task(options.task)
        current = self.now.task
        if options.task is not None and make_task(options.task) != current:
            raise TaskError(
                f"task {options.task!r} was given for some worlds while the others run {current.name!r}; "
                "change the task in a reset of all worlds."
            )
        return current

    def _read_actions(self, actions: Any, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions within the limits for every frame [B, F, A], and how many numbers were clipped [B]."""
        chosen, frames = self.action_map, self.model.config.frames_per_chunk
        try:
            given = chosen.read(actions)
        except ActionError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or one that needs its gradient
            raise ActionError(
                f"action is not an array of numbers ({error}); pass a NumPy array, or a list of equal rows."
            ) from error
        hold = self.config.action_mode == "hold"
        leading = (self.batch,) if hold else (self.batch, frames)
        if chosen.kind == "choice" and given.shape == leading:
            given = given[..., None]
        expected = (*leading, chosen.size)
        if given.shape != expected:
            raise ActionError(self._shape_message(given.shape, expected))
        inside, clipped = chosen.limit(given, strict=self.config.strict)
        return (chosen.hold(pose, inside, frames) if hold else inside), clipped

    def _shape_message(self, seen: tuple[int, ...], expected: tuple[int, ...]) -> str:
        if self.batch == 1 and seen[:1] == (1,):
            seen, expected = seen[1:], expected[1:]
        elif self.batch > 1 and seen == expected[1:]:
            remedy = "pass one row a world, or build with num_envs=1"
            return f"action has shape {seen}, expected {expected} for num_envs={self.batch}; {remedy}."
        columns, mode = ", ".join(self.action_map.columns), self.config.action_mode
        other = "per_frame" if mode == "hold" else "hold"
        return (
            f"action has shape {seen}, expected {expected} for map {self.action_map.name!r} ({columns}) and "
            f"action_mode={mode!r}; change the shape, or build with action_mode={other!r}."
        )

    def _outcome(self, judged: Judged, poses: np.ndarray, told: Mapping[str, np.ndarray]) -> Outcome:
        now = self.now
        reason = now.rows["reason"]
        words = np.array(REASONS, dtype=object)[reason]
        info = self.facts(poses) | {
            **told,
            "rewards": judged.rewards,
            "end_index": judged.end_index,
            "valid_frames": judged.valid_frames,
            "success": reason == SUCCESS,
            "termination_reason": np.where(now.rows["terminated"], words, ""),
            "truncation_reason": np.where(now.rows["truncated"], words, ""),
        }
        terminated, truncated = now.rows["terminated"].copy(), now.rows["truncated"].copy()
        return Outcome(reward=judged.rewards.sum(axis=1), terminated=terminated, truncated=truncated, info=info)

    def _start_facts(self, start: Start, task: Drive, slots: list[int]) -> dict[str, np.ndarray]:
        now = self.now
        told, lens = np.full(self.batch, "", dtype=object), np.full(self.batch, "", dtype=object)
        told[slots] = task.instructions(start.situations)
        lens[slots] = start.intrinsics_source
        return self.facts() | {
            "seed": now.world.seed.numpy().copy(),
            "room": now.rows["room"].copy(),
            "intrinsics": now.world.intrinsics.numpy().copy(),
            "intrinsics_source": lens,
            "instruction": told,
        }

    def facts(self, poses: np.ndarray | None = None) -> dict[str, Any]:
        """What is known of this instant, B rows; poses: [B, T, 4, 4] of the frames shown, the latest one if None."""
        now = self.now
        poses = now.world.pose.numpy()[:, None].copy() if poses is None else poses
        facts: dict[str, Any] = {
            "poses": poses,
            "frame": now.world.frame.numpy().copy(),
            "calibrated": ~now.world.units.isnan().numpy(),
        }
        frames = None if self.config.frames == "none" else self._pictures(last=self.config.frames == "last")
        if frames is not None:
            facts["frames"] = frames
        if now.latents is not None:
            torched = self.config.arrays == "torch"
            kept = now.latents
            facts["latents"] = kept.to(self.model.device, copy=True) if torched else kept.cpu().numpy().copy()
        return facts | now.task.describe(now.columns, poses[:, -1])
