"""Behaviour cloning: what is collected, what is learned from it, and the policy that comes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.policies.drives import rooms

from sanawm_env.config import from_mapping
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.verify import verify
from sanawm_env.demonstrations import Collect, collect
from sanawm_env.demonstrations import main as demonstrations_main
from sanawm_env.errors import ActionError, ConfigError, SpaceError, StorageError
from sanawm_env.policies import cloning_train
from sanawm_env.policies.cloning import ClonedPolicy
from sanawm_env.policies.cloning_augment import Augment, augmented
from sanawm_env.policies.cloning_data import read_demonstrations
from sanawm_env.policies.cloning_network import NetworkConfig
from sanawm_env.policies.cloning_train import CHECKPOINT, CloningTraining, train
from sanawm_env.policies.episodes import run_episodes
from sanawm_env.policies.expert import Expert
from sanawm_env.spaces import check_policy
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel

NETWORK = NetworkConfig(shrink=1, widths=(8, 16, 16), hidden=32, dropout=0.0, chunk=3)
PLAIN = Augment(shift=0, brightness=0.0, mirror=False)
EPISODES = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demonstrations") / "a.zarr"
    told = collect(Collect(out=path, episodes=EPISODES, durable=False), rooms(EPISODES))
    assert told["episodes"] == told["collected"] == EPISODES
    return path


def settings(store: Path, out: Path, **changes: Any) -> CloningTraining:
    told: dict[str, Any] = {"data": str(store), "out": out, "network": NETWORK, "augment": PLAIN, "device": "cpu"}
    told |= {"minutes": None, "steps": 8, "batch": 8, "warmup": 2, "validation": 0.25, "validate_every": 4, "ema": 0.9}
    return from_mapping(CloningTraining, told | changes)


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(settings(store, out))
    return out


def observation(policy: ClonedPolicy, worlds: int) -> dict[str, np.ndarray]:
    policy.observation_space.seed(0)
    rows = [policy.observation_space.sample() for _ in range(worlds)]
    seen = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    scale = np.random.default_rng(0).normal(size=(2, worlds, 6)).astype(np.float32)
    return seen | {"goal": scale[0, :, :3], "velocity": scale[1]}


def test_the_store_has_what_cloning_needs(store: Path) -> None:
    assert not verify(store).problems
    episodes = EpisodeStore(store)
    env = rooms(EPISODES)
    seen, info = env.reset(seed=0)
    demonstrations, fit = read_demonstrations(store, NETWORK, torch.device("cpu"))
    assert (fit.height, fit.width, fit.frames_per_step, fit.fps) == (32, 40, 8, 10.0)
    for index in range(EPISODES):
        episode, told = episodes[index], episodes.describe(index)
        world = told["seed"]
        np.testing.assert_array_equal(episode["start_goals"], info["goal"][world])
        assert np.abs(episode["actions"] - episode["expert_actions"]).max() > 0.01, "the noise was not executed"
        assert told["extra"]["noise"] == [0.1, 0.25]
        first = int(torch.argmax((demonstrations.episode == index).int()))
        np.testing.assert_allclose(demonstrations.goal[first], seen["goal"][world], atol=1e-5)
        np.testing.assert_array_equal(demonstrations.velocity[first], np.zeros(6, np.float32))
        np.testing.assert_array_equal(demonstrations.actions[first, 0], episode["expert_actions"][0])
    lengths = [np.count_nonzero(demonstrations.episode == index) for index in range(EPISODES)]
    assert lengths == [len(episodes[index]["valid"]) for index in range(EPISODES)]


def test_an_instant_is_what_the_environment_would_observe(store: Path) -> None:
    episodes = EpisodeStore(store)
    demonstrations, _ = read_demonstrations(store, NETWORK, torch.device("cpu"), episodes=[0])
    env = rooms(1)
    env.reset(seed=episodes.describe(0)["seed"])
    expert = Expert(env)
    ways = expert.initial_state(1)
    seen, _ = env.observe()
    for step in range(0, len(demonstrations), 8):
        if step:
            seen, *_ = env.step(episodes[0]["actions"][step - 8][None])
        wanted, ways = expert.act(seen, ways)
        np.testing.assert_allclose(demonstrations.actions[step, 0], wanted[0], atol=1e-3)
        for key in ("goal", "velocity"):
            np.testing.assert_allclose(getattr(demonstrations, key)[step], seen[key][0], atol=2e-4)
        shown = demonstrations.pictures[step].movedim(0, -1).numpy().astype(float)
        assert np.abs(shown - seen["image"][0]).mean() < 8, "more than JPEG does"


def test_collection_goes_on_and_refuses_another_job(store: Path, tmp_path: Path) -> None:
    told = collect(Collect(out=store, episodes=EPISODES, durable=False), rooms(2))
    assert (told["episodes"], told["collected"]) == (EPISODES, 0)
    with pytest.raises(ConfigError, match="holds demonstrations from 'rooms"):
        collect(Collect(out=store, noise=(0.0, 0.0)), rooms(2))
    with pytest.raises(ConfigError, match="holds demonstrations"):
        collect(Collect(out=store, world="dream"))
    with pytest.raises(ConfigError, match="episodes is 0"):
        Collect(out=tmp_path, episodes=0)


def test_the_dream_is_collected_from_by_the_same_code(tiny_model: WorldModel, tmp_path: Path) -> None:
    options: dict[str, Any] = {"observation": "dict", "frames": "all", "task": "goto"}
    env = SanaWMVectorEnv(2, tiny_model, **options)
    job = Collect(out=tmp_path / "a.zarr", episodes=2, world="dream", noise=(0.0, 0.0), durable=False)
    assert collect(job, env)["success"] == 2
    episode = EpisodeStore(job.out)[0]
    np.testing.assert_array_equal(episode["expert_actions"][0], episode["actions"][0])
    demonstrations, _ = read_demonstrations(job.out, NETWORK, torch.device("cpu"), episodes=[0])
    np.testing.assert_array_equal(demonstrations.actions[0, 0], episode["actions"][0])
    with pytest.raises(ConfigError, match="holds demonstrations from 'tiny'"):
        collect(job, rooms(2))


def test_the_bare_commands(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = [f"data={store}", f"out={tmp_path}", "steps=2", "batch=4", "device=cpu", "network.shrink=1"]
    assert cloning_train.main([*told, "network.widths=[8,8]", "validation=0"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 2
    assert cloning_train.main([*told, "step=3"]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err
    assert demonstrations_main([f"out={store}", "world=dream"]) == 2
    assert "holds demonstrations" in capsys.readouterr().err


def test_it_learns_a_few_episodes_by_heart(store: Path, tmp_path: Path) -> None:
    figures = train(settings(store, tmp_path, steps=150, validation=0.0, batch=64, lr=3e-3, validate_every=150))
    assert figures["train_error"] < 0.03
    before = ClonedPolicy.load(tmp_path / "policy")
    untrained = ClonedPolicy(before.fit, before.config)
    demonstrations, _ = read_demonstrations(store, NETWORK, torch.device("cpu"))
    seen = {"image": demonstrations.pictures.movedim(1, -1), "goal": demonstrations.goal}
    errors = [
        np.abs(policy.plan(seen | {"velocity": demonstrations.velocity})[:, 0] - demonstrations.actions[:, 0].numpy())
        for policy in (before, untrained)
    ]
    assert errors[0].mean() < 0.05 < errors[1].mean()


def test_a_training_that_was_cut_off_ends_with_the_same_weights(store: Path, trained: Path, tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    class Once(cloning_train.Cloning):
        def _descend(self) -> torch.Tensor:
            if self.step == 5:
                raise Cut
            return super()._descend()

    whole = cloning_train.Cloning
    try:
        cloning_train.Cloning = Once  # type: ignore[misc]
        with pytest.raises(Cut):
            train(settings(store, tmp_path))
    finally:
        cloning_train.Cloning = whole  # type: ignore[misc]
    assert train(settings(store, tmp_path))["steps"] == 8
    parts = [torch.load(folder / CHECKPOINT, weights_only=True) for folder in (trained, tmp_path)]
    for name in ("network", "ema"):
        for key, values in parts[0][name].items():
            torch.testing.assert_close(parts[1][name][key], values, rtol=0, atol=0)
    policies = [ClonedPolicy.load(folder / "policy") for folder in (trained, tmp_path)]
    seen = observation(policies[0], 3)
    np.testing.assert_array_equal(policies[0].plan(seen), policies[1].plan(seen))
    with pytest.raises(ConfigError, match="give the same network"):
        train(settings(store, tmp_path, network=replace(NETWORK, hidden=16)))


def test_the_policy_drives_and_its_rows_are_independent(trained: Path) -> None:
    env = rooms(3, task={"name": "goto", "time_limit": 2.0})
    policy = ClonedPolicy.load(trained / "policy")
    check_policy(policy, env)
    assert {one.seed for one in run_episodes(env, policy, [5, 6, 7])} == {5, 6, 7}
    seen = observation(policy, 3)
    together, _ = policy.act(seen, policy.initial_state(3))
    alone, _ = policy.act({key: rows[1:2] for key, rows in seen.items()}, policy.initial_state(1))
    np.testing.assert_allclose(together[1:2], alone, atol=1e-5)
    tensors, _ = policy.act({key: torch.from_numpy(rows) for key, rows in seen.items()}, policy.initial_state(3))
    np.testing.assert_array_equal(together, tensors)


def test_it_carries_out_as_much_of_a_plan_as_it_is_told(trained: Path) -> None:
    kept = ClonedPolicy.load(trained / "policy")
    policy = ClonedPolicy(kept.fit, replace(kept.config, execute=2), kept.network.state_dict())
    seen, other = observation(policy, 2), observation(policy, 2)
    other["goal"] = -other["goal"]
    plan, state = policy.plan(seen), policy.initial_state(2)
    first, state = policy.act(seen, state)
    state = policy.reset(state, np.array([False, True]))
    second, state = policy.act(other, state)
    np.testing.assert_array_equal(first, plan[:, 0])
    np.testing.assert_array_equal(second[0], plan[0, 1])  # still of the first plan
    np.testing.assert_array_equal(second[1], policy.plan(other)[1, 0])  # a new episode, a new plan
    third, _ = policy.act(other, state)
    np.testing.assert_array_equal(third[0], policy.plan(other)[0, 0])


def test_the_exported_graph_equals_the_policy(trained: Path, tmp_path: Path) -> None:
    policy = ClonedPolicy.load(trained / "policy")
    policy.export(tmp_path / "policy.pt2")
    graph = torch.export.load(tmp_path / "policy.pt2").module()
    for worlds in (1, 5):
        seen = observation(policy, worlds)
        exported = graph(*(torch.from_numpy(seen[key]) for key in ("image", "goal", "velocity")))
        np.testing.assert_allclose(exported.detach(), policy.plan(seen), atol=1e-5)


def test_a_mirror_turns_all_that_it_must(store: Path) -> None:
    demonstrations, fit = read_demonstrations(store, NETWORK, torch.device("cpu"))
    mirror = Augment(shift=0, brightness=0.0, mirror=True)
    seen = augmented(demonstrations, mirror, fit.action_map, torch.Generator().manual_seed(0))
    turned = seen.goal[:, 1] != demonstrations.goal[:, 1]
    assert 0 < int(turned.sum()) < len(turned)
    for row, flipped in enumerate(turned.tolist()):
        sign = torch.tensor([1.0, -1.0 if flipped else 1.0])
        torch.testing.assert_close(seen.actions[row], demonstrations.actions[row] * sign)
        picture = demonstrations.pictures[row].float()
        torch.testing.assert_close(seen.pictures[row], picture.flip(-1) if flipped else picture)
    moved = augmented(demonstrations, Augment(shift=2, brightness=0.2, mirror=False), fit.action_map, torch.Generator())
    assert moved.pictures.shape == demonstrations.pictures.shape
    assert float(moved.pictures.max()) <= 255.0


def test_bad_input_is_refused(store: Path, trained: Path, tmp_path: Path) -> None:
    policy = ClonedPolicy.load(trained / "policy")
    with pytest.raises(SpaceError, match=r"made for observation_space"):
        check_policy(policy, rooms(1, observation="last"))
    with pytest.raises(SpaceError, match=r"made for action_space"):
        list(run_episodes(rooms(1, action_map="holonomic"), policy, [0]))
    broken = ClonedPolicy.load(trained / "policy")
    seen = observation(broken, 3)
    seen["goal"][2] = np.nan
    with pytest.raises(ActionError, match=r"gave \[nan, nan\] for world 2"):
        broken.act(seen, broken.initial_state(3))
    with pytest.raises(StorageError, match="is no cloned policy"):
        ClonedPolicy.load(tmp_path / "nowhere")
    broken.save(tmp_path / "damaged")
    (tmp_path / "damaged" / "policy.safetensors").write_bytes(b"no weights")
    with pytest.raises(StorageError, match="is no cloned policy"):
        ClonedPolicy.load(tmp_path / "damaged")
    with pytest.raises(ConfigError, match="minutes and steps are None"):
        settings(store, tmp_path, steps=None)
    with pytest.raises(ConfigError, match=r"error is nan at step 4, .* smaller lr than 1e"):
        train(settings(store, tmp_path / "diverged", lr=1e30, clip=1e30))
    with pytest.raises(ConfigError, match="multiples of shrink = 3"):
        train(settings(store, tmp_path, network=replace(NETWORK, shrink=3)))
    assert not (tmp_path / CHECKPOINT).exists()
