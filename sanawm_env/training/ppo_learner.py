"""stable-baselines3's PPO around our network, our clock and our files. Needs the extra `rl`."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sanawm_env.benchmarks.machine import commit
from sanawm_env.policies.goal_network import GoalNetwork, NetworkConfig, View
from sanawm_env.policies.ppo import PpoPolicy
from sanawm_env.training.loop import load_checkpoint, save_checkpoint
from sanawm_env.training.ppo import PpoTraining, first_seed, rate
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.wrappers.sb3 import SB3VecEnv  # its error names the extra, so it comes before the package

# isort: split
from stable_baselines3 import PPO, __version__
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecMonitor


class Features(BaseFeaturesExtractor):
    """Our network in the place of stable-baselines3's."""

    def __init__(self, observation_space: Any, network: NetworkConfig) -> None:
        super().__init__(observation_space, network.features)
        self.network = GoalNetwork(observation_space, network)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Features [B, features]."""
        features: Tensor = self.network(observations)
        return features


class Learner:
    """One run of a training, gone on from its checkpoint where there is one. env: its worlds, to be closed by whoever
    made them. steps: of all worlds so far, in earlier runs too."""

    def __init__(self, config: PpoTraining, env: SanaWMVectorEnv, progress: Callable[[str], None]) -> None:
        self.config, self.env, self.progress = config, env, progress
        self.policy = PpoPolicy(env.single_observation_space, env.single_action_space, config.network)
        worlds = SB3VecEnv(env, View(env.single_observation_space, config.network))
        saved = load_checkpoint(self.checkpoint, env.model.device) or {}
        self.steps = self.first_step = int(saved.get("steps", 0))
        self.spent, self.began = float(saved.get("seconds", 0.0)), time.monotonic()
        self.model = _make_model(config, VecMonitor(worlds), env.model.device, lambda _: rate(config, self.share))
        self.model.num_timesteps = self.steps
        if saved:
            self.model.policy.load_state_dict(saved["policy"])
            self.model.policy.optimizer.load_state_dict(saved["optimiser"])
        worlds.seed(first_seed(config, self.steps))

    @property
    def checkpoint(self) -> Any:
        """File that the training goes on from."""
        return self.config.out / "checkpoint.pt"

    @property
    def share(self) -> float:
        """How much of this run's time, or of all steps, is over, 0 .. 1."""
        clock = 0.0 if self.config.minutes is None else (time.monotonic() - self.began) / (60 * self.config.minutes)
        count = 0.0 if self.config.steps is None else self.steps / self.config.steps
        return min(1.0, max(clock, count))

    def learn(self) -> dict[str, Any]:
        """Learns until it is over, saves, and returns the latest figures."""
        watch = Watch(self)
        if self.share < 1:
            left = (self.config.steps or 10**12) - self.steps
            self.model.learn(left, callback=watch, log_interval=10**9, reset_num_timesteps=False)
        figures = watch.figures()
        self.save(figures)
        return figures

    def save(self, figures: dict[str, Any]) -> None:
        """Writes the checkpoint and the policy, each whole or not at all."""
        learnt: Any = self.model.policy
        save_checkpoint(
            self.checkpoint,
            policy=learnt.state_dict(),
            optimiser=learnt.optimizer.state_dict(),
            steps=self.steps,
            seconds=self.spent + time.monotonic() - self.began,
        )
        actor = self.policy.actor
        actor.features.load_state_dict(learnt.features_extractor.network.state_dict())
        actor.head.load_state_dict(nn.Sequential(*learnt.mlp_extractor.policy_net, learnt.action_net).state_dict())
        self.policy.provenance = self._provenance(figures)
        self.policy.save(self.config.out / "policy.safetensors")

    def _provenance(self, figures: dict[str, Any]) -> dict[str, Any]:
        settings = {f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.config)}
        settings |= {"out": self.config.out.name, "bundle": str(self.env.model.config.name)}
        settings |= {name: dataclasses.asdict(settings[name]) for name in ("network", "learning")}
        return {
            "settings": settings,
            "world": self.env.model.fingerprint,
            "action_map": repr(self.env.action_map),
            "minutes": round((self.spent + time.monotonic() - self.began) / 60, 2),
            "device": torch.cuda.get_device_name() if self.model.device.type == "cuda" else "cpu",
            "versions": {"torch": torch.__version__, "stable_baselines3": __version__},
            "commit": commit(),
            "figures": figures,
        }


