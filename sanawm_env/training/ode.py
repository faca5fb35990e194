"""Stage `rooms-ode`: a student of few levels begins as what its teacher's many steps lead to (spec training.md 4.1)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import clip_chunks
from sanawm_env.model.sampler import denoise
from sanawm_env.training.clip_stage import ClipStage, ClipTraining, channel_weights, turned
from sanawm_env.training.latents import Clips, ClipSource, repeated
from sanawm_env.training.objective import clip_loss, of_frames, plain
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.rollouts import chunks_of
from sanawm_env.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class OdeTraining(ClipTraining):
    """Settings of the stage. timesteps: the student's levels, among those at which the teacher steps."""

    lr: float = 3e-4
    muon_lr: float | None = 0.006
    bank: int = 512
    source_batch: int = 64
    fresh_every: int = 64
    timesteps: tuple[int, ...] = (1000, 857, 667, 400)


@dataclass
class Trajectories(Clips):
    """Clips as a teacher dreams them. path: [levels + 1, B, T, channels, h, w], what it had at each level of the
    student and, last, where it arrived; `latents` is the latter.
    """

    path: Tensor


class TrajectoryBank:
    """A fixed number of a teacher's rollouts on the device, chunk after chunk as `world.step` runs them; `refresh`
    replaces the oldest.
    """

    def __init__(self, teacher: WorldModel, source: ClipSource, timesteps: tuple[int, ...], size: int) -> None:
        self.teacher, self.source, self.timesteps = teacher, source, timesteps
        made = [self._trajectories() for _ in range(-(-size // source.planner.batch))]
        self.path = torch.cat([clips.path for clips in made], dim=1)
        self.poses = torch.cat([clips.poses for clips in made])
        self.oldest = 0

    def refresh(self) -> None:
        clips = self._trajectories()
        slots = slice(self.oldest, self.oldest + clips.poses.shape[0])
        self.path[:, slots], self.poses[slots] = clips.path, clips.poses
        self.oldest = slots.stop % self.poses.shape[0]

    def draw(self, batch: int) -> Trajectories:
        rows = torch.randperm(self.poses.shape[0], device=self.poses.device)[:batch]
        path = self.path[:, rows].float()
        return Trajectories(path[-1], self.poses[rows], path, text=repeated(self.source.text, len(rows)))

    @torch.no_grad()
    def _trajectories(self) -> Trajectories:
        clips = self.source.clips()
        seen: dict[int, list[Tensor]] = {level: [] for level in self.timesteps}
        n = self.teacher.config.chunk_latents

        def note(level: int, x: Tensor) -> None:
            if level in seen:
                seen[level].append(x[:, -n:].float())

        self.teacher.sampler = functools.partial(denoise, watch=note)
        chunks: dict[int, list[Tensor]] = {level: [] for level in (*self.timesteps, 0)}
        for output in chunks_of(self.teacher, clips):
            for level in self.timesteps:  # worlds may be stepped a few at a time, in the order of the batch
                chunks[level].append(torch.cat(seen[level]))
                seen[level].clear()
            chunks[0].append(output.latents.float())
        first = clips.latents[:, :1].float()
        path = torch.stack([torch.cat([first, *parts], dim=1) for parts in chunks.values()]).bfloat16()
        return Trajectories(path[-1], clips.poses, path, text=clips.text)


class OdeStage(ClipStage):
    """The stage: every chunk at one of the levels, or clean, learns where its trajectory ends."""

    settings: OdeTraining

    def __init__(
        self,
        settings: OdeTraining,
        teacher: WorldModel,
        ranks: Ranks,
        earlier: dict[str, Any] | None = None,
        text: Mapping[str, Tensor] | None = None,
    ) -> None:
        """teacher: a model with many levels, at which the student starts. text: of `ClipStage`. ConfigError: a level of
        the student's is not among them.
        """
        unknown = [level for level in settings.timesteps if level not in teacher.config.timesteps]
        if unknown or not settings.timesteps:
            raise ConfigError(
                f"timesteps are {settings.timesteps}, allowed are levels at which the teacher steps, "
                f"{teacher.config.timesteps}; take some of these."
            )
        student = turned(teacher, "distilled", timesteps=settings.timesteps)
        super().__init__(settings, student, ranks, earlier, text=text)
        frozen = copy.deepcopy(teacher.denoiser).to(self.device, torch.float32)
        self.teacher = WorldModel(teacher.config, frozen, self.autoencoder)

    def new_bank(self, is_long: bool = False) -> tuple[TrajectoryBank, Tensor]:
        with self.run.autocast():
            bank = TrajectoryBank(self.teacher, self.source(is_long), self.settings.timesteps, self.settings.bank)
        return bank, channel_weights(self.autoencoder, bank.draw(4).latents)

    def refresh(self, bank: TrajectoryBank) -> None:
        with self.run.autocast():
            bank.refresh()

    def step(self, bank: Any, clips: Trajectories, weight: Tensor) -> tuple[Tensor, Tensor]:
        chunks = clip_chunks(clips.latents.shape[1], self.world.chunk_latents)
        batch, levels = clips.latents.shape[0], torch.tensor([*self.settings.timesteps, 0.0], device=self.device)
        drawn = torch.randint(len(levels), (batch, len(chunks.lengths)), device=self.device)
        frames = torch.cat([drawn[:, [k]].expand(-1, n) for k, n in enumerate(chunks.lengths)], dim=1)
        noisy = clips.path.gather(0, frames[None, :, :, None, None, None].expand_as(clips.path[:1]))[0]
        level = of_frames(levels[drawn], chunks)
        with self.run.autocast():
            given = self.given(clips)
            loss = clip_loss(self.denoiser, clips.latents, level, given, chunks, weight, plain, noisy)
        return loss.detach(), self.run.descend(loss)
