"""Pictures of futures that were stepped without any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import StateError
from sanawm_env.truth import RoomsTruthEnv
from sanawm_env.world import WorldModel

ACTIONS = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4, 2)).astype(np.float32)


@pytest.mark.parametrize("kind", [SanaWMEnv, RoomsTruthEnv])
def test_pictures_made_later_are_those_that_would_have_been_seen(tiny_model: WorldModel, kind: Any) -> None:
    env = kind(tiny_model, task="drive")
    env.reset(seed=3)
    env.step(ACTIONS[0, 0])
    shown, blind = (env.fork(2, reseed=True, decode=how) for how in (True, "later"))
    pairs = [(shown, blind)]
    seen = []
    for chunk, actions in enumerate(ACTIONS):
        if chunk == 1:  # futures of futures, with noise of their own from here on
            shown, blind = (one.fork(2, reseed=True, decode=how) for one, how in zip(pairs[0], (True, "later")))
        count = shown.num_envs
        shown.step(actions[:count])
        assert blind.step(actions[:count])[0] is None
        seen.append(shown._episodes.frames())
    whole = np.concatenate([np.repeat(seen[0], 2, axis=0), seen[1]], axis=1)
    np.testing.assert_array_equal(blind.decode(), whole)
    np.testing.assert_array_equal(blind.decode([3, 1]), whole[[3, 1]])
    np.testing.assert_array_equal(blind.select([2]).decode(), whole[[2]])
    env.step(ACTIONS[0, 0])  # the worlds that were forked go on, unspent
    assert blind.step(ACTIONS[0])[0] is None


def test_pictures_that_cannot_be_made_are_an_error(tiny_model: WorldModel) -> None:
    env = RoomsTruthEnv(tiny_model, task="drive")
    env.reset(seed=3)
    plain, later = env.fork(2, decode=False), env.fork(2, decode="later")
    with pytest.raises(StateError, match="not been stepped yet"):
        later.decode()
    with pytest.raises(StateError, match="fork with decode='later'"):
        plain.decode()
    with pytest.raises(StateError, match="no decoder left"):
        plain.fork(2, decode="later")
    with pytest.raises(StateError, match="allowed are True, False and 'later'"):
        env.fork(2, decode="soon")  # type: ignore[arg-type]
    later.reset(seed=1)
    later.step(ACTIONS[0, :2])
    with pytest.raises(StateError, match="do not reset"):
        later.decode()
