"""One world on its way into a recording: what a reset and a step told of it, as the rows of a `Rollout`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sanawm_env.env import Worlds
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.pictures import sharpness
from sanawm_env.wrappers.indicators import fidelity, pose_distance
from sanawm_env.wrappers.memory_probe import MemoryProbe
from sanawm_env.wrappers.recorded import recorded
from sanawm_env.wrappers.rerun_recording import INFO, WARN, Event, Recording, Rollout
from sanawm_env.wrappers.rollouts import ROW_PLOTS, SECONDS, TIMING, picture_plots, row_plots
from sanawm_env.wrappers.rows import end_reason, given_actions, start_rows, step_rows, truth_rows, used_actions

MEMORY = ("state norm", "camera state norm", "decay")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of one world. info: of it. action: as it was given. seconds: of the step. memory: by plot and series.
    latents: mean and standard deviation of each channel, or None."""

    info: Mapping[str, Any]
    action: np.ndarray
    seconds: float
    memory: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    latents: tuple[np.ndarray, np.ndarray] | None = None


def plots_of(env: Worlds, probe: MemoryProbe, *, truth: bool) -> tuple[str, ...]:
    """Names of the plots that the recordings of an environment have."""
    told = ("fidelity",) if truth else ()
    return (*told, *ROW_PLOTS, "command", "drift", *(MEMORY if probe.blocks else ()), TIMING)


class LoggedWorld:
    """Turns what happens into rollouts, a step each, for its recording. ConfigError when truth is asked of a world that
    starts from a picture."""

    def __init__(self, env: Worlds, recording: Recording, *, truth: bool) -> None:
        self.env, self.recording, self.truth = env, recording, truth
        self.episodes = 0

    def start(self, info: Mapping[str, Any], seconds: float) -> None:
        """A reset. info: of this world, with all frames."""
        begun = start_rows(info)
        self.room, self.intrinsics = int(info["room"]), begun["start_intrinsics"]
        if self.truth and self.room < 0:
            raise ConfigError("truth=True, but the world starts from a picture, which has none; start in a room.")
        self.commanded, self.motion = begun["start_poses"][None], self.env.action_map.initial(1)
        self.pose, self.score, self.over = begun["start_poses"], 0.0, False
        self.first_latents: tuple[np.ndarray, np.ndarray] | None = None
        frames = begun["start_frames"][None]
        self.first_sharpness = float(sharpness(torch.as_tensor(frames[:1])))
        told = f"episode {self.episodes}: seed {info['seed']}, room {self.room}; {info['instruction'] or 'no task'}"
        self.episodes += 1
        plots: dict[str, dict[str, Any]] = {
            **picture_plots(frames, self.first_sharpness),
            TIMING: {SECONDS: np.array([seconds])},
        }
        self._append(self.commanded, frames, self.commanded, plots, [Event(row=0, text=told)], fresh=True)

    def step(self, step: Step) -> None:
        """A step, also one after the end of the episode."""
        used = used_actions(recorded(self.env), step.action[None], self.pose[None])[0]
        rows = step_rows(step.info, used, self.intrinsics, step.seconds)
        commanded = self._command(step.action)
        self.pose = rows["poses"][-1]
        action_map = self.env.action_map
        plots: dict[str, Any] = {
            **row_plots(rows, action_map.columns, action_map.units, self.first_sharpness, self.score),
            "command": pose_distance(rows["poses"], commanded),
            TIMING: {SECONDS: np.array([step.seconds])},
            **{plot: {name: np.array([value]) for name, value in s.items()} for plot, s in step.memory.items()},
        }
        if step.latents is not None:
            plots["drift"] = self._drift(*step.latents)
        self.score += float(rows["rewards"].sum())
        self._append(rows["poses"], rows["frames"], commanded, plots, self._events(step))

    def _append(
        self,
        poses: np.ndarray,
        frames: np.ndarray,
        commanded: np.ndarray,
        plots: dict[str, Any],
        events: list[Event],
        *,
        fresh: bool = False,
    ) -> None:
        videos, depth = {}, None
        if self.truth:
            seen = truth_rows(self.room, poses, self.intrinsics, frames.shape[1:3])
            videos, depth = {"truth": seen["truth_frames"]}, seen["truth_depth"]
            plots["fidelity"] = fidelity(frames, seen["truth_frames"])
        rollout = Rollout(
            poses=poses,
            intrinsics=self.intrinsics,
            frames=frames,
            depth=depth,
            commanded=commanded,
            videos=videos,
            plots=plots,
            events=events,
        )
        self.recording.append(rollout, fresh=fresh)
        self.recording.flush()

    def _command(self, action: np.ndarray) -> np.ndarray:
        """Where the actions lead as they were given, beyond their limits too: [F, 4, 4]."""
        given = given_actions(recorded(self.env), action[None], self.commanded)
        poses, self.motion = self.env.action_map.rollout(self.commanded, self.motion, given, self.env.fps)
        self.commanded = poses[:, -1]
        return poses[0]

    def _drift(self, mean: np.ndarray, deviation: np.ndarray) -> dict[str, np.ndarray]:
        """Of the latents' channels against those of the episode's first chunk."""
        if self.first_latents is None:
            self.first_latents = mean, deviation
        first_mean, first_deviation = self.first_latents
        scale = np.maximum(first_deviation, 1e-6)
        shift = np.sqrt(np.mean(((mean - first_mean) / scale) ** 2))
        return {"shift of means (std)": np.array([shift]), "ratio of std": np.array([np.mean(deviation / scale)])}

    def _events(self, step: Step) -> list[Event]:
        events = []
        if clipped := int(step.info.get("clipped", 0)):
            events.append(Event(row=0, text=f"{clipped} numbers of the action were clipped", level=WARN))
        reason = end_reason(step.info)
        if reason and not self.over:
            self.over = True
            kind = "truncated" if step.info["truncation_reason"] else "terminated"
            level = INFO if reason == "success" else WARN
            events.append(Event(row=int(step.info["end_index"]), text=f"{kind}: {reason}", level=level))
        return events
