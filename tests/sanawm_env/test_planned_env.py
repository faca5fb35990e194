"""Planned clips behind Gymnasium's contract: what `generate` gives, chunk by chunk, and no action that changes it."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from sanawm_env.actions import DiffDrive
from sanawm_env.clips import generate
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ActionError, ConfigError, LifecycleError, PoseError, SceneError, StateError
from sanawm_env.model.config import Schedule, tiny_config
from sanawm_env.planned_env import PlannedEnv
from sanawm_env.scene import Scene
from sanawm_env.snapshot import Snapshot
from sanawm_env.testing import assert_same
from sanawm_env.world import WorldModel, initial

F = 8  # frames of a chunk of the tiny world
DRIVE = [[0.4, 0.0], [0.3, 0.5], [0.2, -0.5]]


def tiny(variant: str) -> WorldModel:
    config = tiny_config()
    shape = dataclasses.replace(config.denoiser, sink_span=None, window_chunks=None, prediction="velocity")
    schedule = Schedule(steps=2, guidance=1.0)
    return WorldModel.random(dataclasses.replace(config, denoiser=shape, variant=variant, schedule=schedule))


@pytest.fixture(scope="module", params=["bidirectional", "teacher"])
def model(request: pytest.FixtureRequest) -> WorldModel:
    return tiny(request.param)


@pytest.fixture(scope="module")
def teacher() -> WorldModel:
    return tiny("teacher")


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)


def drive(actions: Any = DRIVE, start: np.ndarray | None = None) -> np.ndarray:
    """Where holding each action for a chunk leads a robot, [1 + F k, 4, 4]."""
    start = np.eye(4) if start is None else start
    held = np.repeat(np.asarray(actions, np.float64), F, axis=0)[None]
    poses, _ = DiffDrive().rollout(start[None], DiffDrive().initial(1), held, 10.0)
    return np.concatenate([start[None], poses[0]])


def clip_of(model: WorldModel, poses: np.ndarray, seed: int, **options: Any) -> np.ndarray:
    frames = generate(model, picture()[None], poses[None], seeds=[seed], **options).frames
    assert frames is not None
    return frames[0].numpy()


def planned(model: WorldModel, **options: Any) -> PlannedEnv:
    return PlannedEnv(model, **{"task": "drive", "scene": Scene(image=picture()), **options})


def play(env: PlannedEnv, actions: Any = DRIVE) -> list[tuple[Any, ...]]:
    return [env.step(action) for action in actions]


def test_a_replay_shows_what_generate_gives(model: WorldModel) -> None:
    path = drive()
    wanted = clip_of(model, path, 5)
    env = planned(model)
    first, info = env.reset(seed=5, options={"trajectory": path})
    np.testing.assert_array_equal(first, wanted[0])
    np.testing.assert_array_equal(info["trajectory"], path)
    np.testing.assert_array_equal(info["poses"], path[:1])
    assert (info["seed"], info["frame"]) == (5, 0)
    for number, (observation, reward, terminated, truncated, told) in enumerate(play(env), start=1):
        rows = slice(1 + (number - 1) * F, 1 + number * F)
        np.testing.assert_array_equal(told["frames"], wanted[rows])
        np.testing.assert_array_equal(told["poses"], path[rows])
        np.testing.assert_array_equal(observation, wanted[number * F])
        last = number == 3
        assert (reward, terminated, truncated) == (0.0, False, last)
        assert told["truncation_reason"] == ("horizon" if last else "")
        assert (told["frame"], told["end_index"], told["valid_frames"]) == (number * F, F - 1 if last else -1, F)
        assert told["followed"] is True


def test_actions_plan_the_trajectory_that_they_lead_along(teacher: WorldModel) -> None:
    start = drive([[0.5, 0.3]])[-1]
    env = planned(teacher)
    _, info = env.reset(seed=1, options={"actions": DRIVE, "pose": start})
    np.testing.assert_allclose(info["trajectory"], drive(start=start), atol=1e-12)
    assert all(result[4]["followed"] for result in play(env, np.asarray(DRIVE, np.float32)))
    single = planned(teacher, action_mode="per_frame")
    _, info = single.reset(seed=1, options={"actions": np.repeat(DRIVE, F, axis=0).reshape(3, F, 2)})
    np.testing.assert_allclose(info["trajectory"], drive(), atol=1e-12)


def test_no_action_changes_the_clip_and_info_says_so(teacher: WorldModel) -> None:
    env, other = planned(teacher, actions=DRIVE), planned(teacher, actions=DRIVE)
    env.reset(seed=2), other.reset(seed=2)
    followed, strayed = play(env), play(other, [DRIVE[0], [-0.4, 0.2], DRIVE[2]])
    assert [result[4].pop("followed") for result in followed] == [True, True, True]
    assert [result[4].pop("followed") for result in strayed] == [True, False, True]
    for one, two in zip(followed, strayed, strict=True):
        assert_same(one[4], two[4])


def test_strict_refuses_what_does_not_follow(teacher: WorldModel) -> None:
    env = planned(teacher, actions=DRIVE, strict=True)
    env.reset(seed=2)
    with pytest.raises(ActionError, match=r"leads 0.32 away from the planned poses.*no action changes it.*reset\(\)"):
        env.step([0.0, 0.0])
    assert env.step(DRIVE[0])[4]["frame"] == F
    with pytest.raises(ActionError, match=r"'v' is 1.5, allowed is -1"):
        env.step([1.5, 0.0])


def test_a_recorded_drive_with_inertia_is_followed(teacher: WorldModel) -> None:
    env = planned(teacher, action_options={"time_constant": 0.5})
    _, info = env.reset(seed=0, options={"actions": DRIVE})
    again = planned(teacher, action_options={"time_constant": 0.5})
    again.reset(seed=0, options={"trajectory": info["trajectory"]})
    assert all(result[4]["followed"] for result in play(again))


def test_info_has_the_keys_of_a_world_that_is_stepped(tiny_model: WorldModel) -> None:
    """A distilled model replays what its steps would give, so both environments can be compared in full."""
    options = {"task": "drive", "scene": Scene(image=picture()), "horizon": 2 * F}
    stepped, replayed = SanaWMEnv(tiny_model, **options), PlannedEnv(tiny_model, actions=DRIVE[:2], **options)
    observation, info = stepped.reset(seed=4)
    shown, told = replayed.reset(seed=4)
    del told["trajectory"]
    assert_same(shown, observation), assert_same(told, info)
    for action in DRIVE[:2]:
        result, other = stepped.step(action), replayed.step(action)
        assert other[4].pop("followed")
        for one, two in zip(result, other, strict=True):
            assert_same(one, two)


def test_equal_seeds_give_equal_clips_and_other_seeds_others(model: WorldModel) -> None:
    runs = []
    for seed in (5, 5, 6):
        env = planned(model, actions=DRIVE)
        runs.append((*env.reset(seed=seed), *(result[4]["frames"] for result in play(env))))
    for one, two in zip(runs[0], runs[1], strict=True):
        assert_same(one, two)
    assert not np.array_equal(runs[0][-1], runs[2][-1])


@pytest.mark.parametrize("kind", ["last", "all", "dict"])
def test_observations_lie_in_their_space(teacher: WorldModel, kind: str) -> None:
    env = planned(teacher, observation=kind, actions=DRIVE)
    assert env.reset(seed=0)[0] in env.observation_space
    results = play(env)
    assert all(result[0] in env.observation_space for result in results)
    if kind == "all":
        np.testing.assert_array_equal(results[1][0], results[1][4]["frames"])
    if kind == "dict":
        np.testing.assert_allclose(results[0][0]["velocity"], [0.4, 0, 0, 0, 0, 0], atol=1e-6)
        np.testing.assert_allclose(results[0][0]["pose"], drive()[F, :3].ravel(), atol=1e-6)


def test_gymnasium_has_nothing_to_warn_of(model: WorldModel) -> None:
    # Rendering is checked where `gymnasium.make` makes the environment, in test_sana_wm.py.
    env = planned(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)


def test_without_a_plan_it_drives_straight_ahead(teacher: WorldModel) -> None:
    env = planned(teacher)
    _, info = env.reset(seed=0)
    np.testing.assert_allclose(info["trajectory"], drive([[0.4, 0.0]] * 4), atol=1e-12)
    assert [result[3] for result in play(env, [[0.4, 0.0]] * 4)] == [False, False, False, True]


def test_a_room_and_its_task_judge_the_planned_poses(teacher: WorldModel) -> None:
    env = PlannedEnv(teacher, task="goto")
    _, info = env.reset(seed=7)
    assert info["instruction"].startswith("go to the") and "distance" in info
    _, _, terminated, truncated, told = env.step([0.4, 0.0])
    assert not terminated and not truncated and told["followed"]
    assert told["rewards"].sum() == pytest.approx(info["distance"] - told["distance"])


def test_a_shorter_horizon_ends_the_episode_before_the_clip(teacher: WorldModel) -> None:
    env = planned(teacher, actions=DRIVE)
    env.reset(seed=0, options={"horizon": F + 3})
    results = play(env)
    assert [result[3] for result in results] == [False, True, True]
    assert [result[4]["valid_frames"] for result in results] == [F, 3, 0]
    env.reset(seed=0, options={"horizon": 1000})
    assert [result[3] for result in play(env)] == [False, False, True]


def test_latents_that_are_not_finite_cut_the_episode(teacher: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **options: Any) -> Any:
        output = generate(*given, **options)
        output.latents[:, 3] = torch.nan
        return output

    monkeypatch.setattr("sanawm_env.planned_env.generate", broken)
    env = planned(teacher, actions=DRIVE)
    env.reset(seed=0)
    reasons = [result[4]["truncation_reason"] for result in play(env)]
    assert reasons == ["", "model_fault", "model_fault"]


def test_the_scale_of_a_scene_reaches_the_clip(teacher: WorldModel) -> None:
    env = planned(teacher)
    scene = Scene(image=picture(), units_per_metre=3.0)
    env.reset(seed=0, options={"scene": scene, "actions": DRIVE})
    far = play(env)[-1][4]["frames"]
    np.testing.assert_array_equal(far, clip_of(teacher, drive(), 0, units=3.0)[-F:])
    assert not np.array_equal(far, clip_of(teacher, drive(), 0)[-F:])


def test_order_of_calls(teacher: WorldModel) -> None:
    env = planned(teacher, actions=DRIVE)
    with pytest.raises(LifecycleError, match=r"call reset\(\)"):
        env.step(DRIVE[0])
    env.reset(seed=0)
    play(env)
    with pytest.raises(LifecycleError, match=r"the clip of 25 frames is over; call reset\(\)"):
        env.step(DRIVE[0])
    env.reset(seed=0)
    play(env)
    env.close()
    env.close()
    for call in (lambda: env.step(DRIVE[0]), env.reset, env.get_state):
        with pytest.raises(LifecycleError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"trajectory": drive()[:-1]}, PoseError, r"shape \(24, 4, 4\), allowed is \[1 \+ 8 k, 4, 4\] with k >= 1"),
        ({"trajectory": drive()[:1]}, PoseError, r"shape \(1, 4, 4\), allowed is"),
        ({"trajectory": drive()[None]}, PoseError, r"shape \(1, 25, 4, 4\), allowed is"),
        ({"trajectory": 2 * drive()}, PoseError, "trajectory is not rigid"),
        ({"trajectory": "ahead"}, PoseError, "trajectory is not an array of numbers"),
        ({"actions": []}, ActionError, r"actions of the plan are \[\], allowed are one or more"),
        ({"actions": 0.4}, ActionError, "actions of the plan are 0.4, allowed are one or more"),
        ({"actions": [0.4, 0.2]}, ActionError, r"expected \(2,\) for map 'diff_drive'"),
        ({"actions": [[0.4, np.nan]]}, ActionError, "'w' is nan"),
    ],
)
def test_plans_that_do_not_fit(teacher: WorldModel, options: Any, kind: type[Exception], message: str) -> None:
    env = planned(teacher, actions=DRIVE)
    env.reset(seed=0)
    with pytest.raises(kind, match=message):
        env.reset(options=options)
    assert env.step(DRIVE[0])[4]["followed"]  # the episode before goes on
    with pytest.raises(kind, match=message):
        planned(teacher, **options)


def test_options_that_exclude_each_other_or_are_unknown(teacher: WorldModel) -> None:
    env = planned(teacher, trajectory=drive())
    with pytest.raises(SceneError, match="did you mean 'trajectory'"):
        env.reset(options={"trajectry": drive()})
    with pytest.raises(SceneError, match="both 'trajectory' and 'actions'"):
        env.reset(options={"trajectory": drive(), "actions": DRIVE})
    with pytest.raises(SceneError, match="'pose' is given beside a trajectory"):
        env.reset(options={"pose": np.eye(4)})
    with pytest.raises(ConfigError, match="trajectory and actions are both given"):
        planned(teacher, trajectory=drive(), actions=DRIVE)
    with pytest.raises(ConfigError, match="did you mean 'trajectory'"):
        planned(teacher, trajectry=drive())


def test_a_snapshot_holds_the_clip_and_the_place_in_it(teacher: WorldModel, tmp_path: Path) -> None:
    env = planned(teacher, actions=DRIVE)
    env.reset(seed=3)
    env.step(DRIVE[0])
    taken = env.get_state()
    taken.save(tmp_path / "place")
    going_on = play(env, DRIVE[1:])
    for state in (taken, Snapshot.load(tmp_path / "place", teacher)):
        fresh = planned(teacher)
        fresh.set_state(state)
        for one, two in zip(going_on, play(fresh, DRIVE[1:]), strict=True):
            assert_same(one[4], two[4])
        assert len(fresh.reset(seed=1)[1]["frames"]) == 1


def test_a_clip_neither_forks_nor_continues_elsewhere(tiny_model: WorldModel) -> None:
    env, stepped = planned(tiny_model, actions=DRIVE), SanaWMEnv(tiny_model, task="drive")
    env.reset(seed=0), stepped.reset(seed=0)
    with pytest.raises(StateError, match=r"fork\(4\) of a planned clip has no meaning"):
        env.fork(4)
    with pytest.raises(StateError, match="over a planned clip, this environment has DiffDrive"):
        stepped.set_state(env.get_state())
    with pytest.raises(StateError, match=r"this environment has .* over a planned clip"):
        env.set_state(stepped.get_state())


def test_a_model_that_cannot_be_stepped_is_sent_here(model: WorldModel) -> None:
    # As released: a teacher without levels to step at.
    released = WorldModel(dataclasses.replace(model.config, timesteps=(1000,)), model.denoiser, model.autoencoder)
    with pytest.raises(ConfigError, match=rf"variant is '{model.config.variant}', allowed is 'distilled'.*PlannedEnv"):
        gymnasium.make("sanawm_env/Rooms-v0", bundle=released)


def test_all_frames_are_rendered(teacher: WorldModel) -> None:
    env = planned(teacher, actions=DRIVE, render_mode="rgb_array_list")
    env.reset(seed=0)
    play(env)
    np.testing.assert_array_equal(np.stack(env.render()), clip_of(teacher, drive(), 0))


def test_the_first_frame_is_the_picture_as_the_autoencoder_shows_it(teacher: WorldModel) -> None:
    env = planned(teacher, actions=DRIVE)
    first, _ = env.reset(seed=0)
    _, opened = initial(teacher, picture()[None], seeds=[0])
    np.testing.assert_array_equal(first, opened.frames[0, 0].numpy())
