"""The policy that PPO leaves: what it sees, its file, what it refuses; and a training that is stopped and gone on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save_file

from sanawm_env.cli import main
from sanawm_env.errors import ActionError, ConfigError, MissingExtraError, SpaceError, StorageError
from sanawm_env.policies.episodes import run_episodes
from sanawm_env.policies.goal_network import NetworkConfig, View
from sanawm_env.policies.ppo import PpoPolicy
from sanawm_env.running import SEEDS
from sanawm_env.training.ppo import Learning, PpoTraining, first_seed, rate, run
from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel

SMALL = NetworkConfig(channels=(4, 8), features=16, hidden=8)


@pytest.fixture
def truth(tiny_model: WorldModel) -> RoomsTruthVectorEnv:
    return RoomsTruthVectorEnv(2, tiny_model, observation="dict", frames="none", device="cpu")


def make_policy(env: SanaWMVectorEnv, network: NetworkConfig = SMALL) -> PpoPolicy:
    return PpoPolicy(env.single_observation_space, env.single_action_space, network, {"minutes": 1.5})


def test_a_view_shrinks_pictures_where_they_are(truth: RoomsTruthVectorEnv) -> None:
    observation, _ = truth.reset(seed=0)
    view = View(truth.single_observation_space, NetworkConfig(shrink=4))
    seen = view(observation)
    assert set(seen) == {"image", "velocity", "goal"}
    for row in range(2):
        assert {name: part[row].numpy() for name, part in seen.items()} in view.observation_space
    block = observation["image"][1, 4:8, 8:12].astype(np.float32).mean(axis=(0, 1))
    np.testing.assert_array_equal(seen["image"][1, :, 1, 2].numpy(), np.round(block))
    blind = View(truth.single_observation_space, NetworkConfig(pictures=False))
    assert set(blind(observation)) == {"velocity", "goal"}


def test_a_row_depends_on_its_own_observation_alone(truth: RoomsTruthVectorEnv) -> None:
    observation, _ = truth.reset(seed=0)
    policy = make_policy(truth)
    together, state = policy.act(observation, policy.initial_state(2))
    assert state is None and together.shape == (2, 2)
    assert all(row in truth.single_action_space for row in together)
    for row in range(2):
        alone, _ = policy.act({name: part[row : row + 1] for name, part in observation.items()})
        np.testing.assert_allclose(alone[0], together[row], atol=1e-6)
    torched, _ = policy.act({name: torch.from_numpy(part) for name, part in observation.items()})
    np.testing.assert_array_equal(torched, together)


def test_a_policy_goes_through_its_file(truth: RoomsTruthVectorEnv, tmp_path: Path) -> None:
    observation, _ = truth.reset(seed=3)
    policy = make_policy(truth)
    policy.save(tmp_path / "made" / "policy.safetensors")
    again = PpoPolicy.load(tmp_path / "made" / "policy.safetensors")
    assert again.observation_space == policy.observation_space and again.action_space == policy.action_space
    assert again.network == SMALL and again.provenance == {"minutes": 1.5}
    np.testing.assert_array_equal(again.act(observation)[0], policy.act(observation)[0])
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["policy.safetensors"]


def test_files_that_are_no_policy(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.safetensors cannot be read"):
        PpoPolicy.load(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(StorageError, match=r"torn\.safetensors cannot be read"):
        PpoPolicy.load(tmp_path / "torn.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(StorageError, match="has format None, allowed is 'sanawm-ppo-policy-1'"):
        PpoPolicy.load(tmp_path / "other.safetensors")


def test_spaces_that_no_policy_is_for(tiny_model: WorldModel, truth: RoomsTruthVectorEnv) -> None:
    box = truth.single_action_space
    with pytest.raises(SpaceError, match="make the environment with observation='dict'"):
        PpoPolicy(spaces.Box(0, 255, (32, 40, 3), np.uint8), box, SMALL)
    with pytest.raises(SpaceError, match=r"action_space is Discrete\(3\).*continuous action_map"):
        PpoPolicy(truth.single_observation_space, spaces.Discrete(3), SMALL)
    other = RoomsTruthVectorEnv(2, tiny_model, observation="dict", action_map="twist", device="cpu")
    with pytest.raises(SpaceError, match=r"made for action_space Box.*\(2,\).*the environment has Box.*\(6,\)"):
        list(run_episodes(other, make_policy(truth), [0, 1]))
    with pytest.raises(ConfigError, match="shrink 0"):
        NetworkConfig(shrink=0)


def test_nan_of_a_policy_names_the_worlds(truth: RoomsTruthVectorEnv) -> None:
    class Broken(PpoPolicy):
        def act(self, observation: Any, state: None = None) -> tuple[np.ndarray, None]:
            actions, _ = super().act(observation, state)
            actions[1, 0] = np.nan
            return actions, None

    policy = Broken(truth.single_observation_space, truth.single_action_space, SMALL)
    with pytest.raises(ActionError, match=r"the policy gave \[nan.* in world 1 \(seed 4, step 0\)"):
        list(run_episodes(truth, policy, [3, 4]))
    observation, _ = truth.reset(seed=0)
    with pytest.raises(ActionError, match=r"'v' is nan \(worlds with such actions: 1\).*check the policy for NaN"):
        truth.step(policy.act(observation)[0])
    assert (truth.observe()[1]["frame"] == 0).all(), "nothing has moved"


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="say when to stop"):
        PpoTraining(out=Path("x"), minutes=None)
    with pytest.raises(ConfigError, match="num_envs is 0"):
        PpoTraining(out=Path("x"), num_envs=0)
    with pytest.raises(ConfigError, match=r"learning.discount is 1.5, allowed is 0 .. 1"):
        Learning(discount=1.5)


def test_seeds_and_rates() -> None:
    config = PpoTraining(out=Path("x"), num_envs=256)
    seeds = [first_seed(config, steps) for steps in (0, 4096)]
    assert seeds[0] != seeds[1] and max(seeds) + 256 <= SEEDS
    assert rate(config, 0.0) == pytest.approx(1e-3) and rate(config, 1.0) == pytest.approx(1e-4)


def test_without_the_extra_the_error_names_it(tiny_model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("stable_baselines3")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("sanawm_env.wrappers.sb3", "sanawm_env.training.ppo_learner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(MissingExtraError, match=r"sanawm-env\[rl\]"):
        run(PpoTraining(out=Path("x"), bundle=tiny_model))


class TestTraining:
    """A few updates in worlds of random weights."""

    @pytest.fixture(autouse=True)
    def _learner(self) -> None:
        pytest.importorskip("stable_baselines3", reason="the extra `rl` is not installed")

    def config(self, bundle: Any, out: Path, steps: int, **changes: Any) -> PpoTraining:
        quick = {"device": "cpu", "num_envs": 2, "minutes": None, "horizon": 12, "log_seconds": 0.0, "network": SMALL}
        learning = Learning(rollout=4, batch=8, epochs=2)
        return PpoTraining(**{**quick, "out": out, "bundle": bundle, "steps": steps, "learning": learning, **changes})

    def test_a_training_goes_on_where_it_was(self, tiny_model: WorldModel, tmp_path: Path) -> None:
        lines: list[str] = []
        first = run(self.config(tiny_model, tmp_path, 8), lines.append)
        before = PpoPolicy.load(tmp_path / "policy.safetensors")
        assert first["steps"] == 8
        second = run(self.config(tiny_model, tmp_path, 24), lines.append)
        after = PpoPolicy.load(tmp_path / "policy.safetensors")
        assert second["steps"] == after.provenance["figures"]["steps"] == 24
        assert any(
            (x != y).any() for x, y in zip(before.actor.state_dict().values(), after.actor.state_dict().values())
        )
        assert run(self.config(tiny_model, tmp_path, 24), lines.append)["steps"] == 24, "nothing is left to do"
        assert after.provenance["settings"]["environment"] == "dream"
        written = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
        assert len(written) == len(lines) and {"steps", "return", "steps_per_second"} <= set(written[-1])

    def test_equal_seeds_learn_the_same(self, tiny_model: WorldModel, tmp_path: Path) -> None:
        weights = []
        for name in ("one", "two"):
            run(self.config(tiny_model, tmp_path / name, 16, environment="truth"), lambda line: None)
            weights.append(PpoPolicy.load(tmp_path / name / "policy.safetensors").actor.state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    def test_what_was_learnt_is_what_acts(self, tiny_model: WorldModel, tmp_path: Path) -> None:
        from sanawm_env.training.ppo import make_worlds
        from sanawm_env.training.ppo_learner import Learner

        config = self.config(tiny_model, tmp_path, 8, environment="truth")
        env = make_worlds(config)
        learner = Learner(config, env, lambda line: None)
        learner.learn()
        observation, _ = env.reset(seed=5)
        seen = {name: part.numpy() for name, part in View(env.single_observation_space, SMALL)(observation).items()}
        expected, _ = learner.model.predict(seen, deterministic=True)
        np.testing.assert_allclose(learner.policy.act(observation)[0], expected, atol=1e-6)

    def test_the_clock_stops_it(self, tiny_model: WorldModel, tmp_path: Path) -> None:
        config = self.config(tiny_model, tmp_path, 10**9, minutes=0.01, environment="truth")
        assert run(config, lambda line: None)["seconds"] < 20
        assert (tmp_path / "policy.safetensors").exists()

    def test_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = ["environment=truth", "learning.rollout=2", "learning.batch=2", "network.channels=[4]", "horizon=8"]
        flags = ["--num-envs", "1", "--steps", "2", "--device", "cpu", "--out", str(tmp_path)]
        assert main(["train", "ppo", *flags, *told]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 2
        assert main(["train", "ppo", "--out", str(tmp_path), "learning.bach=2"]) == 2
        assert "did you mean 'batch'" in capsys.readouterr().err
