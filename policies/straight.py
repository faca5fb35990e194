"""Drives straight at the goal by the goal vector alone: what a policy must beat to have shown anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from sanawm_env.errors import ConfigError, SpaceError
from sanawm_env.policies.exploring import SECONDS, as_array


class Straight:
    """Turns to the goal and drives at it, whatever is in the way. A `Policy` without a state.

    Of observation="dict" it reads "goal" alone; actions are (v, w) of map diff_drive, also per frame. speed: m/s at
    most. seconds: of a step. SpaceError: other spaces, or a task without a goal.
    """

    def __init__(
        self, observation_space: Any, action_space: Any, *, speed: float = 0.7, seconds: float = SECONDS
    ) -> None:
        shape = getattr(action_space, "shape", None)
        if not shape or shape[-1] != 2 or len(shape) > 2 or "goal" not in getattr(observation_space, "spaces", {}):
            raise SpaceError(
                f"Straight reads the goal and drives by (v, w); the spaces are {observation_space} and {action_space}: "
                "make the environment with observation='dict', task='goto' and action_map='diff_drive'."
            )
        self.observation_space, self.action_space = observation_space, action_space
        self.limit = action_space.high.reshape(-1, 2)[0].astype(np.float64)
        if not 0 < speed <= self.limit[0] or not seconds > 0:
            raise ConfigError(
                f"speed is {speed!r}, seconds {seconds!r}; allowed is a speed above 0 and up to {self.limit[0]:g} m/s, "
                "and seconds above 0."
            )
        self.speed, self.seconds = speed, seconds

    def initial_state(self, worlds: int) -> None:
        """Nothing: it remembers nothing."""

    def reset(self, state: None, worlds: np.ndarray) -> None:
        """Nothing to forget."""

    def act(self, observation: Any, state: None = None) -> tuple[np.ndarray, None]:
        """Actions float32 [B, 2], or [B, F, 2], and no state."""
        goal = as_array(observation["goal"]).astype(np.float64)
        bearing = np.arctan2(goal[:, 1], goal[:, 0])
        turn = np.clip(bearing / self.seconds, -self.limit[1], self.limit[1])
        # Of the speed only what leads towards the goal, half-way through the turn.
        ahead = np.clip(np.cos(np.abs(bearing) - np.abs(turn) * self.seconds / 2), 0.0, 1.0) ** 3
        rows = np.stack([self.speed * ahead, turn], axis=-1).astype(np.float32)
        shape = self.action_space.shape
        return rows if len(shape) == 1 else np.broadcast_to(rows[:, None], (len(rows), *shape)).copy(), None
