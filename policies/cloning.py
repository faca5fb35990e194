"""A policy cloned from demonstrations: acts on pictures, goal and velocity; as files, or as an exported graph."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sanawm_env.actions import read_action_map
from sanawm_env.config import from_mapping
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import ActionError, SpaceError, StorageError
from sanawm_env.policies.cloning_network import CloningNetwork, Deployed, NetworkConfig
from sanawm_env.spaces import action_space, observation_space

FORMAT, WEIGHTS, DESCRIPTION = "sanawm-cloned-policy", "policy.safetensors", "policy.json"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a policy was made for: pictures of this size, steps of F frames at fps frames/s, one action of an action map
    (its `repr`) held for each."""

    height: int
    width: int
    fps: float
    frames_per_step: int
    action_map: str

    def observation_space(self) -> Any:
        """Of one world; of its parts "image", "goal" and "velocity" are looked at."""
        return observation_space("dict", self.frames_per_step, self.height, self.width, goal=True)

    def action_space(self) -> Any:
        """Of one world."""
        return action_space(read_action_map(self.action_map), "hold", self.frames_per_step)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What the policy keeps of B worlds: actions float32 [B, K, A], and how many of them were carried out [B]."""

    actions: np.ndarray
    used: np.ndarray


class ClonedPolicy:
    """A `Policy`. Of every chunk of K actions that it predicts it carries out the first `config.execute`.

    fit: what it was made for. config, weights: of its network; new random weights if None. provenance: where it comes
    from, plain JSON. device: where it computes; observations may be NumPy arrays or tensors on any device.
    """

    def __init__(
        self,
        fit: Fit,
        config: NetworkConfig,
        weights: Mapping[str, Tensor] | None = None,
        *,
        provenance: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.fit, self.config, self.provenance = fit, config, dict(provenance or {})
        self.device = torch.device(device)
        self.observation_space, self.action_space = fit.observation_space(), fit.action_space()
        config.check_size(fit.height, fit.width)
        low, high = (torch.from_numpy(limit.copy()) for limit in (self.action_space.low, self.action_space.high))
        network = CloningNetwork(config, (fit.height // config.shrink, fit.width // config.shrink), high)
        if weights is not None:
            network.load_state_dict(dict(weights))
        self.module = Deployed(network, low, high).to(self.device).eval()

    @property
    def network(self) -> CloningNetwork:
        """From shrunk pictures to actions in units of the largest: what is trained."""
        return self.module.network

    def initial_state(self, worlds: int) -> Planned:
        """Nothing is planned."""
        shape = (worlds, self.config.chunk, *self.action_space.shape)
        return Planned(actions=np.zeros(shape, np.float32), used=np.full(worlds, self.config.execute))

    def reset(self, state: Planned, worlds: np.ndarray) -> Planned:
        """Forgets what is planned for these worlds."""
        return Planned(actions=state.actions, used=np.where(worlds, self.config.execute, state.used))

    def act(self, observation: Any, state: Planned) -> tuple[np.ndarray, Planned]:
        """Actions float32 [B, A] of the coming step. ActionError where the network gives no finite number."""
        due = state.used >= self.config.execute
        actions, used = state.actions, np.where(due, 0, state.used)
        if due.any():
            actions = np.where(due[:, None, None], self.plan(observation), actions)
        rows = np.arange(len(used))
        return actions[rows, used], Planned(actions=actions, used=used + 1)

    def plan(self, observation: Any) -> np.ndarray:
        """Actions float32 [B, K, A] of the next K steps."""
        with torch.inference_mode():
            given = [torch.as_tensor(observation[key], device=self.device) for key in ("image", "goal", "velocity")]
            planned = self.module(*given).cpu().numpy()
        if not np.isfinite(planned).all():
            world = int(np.flatnonzero(~np.isfinite(planned).all(axis=(1, 2)))[0])
            raise ActionError(
                f"the network gave {planned[world, 0].tolist()} for world {world}, allowed are finite numbers; look "
                "for NaN in its weights or in the observation's goal and velocity."
            )
        return np.asarray(planned, np.float32)

    def save(self, folder: str | Path) -> None:
        """Writes `policy.safetensors` and `policy.json` into a folder, which appears whole or not at all."""
        told = {
            "format": FORMAT,
            "fit": dataclasses.asdict(self.fit),
            "network": dataclasses.asdict(self.config),
            "observation_space": str(self.observation_space),
            "action_space": str(self.action_space),
            "provenance": self.provenance,
        }
        with appearing(Path(folder)) as draft:
            draft.mkdir()
            weights = {name: x.detach().cpu().contiguous() for name, x in self.network.state_dict().items()}
            save_file(weights, draft / WEIGHTS)
            (draft / DESCRIPTION).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """The policy that `save` has written. StorageError: there is none, or it is damaged. `spaces.check_policy`
        compares it with an environment."""
        folder = Path(folder)
        try:
            told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            if told.get("format") != FORMAT:
                raise StorageError(f"{folder} holds {told.get('format')!r}, expected {FORMAT!r}; give a cloned policy.")
            fit, config = from_mapping(Fit, told["fit"]), from_mapping(NetworkConfig, told["network"])
            weights = load_file(folder / WEIGHTS)
            return cls(fit, config, weights, provenance=told["provenance"], device=device)
        except StorageError:
            raise
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise StorageError(
                f"{folder} is no cloned policy ({reason}); give the folder that training wrote."
            ) from error

    def export(self, path: str | Path) -> None:
        """Writes the network as a graph of `torch.export` (a .pt2 file), which runs without this package:
        `torch.export.load(path).module()(pictures, goal, velocity)` as `Deployed.forward`, for any number of worlds."""
        fit = self.fit
        # Two worlds: a batch of one would be taken for a constant.
        pictures = torch.zeros(2, fit.height, fit.width, 3, dtype=torch.uint8, device=self.device)
        goal, velocity = (torch.zeros(2, count, device=self.device) for count in (3, 6))
        worlds = {0: torch.export.Dim("worlds")}
        graph = torch.export.export(self.module, (pictures, goal, velocity), dynamic_shapes=(worlds, worlds, worlds))
        with appearing(Path(path)) as draft:
            torch.export.save(graph, draft)


def check_fits(fit: Fit, other: Fit, what: str) -> None:
    """SpaceError unless two policies or stores were made for the same."""
    if fit != other:
        raise SpaceError(
            f"{what} is for {other}, expected {fit}; record with one environment, or train anew with out=."
        )
