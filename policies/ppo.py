"""The policy that PPO leaves behind: a small network, its spaces, and where it comes from, in one file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sanawm_env.config import from_mapping
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import SpaceError, StorageError
from sanawm_env.policies.goal_network import GoalNetwork, NetworkConfig, View
from sanawm_env.spaces import describe_space, read_space

FORMAT = "sanawm-ppo-policy-1"


class Actor(nn.Module):
    """The action [B, A] in the middle of those that the policy would try, for what a `View` gives."""

    def __init__(self, view: View, columns: int, config: NetworkConfig) -> None:
        super().__init__()
        self.features = GoalNetwork(view.observation_space, config)
        self.head = nn.Sequential(
            nn.Linear(config.features, config.hidden), nn.Tanh(), nn.Linear(config.hidden, columns)
        )

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        return self.head(self.features(seen))


class PpoPolicy:
    """A `Policy` without a state: the same observation always gets the same action.

    observation_space, action_space: of one world of the environment that it was trained in, of kind "dict" and a Box
    [A]. provenance: where it comes from, as plain JSON. SpaceError: other kinds of spaces.
    """

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        network: NetworkConfig,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
            raise SpaceError(
                f"action_space is {action_space}, allowed is a Box of shape (A,); make the environment with a "
                "continuous action_map and action_mode='hold'."
            )
        self.observation_space, self.action_space = observation_space, action_space
        self.network, self.provenance = network, dict(provenance or {})
        self.view = View(observation_space, network)
        self.actor = Actor(self.view, action_space.shape[0], network).requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.actor.parameters()).device

    def initial_state(self, worlds: int) -> None:
        """Nothing: it remembers nothing."""

    def act(self, observation: Any, state: None = None) -> tuple[np.ndarray, None]:
        """Actions float32 [B, A] within the space, and no state. observation: of B worlds, NumPy or tensors."""
        seen = {name: part.to(self.device) for name, part in self.view(observation).items()}
        actions = self.actor(seen).cpu().numpy()
        return np.clip(actions, self.action_space.low, self.action_space.high), None

    def reset(self, state: None, worlds: np.ndarray) -> None:
        """Nothing to forget."""

    def save(self, path: Path | str) -> None:
        """Writes weights, spaces and provenance as one safetensors file, whole or not at all. StorageError."""
        told = {
            "network": dataclasses.asdict(self.network),
            "observation_space": describe_space(self.observation_space),
            "action_space": describe_space(self.action_space),
            "provenance": self.provenance,
        }
        weights = {name: x.cpu().contiguous() for name, x in self.actor.state_dict().items()}
        with appearing(Path(path)) as draft:
            save_file(weights, draft, {"format": FORMAT, "policy": json.dumps(told)})

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> PpoPolicy:
        """The policy that a file holds, to act on a device. StorageError: no such file, or it holds none."""
        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"policy {path} cannot be read ({error}); pass the policy.safetensors of a training."
            ) from error
        if metadata.get("format") != FORMAT:
            raise StorageError(f"{path} has format {metadata.get('format')!r}, allowed is {FORMAT!r}.")
        told = json.loads(metadata["policy"])
        observation, action = read_space(told["observation_space"]), read_space(told["action_space"])
        policy = cls(observation, action, from_mapping(NetworkConfig, told["network"]), told["provenance"])
        policy.actor.load_state_dict(weights)
        policy.actor.to(device)
        return policy
