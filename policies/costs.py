"""What planners minimise: a task's reward, the way to a goal picture, in pixels or latents, or to a goal's place.

What each may know differs. `TaskCost` is privileged: rewards of Rooms, in the dream too, come from poses and the known
floor plan (a collision ends the episode), so that the pictures dreamed have no part in it. `GoalImageCost` and
`GoalLatentCost` read nothing but what the model dreams. `GoalPlaceCost` reads poses and the goal's place, as an agent
with odometry does, and no geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sanawm_env.errors import ConfigError, PolicyError, SceneError
from sanawm_env.policies.futures import Imagined

if TYPE_CHECKING:
    from torch import Tensor


class TaskCost:
    """The return that the environment itself gives, negated. Futures are of the plan tier: no pixels are made.

    In Rooms it is privileged: see this file's head. A future keeps its return up to its end.
    """

    decode = False

    def __call__(self, imagined: Imagined) -> np.ndarray:
        return -imagined.reward


class GoalImageCost:
    """How far the imagined picture is from a goal picture, in grey levels of 0 .. 1.

    goal: uint8 [H, W, 3], or one for each of B worlds [B, H, W, 3]. Pictures are averaged over blocks of several sizes
    (`blocks`, in pixels) and compared by the square root of difference^2 + 0.05^2, colours and, `edges` times, their
    differences between neighbouring blocks. Coarse blocks tell from afar where to go, fine ones where to stop. A step
    counts by its last frame: those on the way `on_the_way` times, the last fully. What known geometry says, the end of
    an episode among it, is ignored.

    Raises SceneError for a goal that is no such picture, and on planning in worlds of another size.
    """

    decode = True

    def __init__(
        self,
        goal: np.ndarray,
        *,
        blocks: Sequence[int] = (4, 8, 16),
        edges: float = 1.0,
        on_the_way: float = 0.2,
    ) -> None:
        self.goal = check_goal(goal)
        self.blocks, self.edges, self.on_the_way = tuple(blocks), edges, on_the_way
        self._features: list[Tensor] = []

    def __call__(self, imagined: Imagined) -> Tensor:
        import torch

        weight = 1.0 if imagined.last else self.on_the_way
        frames = imagined.futures.last_output[0]
        if weight == 0:
            return frames.new_zeros(len(imagined.world), dtype=torch.float32)
        check_size(self.goal, frames.shape[2:4])
        if not self._features or self._features[0].device != frames.device:
            self._features = self._describe(_tensor(self.goal).to(frames.device))
        goal = _rows(self.goal, imagined.world)
        pairs = zip(self._describe(frames[:, -1]), self._features, strict=True)
        parts = [((seen - wanted[goal]) ** 2 + 0.05**2).sqrt().flatten(1).mean(dim=1) for seen, wanted in pairs]
        weights = [1.0, self.edges, self.edges] * len(self.blocks)
        total: Tensor = sum(w * part for w, part in zip(weights, parts, strict=True))  # type: ignore[assignment]
        return total * (weight / sum(weights))

    def _describe(self, pictures: Tensor) -> list[Tensor]:
        """For each size of block: colours and their differences downwards and to the right. pictures: [N, H, W, 3]."""
        from torch.nn.functional import avg_pool2d

        levels = pictures.permute(0, 3, 1, 2).float() / 255
        told = []
        for size in self.blocks:
            coarse = avg_pool2d(levels, size, ceil_mode=True)
            told += [coarse, coarse.diff(dim=2), coarse.diff(dim=3)]
        return told


class GoalLatentCost:
    """How far the newest imagined latent is from that of a goal picture, as a mean square: latents have unit variance.
    Nothing is decoded.

    env: the environment planned in, whose model encodes. goal: as of `GoalImageCost`; its latent is that of standing
    still before it. on_the_way: likewise. Raises SceneError for a goal of another size than the model's pictures,
    ConfigError where there is no model.
    """

    decode = False

    def __init__(self, env: Any, goal: np.ndarray, *, on_the_way: float = 0.2) -> None:
        model = env.unwrapped.model
        if not hasattr(model, "autoencoder"):
            raise ConfigError(
                f"the worlds of {type(env.unwrapped).__name__} have no latents; plan in a learned world, or by "
                "GoalImageCost."
            )
        self.goal, self.on_the_way = check_goal(goal), on_the_way
        check_size(self.goal, (model.config.height, model.config.width))
        self.latent = _still(model, _tensor(self.goal))

    def __call__(self, imagined: Imagined) -> Tensor:
        latent = imagined.futures.last_output[1][:, -1].float()
        distance = ((latent - self.latent[_rows(self.goal, imagined.world)]) ** 2).flatten(1).mean(dim=1)
        # A world may fail after its episode's end, which is no fault of the episode.
        return (1.0 if imagined.last else self.on_the_way) * distance.nan_to_num(nan=float("inf"))


class GoalPlaceCost:
    """Horizontal metres from the imagined camera to the task's goal, and what an obstacle ahead adds.

    obstacle: from the imagined frames of a step, uint8 [N, F, H, W, 3] (in a truth only those that are shown), to a
    penalty [N] in metres: a network that sees how near the next surface is, for example. Without it nothing keeps the
    camera off walls and furniture. Known geometry has no part: not the floor plan, not the end of an episode. Needs a
    task with a goal (PolicyError).
    """

    def __init__(self, obstacle: Callable[[Tensor], Tensor] | None = None) -> None:
        self.obstacle = obstacle
        self.decode = obstacle is not None

    def __call__(self, imagined: Imagined) -> np.ndarray | Tensor:
        if "goal" not in imagined.info:
            raise PolicyError("GoalPlaceCost needs a goal, and the task has none; make the environment with 'goto'.")
        away = imagined.info["goal"] - imagined.info["poses"][:, -1, :3, 3]
        distance = np.hypot(away[:, 0], away[:, 2])
        if self.obstacle is None:
            return distance
        penalty = self.obstacle(imagined.futures.last_output[0])
        return penalty + _tensor(distance).to(penalty.device)


def check_goal(goal: Any) -> np.ndarray:
    """The goal picture, or one a world. SceneError unless it is uint8 [H, W, 3] or [B, H, W, 3]."""
    pictures = np.asarray(goal)
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or pictures.shape[-1] != 3:
        raise SceneError(
            f"the goal picture is {pictures.dtype} {pictures.shape}, allowed is uint8 [H, W, 3], or one for each world "
            "[B, H, W, 3]; convert it."
        )
    return pictures if pictures.ndim == 4 else pictures[None]


def check_size(goal: np.ndarray, size: Sequence[int]) -> None:
    """SceneError unless goal pictures [B, H, W, 3] are of the worlds' size, height and width."""
    if tuple(goal.shape[1:3]) != tuple(size):
        raise SceneError(
            f"the goal picture is {goal.shape[1]}x{goal.shape[2]} (height x width), the worlds' pictures are "
            f"{size[0]}x{size[1]}; resize or crop it."
        )


def _rows(goal: np.ndarray, world: np.ndarray) -> np.ndarray:
    """Which goal each future has. SceneError where there are fewer goals than worlds."""
    if len(goal) == 1:
        return np.zeros(len(world), np.int64)
    if world.max() >= len(goal):
        raise SceneError(
            f"there are {len(goal)} goal pictures, and world {int(world.max())} has none; pass one a world, or one."
        )
    return world


def _still(model: Any, pictures: Tensor) -> Tensor:
    """Float32 [B, C, h, w], the last latent of a clip that stands still before each picture uint8 [B, H, W, 3]."""
    config = model.config
    frames = 1 + config.frames_per_chunk
    clip = (pictures.permute(0, 3, 1, 2)[:, :, None].float() / 127.5 - 1).repeat(1, 1, frames, 1, 1)
    latents = [model.autoencoder.encode(one.to(model.device)) for one in clip.split(1)]
    import torch

    return torch.cat(latents)[:, -1].float()


def _tensor(array: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(array)
