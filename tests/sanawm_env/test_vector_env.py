"""Batches of worlds: Gymnasium's autoreset modes, lines of seeds, isolation, tensors as observations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from sanawm_env import capacity
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ConfigError
from sanawm_env.step_memory import activations
from sanawm_env.testing import assert_same, row_of
from sanawm_env.truth import RoomsTruthEnv, RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.episodes import StoreVectorEpisodes
from sanawm_env.wrappers.rerun_log import LogVectorToRerun

SEEDS = [18, 0, 10**9 + 2]  # straight ahead, the first hits something in the second chunk, the others later
KINDS = [(SanaWMEnv, SanaWMVectorEnv), (RoomsTruthEnv, RoomsTruthVectorEnv)]
OPTIONS: dict[str, Any] = {"task": "drive", "frames": "all", "observation": "dict", "horizon": 20}
ACTIONS = np.array([[1.0, 0.0], [0.9, 0.1], [0.7, -0.2]], np.float32)
STEPS = 4


def alone(env: gymnasium.Env[Any, Any], seed: int, action: np.ndarray, mode: AutoresetMode) -> Iterator[Any]:
    """What a batch should say of one world: a single environment, reset by hand as Gymnasium's modes are defined."""
    yield env.reset(seed=seed)
    ended = False
    for _ in range(STEPS):
        if ended and mode is AutoresetMode.NEXT_STEP:
            ended = False
            yield *(begun := env.reset())[:1], 0.0, False, False, begun[1]
            continue
        observation, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        if ended and mode is AutoresetMode.SAME_STEP:
            final = {"final_obs": observation, "final_info": info}
            observation, info = env.reset()
            info |= final
        yield observation, reward, terminated, truncated, info


def of_world(info: dict[str, Any], world: int) -> dict[str, Any]:
    """One world's part of a batch's info: the keys whose mask it is in."""
    told = {}
    for key, value in info.items():
        if key.startswith("_") or not info[f"_{key}"][world]:
            continue
        told[key] = of_world(value, world) if isinstance(value, dict) else value[world]
    return told


def assert_says(batch: dict[str, Any], single: dict[str, Any]) -> None:
    assert batch.keys() == single.keys()
    for key, value in single.items():
        if isinstance(value, dict):
            assert_says(batch[key], value)
        elif key in ("poses", "frames"):  # one row of a beginning stands for a chunk
            np.testing.assert_array_equal(batch[key], np.broadcast_to(value, batch[key].shape), err_msg=key)
        else:
            np.testing.assert_array_equal(batch[key], value, err_msg=key)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(("single", "vector"), KINDS)
def test_autoreset_says_of_each_world_what_it_would_say_alone(
    tiny_model: WorldModel, single: Any, vector: Any, mode: AutoresetMode
) -> None:
    batch = vector(len(SEEDS), tiny_model, autoreset_mode=mode, **OPTIONS)
    assert batch.metadata["autoreset_mode"] is mode
    together = [batch.reset(seed=SEEDS), *(batch.step(ACTIONS) for _ in range(STEPS))]
    ends = np.zeros(len(SEEDS), int)
    for world, seed in enumerate(SEEDS):
        expected = alone(single(tiny_model, **OPTIONS), seed, ACTIONS[world], mode)
        for got, wanted in zip(together, expected, strict=True):
            assert_same(row_of(got[0], world), wanted[0])
            assert_says(of_world(got[-1], world), wanted[-1])
            if len(wanted) == 5:
                assert tuple(part[world] for part in got[1:4]) == wanted[1:4]
                ends[world] += wanted[2] or wanted[3]
    assert (ends > 0).all()
    ages = {tuple(result[-1]["frame"]) for result in together}
    assert any(len(set(age)) > 1 for age in ages)  # worlds of different ages shared a batch


