"""What a policy is: observations of a batch of worlds in, actions out, with a state of its own that is handed over.

A policy sees observations, not a world's state. Planners, which try actions out, are given an environment to fork.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np

State = TypeVar("State")


class Policy(Protocol[State]):
    """Acts for B worlds at once; each row depends on its own observations alone.

    observation_space, action_space: of one world, those that it was made for (`spaces.check_policy` compares them with
    an environment's).
    """

    observation_space: Any
    action_space: Any

    def initial_state(self, worlds: int) -> State:
        """What it keeps between steps, for so many worlds whose episodes begin."""

    def act(self, observation: Any, state: State) -> tuple[np.ndarray, State]:
        """Actions [B, ...] of the coming step, and the state after them. observation: as a vector environment gives it,
        B rows. The state that was given may be spent by this."""

    def reset(self, state: State, worlds: np.ndarray) -> State:
        """The state after new episodes have begun in some worlds, bool [B]."""
