"""What the environments refuse, in words that name the value, what is allowed and the remedy; nothing is changed."""

from __future__ import annotations

import re
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ActionError, ConfigError, SceneError, StateError, TaskError
from sanawm_env.testing import assert_same
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([np.nan, 0.0], "'v' is nan"),
        ([0.1, 0.2, 0.3], r"shape \(3,\), expected \(2,\) for map 'diff_drive' \(v, w\)"),
        ([[0.1, 0.2]] * 8, r"shape \(8, 2\), expected \(2,\).*action_mode='per_frame'"),
        ([[0.1], [0.2, 0.3]], "not an array of numbers"),
        (None, "expected"),
        ([0.4j, 0.2], r"holds \[0.4j\] \(complex128\), allowed are real numbers; pass action.real"),
        (np.array([0.1, 0.2], np.complex64), "complex64.*allowed are real numbers"),
        ([{}, 0.2], "is not numeric, allowed are numbers"),
        (torch.zeros(2, requires_grad=True), "not an array of numbers .*detach.*pass a NumPy array"),
    ],
)
def test_bad_actions_leave_the_world_as_it_was(env: SanaWMEnv, action: Any, message: str) -> None:
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ActionError, match=message):
        env.step(action)
    after = env.get_state()
    assert_same(before.rows, after.rows)
    assert int(after.world.chunk[0]) == 0


def test_a_vector_names_the_shape_it_wants(tiny_model: WorldModel) -> None:
    vector = SanaWMVectorEnv(3, tiny_model)
    vector.reset(seed=0)
    with pytest.raises(ActionError, match=r"shape \(2,\), expected \(3, 2\) for num_envs=3; pass one row a world"):
        vector.step(np.zeros(2))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"action_map": "diffdrive"}, ActionError, "did you mean 'diff_drive'"),
        ({"action_options": {"preset": "nvlabs"}}, ActionError, "unknown option 'preset' of action map 'diff_drive'"),
        ({"task": "got"}, TaskError, "did you mean 'goto'"),
        ({"task": {"name": "goto", "color": "red"}}, ConfigError, "did you mean 'colour'"),
        ({"observation": "image"}, ConfigError, "observation is 'image'"),
        ({"actoin_mode": "hold"}, ConfigError, "did you mean 'action_mode'"),
        ({"horizon": 0}, ConfigError, "horizon is 0"),
        ({"render_mode": "rgb"}, ConfigError, "render_mode is 'rgb'; did you mean 'rgb_array'"),
        ({"num_envs": 3}, ConfigError, "unknown key 'num_envs'"),
        ({"device": "gpu"}, ConfigError, "device is 'gpu'; allowed is 'cpu', 'cuda'"),
    ],
)
def test_wrong_options_are_named(
    tiny_model: WorldModel, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        SanaWMEnv(tiny_model, **options)


WATCH_LIVE = r"'human', allowed is None or one of rgb_array, rgb_array_list; .*LogToRerun.*sanawm teleop"


def test_human_rendering_is_refused_before_gymnasium_opens_a_window(tiny_model: WorldModel) -> None:
    options = {"bundle": tiny_model, "render_mode": "human"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match=WATCH_LIVE):
            gymnasium.make("sanawm_env/Rooms-v0", **options)
        for mode in ("sync", "vector_entry_point"):
            with pytest.raises(ConfigError, match=WATCH_LIVE):
                gymnasium.make_vec("sanawm_env/Rooms-v0", num_envs=2, vectorization_mode=mode, **options)
    assert SanaWMEnv(tiny_model).metadata["render_modes"] == ["rgb_array", "rgb_array_list"]


@pytest.mark.parametrize("options", [[1], 7, "scene", [], False])
def test_reset_options_are_a_mapping(tiny_model: WorldModel, env: SanaWMEnv, options: Any) -> None:
    for made in (env, SanaWMVectorEnv(2, tiny_model)):
        with pytest.raises(SceneError, match=rf"reset options are {re.escape(repr(options))}, allowed is a mapping"):
            made.reset(options=options)


@pytest.mark.parametrize("n", [0, -1, 2.5, True, None, "2"])
def test_a_fork_has_a_whole_number_of_futures(env: SanaWMEnv, n: Any) -> None:
    env.reset(seed=0)
    with pytest.raises(StateError, match=rf"n = {n!r}, allowed is a whole number >= 1; pass how many"):
        env.fork(n)
    assert env.fork(np.int64(2)).num_envs == 2


@pytest.mark.parametrize("state", [{}, None, "here", torch.zeros(1000)])
def test_only_snapshots_can_be_continued_from(tiny_model: WorldModel, env: SanaWMEnv, state: Any) -> None:
    for made in (env, SanaWMVectorEnv(2, tiny_model)):
        with pytest.raises(
            StateError, match=rf"\({type(state).__name__}\), allowed is a Snapshot; .*get_state"
        ) as told:
            made.set_state(state)
        assert len(str(told.value)) < 200, "no dump of what was given"


def test_an_environment_whose_constructor_raised_is_collected_in_silence(tiny_model: WorldModel) -> None:
    half_made = SanaWMVectorEnv.__new__(SanaWMVectorEnv)
    with pytest.raises(ConfigError):
        half_made.__init__(2, tiny_model, render_mode="human")  # type: ignore[misc]
    half_made.close()


def test_a_snapshot_of_another_bundle_or_action_map_is_refused(tiny_model: WorldModel, env: SanaWMEnv) -> None:
    env.reset(seed=0)
    taken = env.get_state()
    with pytest.raises(StateError, match="this environment has Twist"):
        SanaWMEnv(tiny_model, action_map="twist").set_state(taken)
    taken.world.fingerprint = "f" * 64
    with pytest.raises(StateError, match="of bundle 'ffffffffffff'"):
        env.set_state(taken)


def test_wrong_reset_masks_are_named(tiny_model: WorldModel) -> None:
    vector = SanaWMVectorEnv(2, tiny_model)
    vector.reset(seed=0)
    for mask in (np.array([1, 0]), np.array([True]), np.array([False, False])):
        with pytest.raises(SceneError, match=r"reset_mask is .*allowed is bool \(2,\)"):
            vector.reset(options={"reset_mask": mask})
    with pytest.raises(SceneError, match="3 seeds were given for num_envs=2"):
        vector.reset(seed=[1, 2, 3])
    for seed in (2.5, True):
        with pytest.raises(SceneError, match=f"seed is {seed}, allowed is a whole number"):
            vector.reset(seed=seed)  # type: ignore[arg-type]
    assert vector.reset(seed=np.array([4, 6]))[1]["seed"].tolist() == [4, 6]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"num_envs is 2\.5, allowed is a whole number"):
        SanaWMVectorEnv(2.5, tiny_model)  # type: ignore[arg-type]


def test_a_task_changes_for_all_worlds_or_none(tiny_model: WorldModel) -> None:
    vector = SanaWMVectorEnv(2, tiny_model)
    vector.reset(seed=0)
    with pytest.raises(TaskError, match="change the task in a reset of all worlds"):
        vector.reset(options={"task": "drive", "reset_mask": np.array([True, False])})
    assert vector.reset(seed=0, options={"task": "drive"})[1]["instruction"].tolist() == ["drive freely"] * 2
