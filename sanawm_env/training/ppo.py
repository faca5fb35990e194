"""PPO in the dream or in the truth of Rooms: `sanawm train ppo`. stable-baselines3 learns, worlds step in one batch.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.training.ppo out=FOLDER`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sanawm_env.bare import run_bare
from sanawm_env.env_config import is_count
from sanawm_env.errors import ConfigError
from sanawm_env.placement import host_threads
from sanawm_env.policies.goal_network import NetworkConfig
from sanawm_env.running import SEEDS
from sanawm_env.vector_env import SanaWMVectorEnv


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How PPO learns.

    rollout: steps of each world between updates. batch: steps in a gradient, epochs: passes over a rollout. lr: at the
    start, falling to a tenth. discount: of the reward a step later. trace: lambda of generalised advantages. clip: of
    the ratio between new and old policy. entropy, value: weights of these terms of the loss. max_norm: of the gradient.
    deviation: of actions around their middle at the start.
    """

    rollout: int = 16
    batch: int = 1024
    epochs: int = 4
    lr: float = 1e-3
    discount: float = 0.97
    trace: float = 0.9
    clip: float = 0.2
    entropy: float = 0.0
    value: float = 0.5
    max_norm: float = 0.5
    deviation: float = 0.5

    def __post_init__(self) -> None:
        for name in ("rollout", "batch", "epochs", "lr", "clip", "max_norm", "deviation"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"learning.{name} is {getattr(self, name)}, allowed is > 0.")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"learning.{name} is {getattr(self, name)}, allowed is 0 .. 1.")


@dataclass(frozen=True, kw_only=True)
class PpoTraining:
    """A training.

    out: folder of policy.safetensors (a `policies.ppo.PpoPolicy`), progress.jsonl, and checkpoint.pt, from which a
    training that was stopped goes on. environment: where it learns, "dream" (the learned world) or "truth" (the
    ray-caster); bundle: whose. task: as of an environment. device: the best there is with null. num_envs: worlds at a
    time. minutes: wall clock of this run; steps: of all worlds and runs together; the first that is reached ends it,
    null is no limit. horizon: frames of an episode beyond the task's own limit. bundle: a name, a folder, or a model.
    """

    out: Path
    environment: Literal["dream", "truth"] = "dream"
    bundle: Any = "rooms"
    task: Any = "goto"
    device: str | None = None
    num_envs: int = 64
    minutes: float | None = 5.0
    steps: int | None = None
    horizon: int | None = None
    seed: int = 0
    log_seconds: float = 10.0
    save_seconds: float = 60.0
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learning: Learning = field(default_factory=Learning)

    def __post_init__(self) -> None:
        if not is_count(self.num_envs) or self.seed < 0:
            raise ConfigError(f"num_envs is {self.num_envs} and seed {self.seed}, allowed are >= 1 and >= 0.")
        limits = {"minutes": self.minutes, "steps": self.steps}
        if all(limit is None for limit in limits.values()) or any(x is not None and x <= 0 for x in limits.values()):
            raise ConfigError(f"{limits}: allowed are numbers > 0, one or both; say when to stop.")


def make_worlds(config: PpoTraining) -> SanaWMVectorEnv:
    """The worlds that a training learns in. Observations stay on the device until they are shrunk."""
    from sanawm_env.truth import RoomsTruthVectorEnv

    kind = SanaWMVectorEnv if config.environment == "dream" else RoomsTruthVectorEnv
    return kind(
        config.num_envs,
        config.bundle,
        device=config.device,
        task=config.task,
        horizon=config.horizon,
        observation="dict",
        frames="none",
        arrays="torch",
        autoreset_mode="SameStep",
    )


def run(config: PpoTraining, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains until the clock or the steps say stop, leaves the policy in `config.out`, and returns the last figures.

    `progress` gets a line of text every `log_seconds`. Interrupted, what was saved last stays. MissingExtraError
    without the extra `rl`.
    """
    import torch

    # stable-baselines3 is loaded only by whoever trains.
    from sanawm_env.training.ppo_learner import Learner

    if config.num_envs * config.learning.rollout < 2:
        raise ConfigError(
            "num_envs times learning.rollout is 1, allowed is >= 2: advantages are compared in a rollout."
        )
    env = make_worlds(config)
    try:
        with host_threads(env.model.device, torch.get_num_threads()):
            return Learner(config, env, progress).learn()
    finally:
        env.close()


def first_seed(config: PpoTraining, steps: int) -> int:
    """Of the worlds of a run that begins after so many steps: other rooms than before, none of those held out."""
    import numpy as np

    drawn = np.random.SeedSequence([config.seed, steps]).generate_state(1, np.uint64)[0]
    return int(drawn % np.uint64(SEEDS - config.num_envs))


def rate(config: PpoTraining, share: float) -> float:
    """Learning rate when so much of the training, 0 .. 1, is done."""
    return config.learning.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def main(arguments: Sequence[str]) -> int:
    """Trains what `key=value` arguments describe; see `run_bare`."""
    return run_bare(PpoTraining, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