@pytest.mark.parametrize("name", ["Rooms-v0", "RoomsTruth-v0"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_world_shows_the_same_in_any_batch(tiny_model: WorldModel, name: str, mode: AutoresetMode) -> None:
    def run(worlds: list[int]) -> list[Any]:
        env = gymnasium.make_vec(
            f"sanawm_env/{name}", num_envs=len(worlds), bundle=tiny_model, autoreset_mode=mode, task="drive", horizon=12
        )
        results = [env.reset(seed=[SEEDS[world] for world in worlds])[0]]
        for _ in range(3):
            observation, _, terminated, truncated, _ = env.step(ACTIONS[worlds])
            results.append(observation)
            if mode is AutoresetMode.DISABLED and (ended := terminated | truncated).any():
                results[-1] = env.reset(options={"reset_mask": ended})[0]
        return results

    whole = run([0, 1, 2])
    for worlds in ([1], [2, 0]):
        for some, every in zip(run(worlds), whole, strict=True):
            np.testing.assert_array_equal(some, every[worlds])


def test_gymnasiums_own_vector_environment_begins_the_same_episodes(tiny_model: WorldModel) -> None:
    options = {"bundle": tiny_model, "task": "drive", "frames": "none", "horizon": 8}
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        ours = gymnasium.make_vec("sanawm_env/RoomsTruth-v0", 2, autoreset_mode=mode, **options)
        theirs = gymnasium.make_vec(
            "sanawm_env/RoomsTruth-v0", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **options
        )
        np.testing.assert_array_equal(ours.reset(seed=[3, 9])[0], theirs.reset(seed=[3, 9])[0])
        for _ in range(3):
            mine, other = ours.step(np.zeros((2, 2))), theirs.step(np.zeros((2, 2)))
            for one, two in zip(mine[:4], other[:4], strict=True):
                np.testing.assert_array_equal(one, two)
            assert mine[4].keys() >= {key for key in other[4] if key != "_final_obs"}
            if "final_obs" in other[4]:
                np.testing.assert_array_equal(mine[4]["_final_obs"], other[4]["_final_obs"])
                np.testing.assert_array_equal(mine[4]["final_obs"][1], other[4]["final_obs"][1])
                np.testing.assert_array_equal(mine[4]["final_info"]["frame"], other[4]["final_info"]["frame"])


def test_stock_wrappers_take_every_mode(tiny_model: WorldModel) -> None:
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        env = RoomsTruthVectorEnv(2, tiny_model, autoreset_mode=mode, task="drive", horizon=16)
        wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
        wrapped.reset(seed=0)
        infos = [wrapped.step(np.zeros((2, 2)))[4] for _ in range(2)]
        assert infos[1]["episode"]["l"].tolist() == [2, 2]


def test_a_line_of_seeds_goes_through_a_snapshot(tiny_model: WorldModel) -> None:
    env = RoomsTruthVectorEnv(2, tiny_model, autoreset_mode="SameStep", task="drive", horizon=8)
    env.reset(seed=[5, 6])
    env.step(np.zeros((2, 2)))
    taken = env.get_state()
    expected = [env.step(np.zeros((2, 2)))[4]["seed"] for _ in range(2)]
    env.set_state(taken)
    assert_same([env.step(np.zeros((2, 2)))[4]["seed"].tolist() for _ in range(2)], [one.tolist() for one in expected])
    assert len({int(seed) for one in expected for seed in one}) == 4


def test_futures_go_on_to_episodes_of_their_own(tiny_model: WorldModel) -> None:
    env = RoomsTruthEnv(tiny_model, task="drive")
    env.reset(seed=5)
    rooms = env.fork(4).reset()[1]["room"]
    assert len(set(rooms.tolist())) == 4


def test_an_unknown_mode_is_an_error(tiny_model: WorldModel) -> None:
    with pytest.raises(ConfigError, match="autoreset_mode is 'next', allowed is an AutoresetMode or one of 'NextStep'"):
        SanaWMVectorEnv(2, tiny_model, autoreset_mode="next")


@pytest.mark.parametrize("kind", ["last", "all", "dict"])
@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.SAME_STEP])
def test_tensors_hold_what_arrays_do(tiny_model: WorldModel, kind: str, mode: AutoresetMode) -> None:
    made = [
        SanaWMVectorEnv(
            2, tiny_model, arrays=arrays, observation=kind, autoreset_mode=mode, latents=True, frames="all", horizon=12
        )
        for arrays in ("torch", "numpy")
    ]
    for results in zip(*([env.reset(seed=[1, 2]), *(env.step(ACTIONS[:2]) for _ in range(3))] for env in made)):
        tensors, arrays = results
        images = tensors[0]["image"] if kind == "dict" else tensors[0]
        assert isinstance(images, torch.Tensor) and images.device == tiny_model.device
        for key in ("frames", "latents"):
            assert isinstance(tensors[-1][key], torch.Tensor)
        assert isinstance(tensors[-1]["poses"], np.ndarray)
        np.testing.assert_equal(as_arrays(tensors), as_arrays(arrays))


def as_arrays(given: Any) -> Any:
    if isinstance(given, dict):
        return {key: as_arrays(value) for key, value in given.items()}
    if isinstance(given, tuple | list) or (isinstance(given, np.ndarray) and given.dtype == object):
        return [as_arrays(value) for value in given]
    return given.numpy() if isinstance(given, torch.Tensor) else given


def test_a_tensor_of_the_environment_is_the_callers_own(tiny_model: WorldModel) -> None:
    env = SanaWMEnv(tiny_model, arrays="torch", task="drive", render_mode="rgb_array")
    observation, info = env.reset(seed=0)
    shown = env.render()
    observation.zero_(), info["frames"].zero_()
    np.testing.assert_array_equal(env.render(), shown)


def test_more_worlds_than_memory_are_refused_with_what_fits(
    tiny_model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = 2 * tiny_model.empty_state(1).nbytes()["total"] + 8 * 32 * 40 * 3
    computing = activations(tiny_model, ("denoise", "decode"))
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 10 * each + computing)
    wanted = 11 * each + computing
    words = rf"num_envs is 11: each takes {-(-wanted // 11):,} bytes on 'cpu', all {wanted:,}, .*at most 10\. Run fewer"
    with pytest.raises(ConfigError, match=words):
        SanaWMVectorEnv(11, tiny_model)
    env = SanaWMVectorEnv(2, tiny_model, task="drive")
    env.reset(seed=0)
    env.fork(5)
    with pytest.raises(ConfigError, match=r"the number of futures is 12: .*at most 10\. Fork fewer .*at_once="):
        env.fork(6)
    observation = env.step(ACTIONS[:2])[0]  # and goes on
    assert observation.shape == (2, 32, 40, 3)


def test_free_memory_is_known_here() -> None:
    told = capacity.host_memory()
    assert told["total_bytes"] is not None and told["available_bytes"] is not None
    assert 0 < told["available_bytes"] <= told["total_bytes"]
    assert capacity.free_bytes(torch.device("cpu")) is not None


@pytest.mark.parametrize("options", [{"autoreset_mode": "SameStep"}, {"arrays": "torch"}])
def test_recordings_need_episodes_reset_by_hand_and_arrays(
    tiny_model: WorldModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    env = SanaWMVectorEnv(2, tiny_model, frames="all", **options)
    for wrap in (StoreVectorEpisodes, LogVectorToRerun):
        with pytest.raises(ConfigError, match="recordings"):
            wrap(env, tmp_path / "place")
    assert not (tmp_path / "place").exists()