class Watch(BaseCallback):
    """Stops the training when it is over, counts what became of episodes, reports and saves."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner, self.config = learner, learner.config
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.ends: Counter[str] = Counter()
        self.latest: dict[str, Any] = {}
        self.logged = self.saved = time.monotonic()
        self.logged_steps = learner.first_step

    def figures(self) -> dict[str, Any]:
        """Steps and seconds of the run, and of the episodes since the last line how they went."""
        episodes = len(self.returns)
        ended = {reason: count / episodes for reason, count in sorted(self.ends.items())}
        mean = {"return": sum(self.returns) / episodes, "length": sum(self.lengths) / episodes} if episodes else {}
        rounded = {name: round(value, 4) for name, value in (mean | ended).items()}
        if episodes or not self.latest:
            self.latest = {"episodes": episodes, **rounded}
        learner = self.learner
        return {
            "steps": learner.steps,
            "seconds": round(time.monotonic() - learner.began, 1),
            **self.latest,
        }

    def _on_step(self) -> bool:
        self.learner.steps = self.num_timesteps
        for info in self.locals["infos"]:
            if "episode" in info:
                self.returns.append(float(info["episode"]["r"]))
                self.lengths.append(int(info["episode"]["l"]))
                self.ends[info["termination_reason"] or info["truncation_reason"]] += 1
        return bool(self.learner.share < 1)

    def _on_rollout_start(self) -> None:
        now = time.monotonic()
        if now - self.logged >= self.config.log_seconds and self.returns:
            steps = self.learner.steps
            speed = (steps - self.logged_steps) / (now - self.logged)
            figures = self.figures() | {"steps_per_second": round(speed, 1), "deviation": round(self._deviation(), 3)}
            self.config.out.mkdir(parents=True, exist_ok=True)
            with (self.config.out / "progress.jsonl").open("a") as file:
                file.write(json.dumps(figures) + "\n")
            self.learner.progress("  ".join(f"{name} {value}" for name, value in figures.items()))
            self.returns, self.lengths, self.ends = [], [], Counter()
            self.logged, self.logged_steps = now, steps
        if now - self.saved >= self.config.save_seconds:
            self.learner.save(self.figures())
            self.saved = now

    def _deviation(self) -> float:
        return float(self.learner.model.policy.log_std.detach().exp().mean())


def _make_model(config: PpoTraining, worlds: Any, device: torch.device, schedule: Callable[[float], float]) -> PPO:
    """PPO with our features, one hidden layer for the action and one for the value."""
    learning, network = config.learning, config.network
    return PPO(
        "MultiInputPolicy",
        worlds,
        learning_rate=schedule,
        n_steps=learning.rollout,
        batch_size=min(learning.batch, learning.rollout * config.num_envs),
        n_epochs=learning.epochs,
        gamma=learning.discount,
        gae_lambda=learning.trace,
        clip_range=learning.clip,
        ent_coef=learning.entropy,
        vf_coef=learning.value,
        max_grad_norm=learning.max_norm,
        seed=config.seed,
        device=device,
        policy_kwargs={
            "features_extractor_class": Features,
            "features_extractor_kwargs": {"network": network},
            "net_arch": {"pi": [network.hidden], "vf": [network.hidden]},
            "log_std_init": math.log(learning.deviation),
            "normalize_images": False,  # the network does it itself
        },
    )
