"""Chunks of actions from callables and from a policy server in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sanawm_env.errors import ActionError, ConfigError, PolicyError, SpaceError
from sanawm_env.policies.chunks import ChunkedPolicy
from sanawm_env.policies.exploring import SmoothWalk
from sanawm_env.policies.remote import PolicyServer, connect
from sanawm_env.spaces import check_policy
from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.world import WorldModel

OBSERVATIONS = spaces.Box(0, 1000, (1,), np.float32)
ACTIONS = spaces.Box(-1000, 1000, (1,), np.float32)
PROGRAM = """
import numpy as np
from sanawm_env.policies.remote import PolicyServer
from gymnasium import spaces

class Ahead:
    observation_space = spaces.Box(0, 1000, (1,), np.float32)
    action_space = spaces.Box(-1000, 1000, (1,), np.float32)
    def initial_state(self, worlds): return np.zeros(worlds)
    def reset(self, state, worlds): return np.where(worlds, 0, state)
    def act(self, observation, state):
        if (observation < 0).any(): raise ArithmeticError("below zero")
        return observation[:, None] + np.arange(3.0)[:, None] + 100 * state[:, None, None], state + 1

server = PolicyServer(Ahead())
print(server.url, flush=True)
server.serve_forever()
"""


def chunk(observation: np.ndarray, begun: np.ndarray) -> np.ndarray:
    """Four steps: what is seen, then one more each."""
    return observation[:, None] + np.arange(4.0)[:, None]


def rollout(policy: ChunkedPolicy, seen: list[list[float]], begins: dict[int, list[bool]] | None = None) -> np.ndarray:
    """Actions [steps, B] for what B worlds see step after step; begins: worlds whose episodes begin before a step."""
    state = policy.initial_state(len(seen[0]))
    actions = []
    for step, values in enumerate(seen):
        if begins and step in begins:
            state = policy.reset(state, np.array(begins[step]))
        action, state = policy.act(np.array(values, np.float32)[:, None], state)
        actions.append(action[:, 0])
        if state.coming is not None:  # answers come within a step
            state.coming.exception(10)
    policy.close()
    return np.stack(actions)


def test_a_chunk_is_used_up_before_the_next_is_asked_for() -> None:
    actions = rollout(ChunkedPolicy(chunk, OBSERVATIONS, ACTIONS), [[0], [50], [50], [50], [10], [99]])
    assert actions[:, 0].tolist() == [0, 1, 2, 3, 10, 11]


def test_overlaps_replace_or_average_what_was_there() -> None:
    seen = [[0], [0], [0], [20], [0], [0], [0]]
    # Asked at step 3 (one action left), there at step 4: its first action is of the past.
    replaced = rollout(ChunkedPolicy(chunk, OBSERVATIONS, ACTIONS, ahead=1), seen)
    assert replaced[:6, 0].tolist() == [0, 1, 2, 3, 21, 22]
    averaged = rollout(
        ChunkedPolicy(chunk, OBSERVATIONS, ACTIONS, ahead=2, share=0.25), [[0], [0], [20], [0], [0], [0]]
    )
    assert averaged[:5, 0].tolist() == [0, 1, 2, 0.25 * 21 + 0.75 * 3, 22]


def test_a_world_that_begins_asks_at_once_and_changes_no_other() -> None:
    asked = []

    def source(observation: np.ndarray, begun: np.ndarray) -> np.ndarray:
        asked.append(begun.tolist())
        return chunk(observation, begun)

    policy = ChunkedPolicy(source, OBSERVATIONS, ACTIONS)
    actions = rollout(policy, [[0, 10], [7, 7], [7, 7], [7, 7], [30, 40]], {2: [False, True]})
    assert actions.T.tolist() == [[0, 1, 2, 3, 30], [10, 11, 7, 8, 9]]
    assert asked == [[True, True], [False, True], [False, False]]


def test_bad_chunks_and_settings_are_errors() -> None:
    cases = [
        (lambda o, b: o, r"shape \(2, 1\), expected \(2, T, 1\)"),
        (lambda o, b: chunk(o, b)[:1], r"shape \(1, 4, 1\)"),
        (lambda o, b: chunk(o, b) * np.nan, "NaN"),
    ]
    for source, message in cases:
        with pytest.raises(ActionError, match=message):
            rollout(ChunkedPolicy(source, OBSERVATIONS, ACTIONS), [[0, 0]])
    for wrong in ({"ahead": -1}, {"share": 0.0}, {"timeout": 0}):
        with pytest.raises(ConfigError, match="allowed are >= 0 steps"):
            ChunkedPolicy(chunk, OBSERVATIONS, ACTIONS, **wrong)
    with pytest.raises(ConfigError, match="allowed is http"):
        connect("localhost:80")


def test_a_slow_source_is_an_error_once_nothing_is_left() -> None:
    free = threading.Event()

    def slow(observation: np.ndarray, begun: np.ndarray) -> np.ndarray:
        if not begun.any():
            free.wait(20)
        return chunk(observation, begun)

    policy = ChunkedPolicy(slow, OBSERVATIONS, ACTIONS, ahead=2, timeout=0.3)
    state = policy.initial_state(1)
    seen = np.zeros((1, 1), np.float32)
    for expected in range(4):  # goes on with what it has
        action, state = policy.act(seen, state)
        assert action.item() == expected
    with pytest.raises(PolicyError, match=r"no actions came within 0\.3 s"):
        policy.act(seen, state)
    free.set()
    policy.close()


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_policy_in_another_process(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    policy = connect(url, timeout=20.0)
    assert (policy.observation_space, policy.action_space) == (OBSERVATIONS, ACTIONS)
    state = policy.initial_state(2)
    told = []
    for step in range(5):
        if step == 4:
            state = policy.reset(state, np.array([True, False]))
        action, state = policy.act(np.array([[1.0], [50.0]], np.float32), state)
        told.append(action[:, 0].tolist())
    # The second question adds 100, unless an episode has begun.
    assert told == [[1, 50], [2, 51], [3, 52], [101, 150], [1, 151]]
    second = connect(url, timeout=20.0)  # a session of its own
    assert second.act(np.ones((1, 1), np.float32), second.initial_state(1))[0].item() == 1
    with pytest.raises(PolicyError, match="answered 500: the policy failed: ArithmeticError: below zero"):
        second.act(-np.ones((1, 1), np.float32), second.initial_state(1))
    process.kill()
    process.wait()
    with pytest.raises(PolicyError, match=f"no policy server answers at {url}"):
        second.act(np.ones((1, 1), np.float32), second.initial_state(1))
    with pytest.raises(PolicyError, match="no policy server answers"):
        connect(url)
    policy.close(), second.close()


def test_any_policy_behind_a_server_drives_as_it_does_here(tiny_model: WorldModel) -> None:
    env = RoomsTruthVectorEnv(2, tiny_model, task="drive", observation="dict", frames="none")
    here = SmoothWalk(env.single_observation_space, env.single_action_space, seed=3)
    serving = PolicyServer(SmoothWalk(env.single_observation_space, env.single_action_space, seed=3))
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    try:
        there = connect(serving.url, timeout=20.0)
        check_policy(there, env)
        with pytest.raises(SpaceError, match="made for observation_space"):
            check_policy(there, RoomsTruthVectorEnv(1, tiny_model, task="drive"))
        observation, _ = env.reset(seed=[1, 2])
        states: list[Any] = [here.initial_state(2), there.initial_state(2)]
        for _ in range(3):
            (mine, states[0]), (theirs, states[1]) = here.act(observation, states[0]), there.act(observation, states[1])
            np.testing.assert_array_equal(mine, theirs)
            observation = env.step(mine)[0]
        there.close()
    finally:
        serving.close()
        thread.join()
