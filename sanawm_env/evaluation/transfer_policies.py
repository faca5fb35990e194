"""The policies that the transfer benchmark judges: how they are named, made, and what each may know."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from sanawm_env.config import from_mapping
from sanawm_env.errors import ConfigError, StorageError
from sanawm_env.policies.base import Policy
from sanawm_env.policies.cem import CEM, ICEM, CEMConfig, ICEMConfig
from sanawm_env.policies.cloning import DESCRIPTION, WEIGHTS, ClonedPolicy
from sanawm_env.policies.costs import GoalPlaceCost, TaskCost
from sanawm_env.policies.expert import Expert
from sanawm_env.policies.exploring import SmoothWalk
from sanawm_env.policies.mppi import MPPI, MPPIConfig
from sanawm_env.policies.ppo import PpoPolicy
from sanawm_env.policies.straight import Straight
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.wrappers.dream_beside import DreamBeside

Where = Literal["dream", "truth"]
PLANNERS: dict[str, tuple[type, type]] = {
    "cem": (CEM, CEMConfig),
    "icem": (ICEM, ICEMConfig),
    "mppi": (MPPI, MPPIConfig),
}
SEARCH = {"horizon": 3, "candidates": 16, "iterations": 2, "spread": 0.5}
ELITES = {"cem": {"elites": 4}, "icem": {"elites": 4}, "mppi": {}}


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """A policy to judge.

    kind: "expert" and "straight" of those modules, "walk" (exploring.SmoothWalk), "cloned" (a folder), "ppo" (a file)
    or "plan". path: of the latter two. trained: where. method: policies of one method are compared, one trained in the
    dream with one trained in the truth; the kind if None. noise: standard deviation added to (v, w) in every step, m/s
    and rad/s, which makes any policy a worse one. speed: m/s, of "straight". planner, cost, search: of "plan", the
    latter two "task" (TaskCost) or "place" (GoalPlaceCost), and fields of the planner's configuration.
    """

    kind: Literal["expert", "straight", "walk", "cloned", "ppo", "plan"]
    path: Path | None = None
    trained: Literal["dream", "truth", "none"] = "none"
    method: str | None = None
    noise: float = 0.0
    speed: float = 0.7
    planner: Literal["cem", "icem", "mppi"] = "cem"
    cost: Literal["task", "place"] = "task"
    search: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        learned = self.kind in ("cloned", "ppo")
        if learned != (self.path is not None):
            raise ConfigError(
                f"path of a policy of kind {self.kind!r} is {self.path}; "
                + ("give the folder or file that its training wrote." if learned else "leave it out.")
            )
        if learned == (self.trained == "none"):
            raise ConfigError(
                f"trained of a policy of kind {self.kind!r} is {self.trained!r}, allowed is "
                + ("'dream' or 'truth'." if learned else "'none'.")
            )
        if not self.noise >= 0:
            raise ConfigError(f"noise is {self.noise}, allowed is a number >= 0.")
        if self.search and self.kind != "plan":
            raise ConfigError(f"search was given for a policy of kind {self.kind!r}, which does not search; drop it.")

    def identity(self) -> dict[str, Any]:
        """What decides how it acts, as plain JSON: its settings, and of files the SHA-256 in place of the path.
        StorageError: there are none."""
        told: dict[str, Any] = {"kind": self.kind, "trained": self.trained, "noise": self.noise}
        told["method"] = self.method or self.kind
        if self.kind == "straight":
            told["speed"] = self.speed
        if self.kind == "plan":
            told |= {"planner": self.planner, "cost": self.cost}
            told["search"] = SEARCH | ELITES[self.planner] | self.search
        if self.path is not None:
            told["sha256"] = _digest(self)
        return told


class Knows(NamedTuple):
    """What a policy may know of a world: whether it looks at pictures, is told where the goal lies, has the floor
    plan."""

    pictures: bool
    goal: bool
    plan: bool


def knows(spec: PolicySpec, policy: Policy[Any]) -> Knows:
    """What a policy may know. Planners dream pictures that these costs do not look at."""
    pictures = spec.kind == "cloned" or (isinstance(policy, PpoPolicy) and policy.network.pictures)
    plan = spec.kind == "expert" or (spec.kind == "plan" and spec.cost == "task")
    return Knows(pictures=pictures, goal=spec.kind != "walk", plan=plan)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Where policies are judged: as many worlds of each kind. beside: the truth with the dream going along."""

    dream: SanaWMVectorEnv
    truth: SanaWMVectorEnv
    beside: DreamBeside

    def made(self, spec: PolicySpec, where: Where, device: torch.device) -> tuple[Any, Policy[Any]]:
        """The environment that a policy acts in there, and the policy. StorageError, ConfigError, SpaceError."""
        env: SanaWMVectorEnv = self.dream if where == "dream" else self.truth
        if spec.kind == "plan":
            return self.beside if where == "truth" else env, _planner(spec, self.dream)
        spaces = env.single_observation_space, env.single_action_space
        if spec.kind == "expert":
            return env, Expert(env)
        if spec.kind == "straight":
            return env, Straight(*spaces, speed=spec.speed, seconds=env.frames_per_step / env.fps)
        if spec.kind == "walk":
            return env, SmoothWalk(*spaces)
        assert spec.path is not None
        load = ClonedPolicy.load if spec.kind == "cloned" else PpoPolicy.load
        return env, load(spec.path, device=device)


def _planner(spec: PolicySpec, dream: SanaWMVectorEnv) -> Policy[Any]:
    kind, config = PLANNERS[spec.planner]
    cost = TaskCost() if spec.cost == "task" else GoalPlaceCost()
    made: Policy[Any] = kind(dream, cost, from_mapping(config, spec.identity()["search"]))
    return made


def _digest(spec: PolicySpec) -> str:
    assert spec.path is not None
    files = [spec.path / name for name in (DESCRIPTION, WEIGHTS)] if spec.kind == "cloned" else [spec.path]
    found = hashlib.sha256()
    try:
        for file in files:
            found.update(file.read_bytes())
    except OSError as error:
        wanted = "the folder that `sanawm train cloning` wrote" if spec.kind == "cloned" else "a policy.safetensors"
        raise StorageError(f"{spec.path} cannot be read ({error.strerror}); give {wanted}.") from error
    return found.hexdigest()


def named(*groups: Mapping[str, PolicySpec]) -> dict[str, PolicySpec]:
    """All policies by name. ConfigError: none, or two of one name."""
    found: dict[str, PolicySpec] = {}
    for group in groups:
        if twice := sorted(found.keys() & group.keys()):
            raise ConfigError(f"policies {twice} have the names of baselines; give them others.")
        found |= group
    if not found:
        raise ConfigError("there is no policy to judge; name one in policies, or leave the baselines.")
    return found


def baselines() -> dict[str, PolicySpec]:
    """The policies that are always judged, from the best to those that rarely arrive."""
    found = {"expert": PolicySpec(kind="expert"), "straight": PolicySpec(kind="straight")}
    for noise in (0.5, 1.0, 1.5, 2.5):
        found[f"straight, noise {noise:g}"] = PolicySpec(kind="straight", noise=noise)
    found["walk"] = PolicySpec(kind="walk")
    found["plan, reward"] = PolicySpec(kind="plan", cost="task")
    found["plan, place"] = PolicySpec(kind="plan", cost="place")
    return found
