"""What a cloned policy learns from: an episode store as tensors on the device, its pictures decoded and shrunk once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sanawm_env.capacity import check_capacity
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.torch_data import as_tensors
from sanawm_env.datasets.union import open_store
from sanawm_env.datasets.windows import Windows, WindowSpec
from sanawm_env.errors import ConfigError, StorageError
from sanawm_env.policies.cloning import Fit, check_fits
from sanawm_env.policies.cloning_network import NetworkConfig, shrunk
from sanawm_env.rigid import CAMERA_FROM_BODY, body_velocity

_TOGETHER = 256  # windows that are read at a time


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """N instants at which an expert chose an action. pictures: uint8 [N, 3, h, w], shrunk. goal [N, 3], velocity [N, 6]
    as an observation has them. actions: [N, K, A], the expert's of the next K steps, in SI units; valid: bool [N, K],
    false where the episode had ended. episode: int64 [N], number in the store."""

    pictures: Tensor
    goal: Tensor
    velocity: Tensor
    actions: Tensor
    valid: Tensor
    episode: Tensor

    def __len__(self) -> int:
        return len(self.goal)

    def rows(self, index: Tensor) -> Demonstrations:
        """These instants alone."""
        return Demonstrations(**{name: values[index] for name, values in vars(self).items()})


def fit_of(stores: Sequence[EpisodeStore]) -> Fit:
    """What a policy that learns from these stores is made for. StorageError: a store has no episode. SpaceError: two of
    them differ."""
    fits = []
    for store in stores:
        if not len(store):
            raise StorageError(f"{store.place} has no episode; collect some (`sanawm collect`).")
        height, width = store.arrays["start_frames"].shape[1:3]
        info, maps = store.info, {str(one["action_map"]) for one in store.sources}
        if len(maps) > 1:
            raise ConfigError(
                f"{store.place} has actions of {sorted(maps)}; take a store with those of one action map."
            )
        fits.append(
            Fit(
                height=height,
                width=width,
                fps=info.fps,
                frames_per_step=info.frames_per_step,
                action_map=next(iter(maps)),
            )
        )
        check_fits(fits[0], fits[-1], str(store.place))
    return fits[0]


def read_demonstrations(
    source: Path | str | Sequence[Path | str],
    network: NetworkConfig,
    device: torch.device,
    *,
    episodes: Iterable[int] | None = None,
) -> tuple[Demonstrations, Fit]:
    """The instants of the store's episodes, and what a policy that learns from them is made for.

    source: a store or several, as `open_store` takes them. The actions are `expert_actions`, which are known at every
    instant, where the store has them; else those that were executed, known where a step begins.
    StorageError: the store has no `start_goals`. ConfigError: they do not fit on the device, or actions change within a
    step.
    """
    opened = open_store(source)
    stores = [opened] if isinstance(opened, EpisodeStore) else opened.stores
    fit = fit_of(stores)
    network.check_size(fit.height, fit.width)
    for store in stores:
        if "start_goals" not in store.keys:
            raise StorageError(
                f"{store.place} has no start_goals; collect with `sanawm collect`, or EpisodeLog(goals=True)."
            )
    key = "expert_actions" if all("expert_actions" in store.keys for store in stores) else "actions"
    chosen = None if episodes is None else list(episodes)
    reach, step = network.chunk * fit.frames_per_step, 1 if key == "expert_actions" else fit.frames_per_step
    seen = Windows(opened, WindowSpec(arrays=("frames",), every=step), episodes=chosen)
    done = Windows(opened, WindowSpec(history=2, actions=reach, arrays=("poses", key), every=step), episodes=chosen)
    pixels = 3 * (fit.height // network.shrink) * (fit.width // network.shrink)
    check_capacity(len(seen), lambda instants: instants * pixels, device, "the number of instants")
    goals = np.concatenate([store.rows_at("start_goals", range(len(store))) for store in stores])
    parts = []
    for first in tqdm(range(0, len(seen), _TOGETHER), desc="reading", unit="batch", disable=None):
        numbers = np.arange(first, min(first + _TOGETHER, len(seen)))
        told = _told(done.read(numbers), key, goals, fit)
        pictures = torch.from_numpy(seen.read(numbers)["frames"][:, 0]).to(device)
        parts.append({"pictures": shrunk(pictures, network.shrink), **{name: x.to(device) for name, x in told.items()}})
    return Demonstrations(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]}), fit


def _told(batch: dict[str, np.ndarray], key: str, goals: np.ndarray, fit: Fit) -> dict[str, Tensor]:
    """All but the pictures of a batch of windows."""
    poses, count = batch["poses"], len(batch["episode"])
    here = poses[:, -1]
    away = goals[batch["episode"]] - here[:, :3, 3]
    held = batch[key].reshape(count, -1, fit.frames_per_step, batch[key].shape[-1])
    valid = batch["actions_valid"].reshape(count, -1, fit.frames_per_step)
    if key == "actions" and (np.abs(held - held[:, :, :1]).max(axis=-1) > 1e-6)[valid].any():
        raise ConfigError("actions change within a step; record with action_mode='hold', one action a step.")
    told = {
        "goal": (np.einsum("bji,bj->bi", here[:, :3, :3], away) @ CAMERA_FROM_BODY).astype(np.float32),
        # At the start of an episode the window repeats its pose: at rest.
        "velocity": body_velocity(poses[:, -2], here, fit.fps).astype(np.float32),
        "actions": np.ascontiguousarray(held[:, :, 0]),
        "valid": np.ascontiguousarray(valid[:, :, 0]),
        "episode": batch["episode"],
    }
    return as_tensors(told)
