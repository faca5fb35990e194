"""Demonstrations of the scripted expert in an episode store, from the learned world or the truth: `sanawm collect`.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.demonstrations key=value ...`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from sanawm_env.bare import run_bare
from sanawm_env.datasets.layout import METADATA
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.errors import ConfigError
from sanawm_env.placement import host_threads
from sanawm_env.policies.episodes import action_noise, run_episodes
from sanawm_env.policies.expert import Expert, ExpertConfig, Ways
from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.wrappers.episodes import EpisodeLog, recordable
from sanawm_env.wrappers.running_episodes import RunningEpisode


@dataclass(frozen=True, kw_only=True)
class Collect:
    """What to collect.

    out: the store. episodes: one a seed, from first_seed on; held-out rooms begin at 10^9. world: "dream", the learned
    world, or "truth", the ray-caster. bundle, device: as of the environments. batch: worlds at a time. task: "goto", or
    a mapping of its fields. noise: standard deviations that are added to the expert's (v, w), m/s and rad/s, for the
    length of a step; the store then shows how it comes back. expert: how it drives. durable: as of `EpisodeWriter`.
    """

    out: Path
    episodes: int = 200
    first_seed: int = 0
    world: Literal["dream", "truth"] = "truth"
    bundle: str = "rooms"
    device: str | None = None
    batch: int = 16
    task: Any = "goto"
    noise: tuple[float, float] = (0.1, 0.25)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    picture_quality: int = 95
    durable: bool = True

    def __post_init__(self) -> None:
        if min(self.episodes, self.batch) < 1 or self.first_seed < 0 or min(self.noise) < 0:
            raise ConfigError(
                f"episodes is {self.episodes}, batch {self.batch}, first_seed {self.first_seed}, noise {self.noise}; "
                "allowed are counts >= 1, and >= 0 for the rest."
            )

    @property
    def job(self) -> dict[str, Any]:
        """What decides an episode beside its seed, as plain JSON; kept with its provenance."""
        told = {"expert": dataclasses.asdict(self.expert), "noise": list(self.noise), "task": self.task}
        plain: dict[str, Any] = json.loads(json.dumps(told))
        return plain


def collect(config: Collect, env: SanaWMVectorEnv | None = None) -> dict[str, Any]:
    """Adds the episodes that the store does not have yet, and returns how many ended for which reason.

    Called again, it goes on where it was cut off: an episode that had not ended leaves nothing. env: takes the place of
    the one that the config describes; made with frames="all", observation="dict" and a task with a goal.

    The store has, beside what every store has, `start_goals` and `expert_actions`.
    ConfigError: the store holds demonstrations of another job. SpaceError: the expert cannot drive this environment.
    """
    done = _done(config, env)
    seeds = [seed for seed in range(config.first_seed, config.first_seed + config.episodes) if seed not in done]
    if seeds:
        env = make_env(config, min(config.batch, len(seeds))) if env is None else env
        expert = Expert(env, config.expert)
        log = DemonstrationLog(env, expert, config)
        noise = action_noise(env.single_action_space, config.noise)
        try:
            with host_threads(env.model.device, torch.get_num_threads()):
                ran = run_episodes(env, expert, seeds, perturb=noise, watcher=log)
                for one in tqdm(ran, total=len(seeds), unit="episode", desc="collect", disable=None):
                    done[one.seed] = one.reason
        finally:
            log.close()
    return {"episodes": len(done), "collected": len(seeds), **Counter(done.values()), "store": str(config.out)}


def make_env(config: Collect, worlds: int) -> SanaWMVectorEnv:
    """The environment that a config describes."""
    kind = SanaWMVectorEnv if config.world == "dream" else RoomsTruthVectorEnv
    options: dict[str, Any] = {"task": config.task, "observation": "dict", "frames": "all", "device": config.device}
    return kind(worlds, config.bundle, **options)


class DemonstrationLog(EpisodeLog):
    """An `EpisodeLog` for `run_episodes` that also asks the expert what it would do at every frame, not only where it
    is to act. An episode that is cut off leaves nothing."""

    def __init__(self, env: SanaWMVectorEnv, expert: Expert, config: Collect) -> None:
        codec = {"picture_codec": "jpeg", "picture_quality": config.picture_quality}
        super().__init__(recordable(env), config.out, goals=True, extra=config.job, codec=codec, durable=config.durable)
        self.expert = expert

    def began(self, env: Any, info: Mapping[str, Any], worlds: Sequence[int]) -> None:
        self.start(info, worlds, env.last_timing["reset_seconds"])

    def stepped(self, env: Any, info: Mapping[str, Any], taken: np.ndarray, wanted: np.ndarray, ways: Ways) -> None:
        between = np.moveaxis(info["poses"][:, :-1, :3], 1, 0)
        shown = [wanted, *(self.expert.show(pose, info["goal"], ways) for pose in between)]
        self.step(info, taken, env.last_timing["step_seconds"], expert=np.stack(shown, axis=1))

    def accept(self, one: RunningEpisode, reason: str) -> bool:
        return bool(reason)


def _done(config: Collect, env: SanaWMVectorEnv | None) -> dict[int, str]:
    """Reason of the end of each episode of the config that its store has, by seed."""
    if not (config.out / METADATA).exists():
        return {}
    store = EpisodeStore(config.out)
    known = [store.describe(index) for index in range(len(store))]
    for told in known:
        bundle = str(told["bundle"])
        alike = (
            bundle.endswith("-truth") == (config.world == "truth") if env is None else bundle == env.model.config.name
        )
        if told["extra"] != config.job or not alike:
            raise ConfigError(
                f"{config.out} holds demonstrations from {bundle!r} with {told['extra']}, asked for are "
                f"{config.world!r} with {config.job}; go on with those, or choose another store with out=."
            )
    last = config.first_seed + config.episodes
    return {told["seed"]: told["reason"] for told in known if config.first_seed <= told["seed"] < last}


def main(arguments: Sequence[str]) -> int:
    """Collects what `key=value` arguments describe; see `run_bare`."""
    return run_bare(Collect, collect, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
