"""Contracts as test classes: inherit one, say how to make the thing, and pytest checks it.

Here are the contracts of environments over a world and of policies. Whoever adds an environment, a wrapper that claims
to keep the contract, or a bundle of their own, inherits `EnvironmentContract` and overrides `make` and `make_vector`;
a policy's tests inherit `PolicyContract`.
"""

from __future__ import annotations

import abc
import warnings
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sanawm_env.errors import LifecycleError, SceneError, StateError
from sanawm_env.policies.base import Policy
from sanawm_env.spaces import check_policy
from sanawm_env.vector_env import SanaWMVectorEnv

STEPS = 3


def assert_same(first: Any, second: Any) -> None:
    """Equality bit for bit of observations or infos, nested as they may be."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    else:
        np.testing.assert_array_equal(first, second)


def row_of(facts: Any, row: int) -> Any:
    """One world's part of a vector environment's observations or infos, masks left out."""
    if isinstance(facts, dict):
        return {key: row_of(value, row) for key, value in facts.items() if not key.startswith("_")}
    return facts[row]


class EnvironmentContract(abc.ABC):
    """What every environment over a world keeps. Override `make` and `make_vector`; options pass through to them.

    reseeded_futures_differ: whether frames depend on a world's noise, so that futures with noise of their own differ.
    """

    reseeded_futures_differ: ClassVar[bool] = True

    @abc.abstractmethod
    def make(self, **options: Any) -> gymnasium.Env[Any, Any]:
        """A new environment made with `gymnasium.make`."""

    @abc.abstractmethod
    def make_vector(self, num_envs: int, **options: Any) -> SanaWMVectorEnv:
        """A new vector environment of as many worlds."""

    def actions(self, env: gymnasium.Env[Any, Any], count: int = STEPS, seed: int = 0) -> list[Any]:
        """Actions drawn from the environment's space."""
        env.action_space.seed(seed)
        return [env.action_space.sample() for _ in range(count)]

    def play(self, env: gymnasium.Env[Any, Any], actions: list[Any]) -> list[tuple[Any, ...]]:
        """What the environment returns for each action."""
        return [env.step(action) for action in actions]

    def test_gymnasium_has_nothing_to_warn_of(self) -> None:
        env = self.make()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env.unwrapped)
        env.close()

    def test_observations_lie_in_their_space(self) -> None:
        for kind in ("last", "all", "dict"):
            env = self.make(observation=kind)
            observation, _ = env.reset(seed=0)
            assert observation in env.observation_space
            for result in self.play(env, self.actions(env, 2)):
                assert result[0] in env.observation_space

    def test_equal_seeds_give_equal_frames_and_other_seeds_others(self) -> None:
        runs = []
        for seed in (5, 5, 6):
            env = self.make()
            runs.append((env.reset(seed=seed), self.play(env, self.actions(env))))
        assert_same(runs[0][0][0], runs[1][0][0])
        for first, second in zip(runs[0][1], runs[1][1], strict=True):
            for one, other in zip(first, second, strict=True):
                assert_same(one, other)
        assert not np.array_equal(runs[0][1][-1][4]["frames"], runs[2][1][-1][4]["frames"])

    def test_a_step_gives_one_chunk_and_nothing_more(self) -> None:
        env = self.make()
        _, info = env.reset(seed=0)
        frames = env.unwrapped.frames_per_step  # type: ignore[attr-defined]
        assert len(info["frames"]) == len(info["poses"]) == 1
        for count, result in enumerate(self.play(env, self.actions(env, 2)), start=1):
            assert len(result[4]["frames"]) == len(result[4]["poses"]) == frames
            assert result[4]["frame"] == count * frames

    def test_a_batch_equals_its_worlds_run_singly(self) -> None:
        seeds = [3, 8, 1]
        vector = self.make_vector(len(seeds), frames="all")
        together = [vector.reset(seed=seeds)]
        vector.action_space.seed(0)
        actions = [vector.action_space.sample() for _ in range(STEPS)]
        results = [vector.step(action) for action in actions]
        for row, seed in enumerate(seeds):
            env = self.make()
            for alone, batch in zip(env.reset(seed=seed), together[0], strict=True):
                self._assert_row(alone, batch, row)
            for action, result in zip(actions, results, strict=True):
                for alone, batch in zip(env.step(action[row]), result, strict=True):
                    self._assert_row(alone, batch, row)

    def _assert_row(self, alone: Any, batch: Any, row: int) -> None:
        mine = row_of(batch, row)
        if isinstance(alone, dict):
            assert alone.keys() == mine.keys()
            for key, value in alone.items():
                np.testing.assert_array_equal(value, mine[key], err_msg=key)
        else:
            np.testing.assert_array_equal(alone, mine)

    def test_a_snapshot_continues_bit_for_bit(self) -> None:
        env = self.make()
        env.reset(seed=2)
        actions = self.actions(env, 4)
        self.play(env, actions[:2])
        taken = env.unwrapped.get_state()  # type: ignore[attr-defined]
        going_on = self.play(env, actions[2:])
        following = env.reset()
        for target in (env, self.make()):
            target.unwrapped.set_state(taken)  # type: ignore[attr-defined]
            for first, second in zip(going_on, self.play(target, actions[2:]), strict=True):
                for one, other in zip(first, second, strict=True):
                    assert_same(one, other)
            assert_same(target.reset()[0], following[0])

    def test_a_fork_with_equal_actions_gives_equal_frames(self) -> None:
        env = self.make()
        env.reset(seed=2)
        actions = self.actions(env)
        self.play(env, actions[:1])
        branch = env.unwrapped.fork(2)  # type: ignore[attr-defined]
        other = env.unwrapped.fork(2, reseed=True)  # type: ignore[attr-defined]
        for action in actions[1:]:
            result, twice = env.step(action), np.stack([action, action])
            forked, reseeded = branch.step(twice), other.step(twice)
            for row in range(2):
                assert_same(row_of(forked[0], row), result[0])
                assert forked[1][row] == result[1]
        differ = not np.array_equal(row_of(reseeded[0], 0), row_of(reseeded[0], 1))
        assert differ == self.reseeded_futures_differ

    def test_resetting_one_world_touches_no_other(self) -> None:
        vector = self.make_vector(3, frames="all")
        untouched = self.make_vector(3, frames="all")
        for env in (vector, untouched):
            env.reset(seed=0)
            env.action_space.seed(1)
        first, second = vector.action_space.sample(), vector.action_space.sample()
        vector.step(first), untouched.step(first)
        mask = np.array([False, True, False])
        _, info = vector.reset(seed=[None, 9, None], options={"reset_mask": mask})
        np.testing.assert_array_equal(info["_frame"], mask)
        np.testing.assert_array_equal(info["frame"] == 0, mask)
        results, expected = vector.step(second), untouched.step(second)
        for row in (0, 2):
            for one, other in zip(results, expected, strict=True):
                assert_same(row_of(one, row), row_of(other, row))
        alone = self.make()
        alone.reset(seed=9)
        assert_same(alone.step(second[1])[0], row_of(results[0], 1))

    def test_stepping_needs_an_open_environment_that_was_reset(self) -> None:
        env = self.make()
        action = self.actions(env, 1)[0]
        with pytest.raises(LifecycleError, match=r"call reset\(\)"):
            env.step(action)
        env.reset(seed=0)
        env.close()
        env.close()
        for call in (lambda: env.step(action), env.reset, env.unwrapped.get_state):  # type: ignore[attr-defined]
            with pytest.raises(LifecycleError, match="closed"):
                call()

    def test_an_unknown_reset_option_is_an_error(self) -> None:
        with pytest.raises(SceneError, match="did you mean 'horizon'"):
            self.make().reset(options={"horizn": 3})

    def test_the_horizon_truncates_and_is_part_of_a_snapshot(self) -> None:
        env = self.make(task="drive")
        frames = env.unwrapped.frames_per_step  # type: ignore[attr-defined]
        env.reset(seed=0, options={"horizon": 2 * frames - 3})
        still = np.zeros_like(env.action_space.sample())
        taken = env.unwrapped.get_state()  # type: ignore[attr-defined]
        for _ in range(2):
            assert not env.step(still)[3]
            _, _, terminated, truncated, info = env.step(still)
            assert truncated
            assert not terminated
            assert info["truncation_reason"] == "horizon"
            assert (info["end_index"], info["valid_frames"]) == (frames - 4, frames - 3)
            env.unwrapped.set_state(taken)  # type: ignore[attr-defined]

    def test_a_snapshot_of_another_size_is_refused(self) -> None:
        env, vector = self.make(), self.make_vector(2)
        vector.reset(seed=0)
        with pytest.raises(StateError, match="2 worlds, this environment 1"):
            env.unwrapped.set_state(vector.get_state())  # type: ignore[attr-defined]


class PolicyContract(abc.ABC):
    """What every policy keeps. Override `make_env` and `make`."""

    seeds: ClassVar[tuple[int, ...]] = (3, 8, 1)

    @abc.abstractmethod
    def make_env(self, num_envs: int) -> SanaWMVectorEnv:
        """A new vector environment of as many worlds, such as the policy acts in."""

    @abc.abstractmethod
    def make(self, env: SanaWMVectorEnv) -> Policy[Any]:
        """A new policy, the same each time, that acts in the environment."""

    def play(self, seeds: tuple[int, ...], steps: int = 2) -> np.ndarray:
        """Actions [steps, B, ...] of a new policy in new worlds of these seeds."""
        env = self.make_env(len(seeds))
        policy = self.make(env)
        observation, _ = env.reset(seed=list(seeds))
        state, taken = policy.initial_state(len(seeds)), []
        for _ in range(steps):
            actions, state = policy.act(observation, state)
            taken.append(np.array(actions))
            observation = env.step(actions)[0]
        return np.stack(taken)

    def test_it_was_made_for_the_environments_spaces(self) -> None:
        env = self.make_env(2)
        check_policy(self.make(env), env)

    def test_actions_lie_in_their_space(self) -> None:
        space = self.make_env(len(self.seeds)).action_space
        for actions in self.play(self.seeds):
            assert actions.shape == space.shape
            assert actions.astype(space.dtype) in space

    def test_it_does_the_same_again(self) -> None:
        np.testing.assert_array_equal(self.play(self.seeds), self.play(self.seeds))

    def test_no_world_depends_on_its_neighbours(self) -> None:
        first, *others = self.seeds
        together = self.play(self.seeds)
        elsewhere = self.play((first, *(seed + 100 for seed in others)))
        np.testing.assert_array_equal(together[:, 0], elsewhere[:, 0])

    def test_a_reset_begins_some_worlds_anew_and_leaves_the_others(self) -> None:
        count = len(self.seeds)
        actions = {}
        for case in ("going on", "some anew", "all new"):
            env = self.make_env(count)
            policy = self.make(env)
            observation, _ = env.reset(seed=list(self.seeds))
            state = policy.initial_state(count)
            given, state = policy.act(observation, state)
            observation = env.step(given)[0]
            mask = np.arange(count) == 1
            if case == "some anew":
                state = policy.reset(state, mask)
            elif case == "all new":
                state = policy.initial_state(count)
            actions[case] = np.array(policy.act(observation, state)[0])
        np.testing.assert_array_equal(actions["some anew"][~mask], actions["going on"][~mask])
        np.testing.assert_array_equal(actions["some anew"][mask], actions["all new"][mask])
