"""The transfer benchmark: known answers of its statistics, shortest ways, a small run to its end, and bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.policies.drives import SMALL, Undrawn, rooms

from sanawm_env.config import from_mapping, parse_overrides
from sanawm_env.errors import ConfigError, SanaWMError, SpaceError, StorageError
from sanawm_env.evaluation.held_out import FIRST_SEED
from sanawm_env.evaluation.intervals import bootstrap, mean_interval, ranks, spearman, wilson
from sanawm_env.evaluation.transfer import EvalTransfer, Results, main, read, run
from sanawm_env.evaluation.transfer_figures import correlation, pairs, ratios
from sanawm_env.evaluation.transfer_policies import PolicySpec, knows
from sanawm_env.evaluation.transfer_report import summary, write
from sanawm_env.evaluation.transfer_scenes import find_scenes
from sanawm_env.policies.episodes import action_noise, run_episodes
from sanawm_env.policies.expert import Expert
from sanawm_env.policies.goal_network import NetworkConfig
from sanawm_env.policies.ppo import PpoPolicy
from sanawm_env.policies.straight import Straight
from sanawm_env.tasks import GoTo
from sanawm_env.testing import PolicyContract
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel

TASK = {"name": "goto", "time_limit": 2.4}


class TestStraight(PolicyContract):
    """Keeps the contract of policies."""

    def make_env(self, num_envs: int) -> SanaWMVectorEnv:
        return rooms(num_envs, Undrawn)

    def make(self, env: SanaWMVectorEnv) -> Straight:
        return Straight(env.single_observation_space, env.single_action_space)


def test_straight_turns_to_the_goal_and_drives() -> None:
    env = rooms(1, Undrawn)
    policy = Straight(env.single_observation_space, env.single_action_space, speed=0.5)
    goal = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, -0.1, 0.0]], np.float32)
    actions, _ = policy.act({"goal": goal})
    np.testing.assert_allclose(actions[0], [0.5, 0.0], atol=1e-6)
    assert actions[1, 1] == 1.0 and actions[1, 0] < 0.1  # left, and turned first
    np.testing.assert_allclose(actions[2, 1], -np.arctan2(0.1, 1.0) / 0.8, rtol=1e-5)


def test_noise_is_of_the_seed_and_step_alone() -> None:
    space = rooms(1, Undrawn).single_action_space
    noise = action_noise(space, 0.3)
    assert noise is not None and action_noise(space, 0.0) is None
    still = np.zeros((2, 2), np.float32)
    one = noise(still, np.array([5, 6]), np.array([1, 4]))
    other = noise(still, np.array([6, 5]), np.array([4, 1]))
    np.testing.assert_array_equal(one, other[::-1])
    assert not np.array_equal(one[0], one[1])


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0.0, 0.277533), (8, 10, 0.490162, 0.943318), (174, 200, 0.816336, 0.909718), (1, 1, 0.206549, 1.0)],
)
def test_wilsons_interval(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=1e-6)


def test_spearman_with_ties() -> None:
    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 3.0, 2.0])), [3.5, 1.0, 3.5, 2.0])
    assert spearman(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(3 / 10**0.5)
    assert spearman(np.array([1.0, 5.0, 9.0]), np.array([0.3, 0.2, 0.1])) == pytest.approx(-1.0)
    assert np.isnan(spearman(np.ones(4), np.arange(4.0))) and np.isnan(spearman(np.ones(1), np.ones(1)))


def test_bootstrap_is_seeded_and_about_right() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = mean_interval(values)
    assert interval is not None and interval == mean_interval(values)
    assert interval[1] - interval[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert interval[0] < values.mean() < interval[1]
    assert bootstrap(5, lambda rows: float("nan")) is None and mean_interval(values[:0]) is None


def test_scenes_show_their_goal_and_no_drive_is_shorter_than_the_shortest_way() -> None:
    found = find_scenes(SMALL, GoTo(), 8, torch.device("cpu"))
    assert len(set(found.seeds)) == 8 and min(found.seeds) >= FIRST_SEED
    assert found.looked_at == max(found.seeds) + 1 - FIRST_SEED
    env = rooms(4, Undrawn, frames="none")
    for one in run_episodes(env, Expert(env), found.seeds):
        shortest = found.shortest[found.seeds.index(one.seed)]
        assert one.success
        assert one.start_distance - 0.5 - 1e-6 <= shortest <= one.metres + 0.1
        assert one.metres <= 2.5 * shortest


def made_up(where: str, name: str, success: str, **identity: Any) -> dict[str, Any]:
    """A line of a file, with a letter a scene: s for success, c for collision."""
    reasons = [{"s": "success", "c": "collision"}[letter] for letter in success]
    told = {"kind": "cloned", "method": "cloned", "trained": "none", "noise": 0.0, **identity}
    seen = {"pictures": told["kind"] == "cloned", "goal": True, "plan": False}
    steps = {"seconds": [2.0] * len(success), "metres": [2.0] * len(success)}
    return {"policy": name, "where": where, "identity": told, "knows": seen, "reasons": reasons, **steps}


def test_figures_of_known_results() -> None:
    lines = []
    for where in ("dream", "truth"):
        lines += [made_up(where, "straight", "sscc" * 10, kind="straight")]
        lines += [made_up(where, "by dream", "ssss" * 5 + "sccc" * 5, trained="dream")]
        lines += [made_up(where, "by truth", "ssss" * 10, trained="truth")]
    setup = {"found": {"seeds": list(range(40)), "looked_at": 41, "shortest": [1.0] * 40}}
    found = pairs(setup, lines)
    assert [pair.name for pair in found] == ["by truth", "by dream", "straight"]
    assert found[0].truth.path_efficiency().value == 0.5
    assert found[1].truth.hard_success().value == 0.5 and found[1].truth.hard_success().count == 20
    ((one, other, ratio, hard),) = ratios(found)
    assert (one.name, other.name) == ("by dream", "by truth")
    assert ratio.value == 0.625 and hard.value == 0.5
    assert ratio.interval is not None and 0.4 < ratio.interval[0] < 0.625 < ratio.interval[1] < 0.8
    fair = correlation(found)
    assert fair.value == pytest.approx(1.0) and fair.count == 3
    assert correlation([pair for pair in found if pair.pictures]).count == 2


@pytest.fixture(scope="module")
def judged(tiny_model: WorldModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvalTransfer, Results]:
    folder = tmp_path_factory.mktemp("transfer")
    env = SanaWMVectorEnv(1, tiny_model, task="goto", observation="dict")
    network = NetworkConfig(shrink=1, channels=(4, 4), features=8, hidden=8)
    torch.manual_seed(0)
    PpoPolicy(env.single_observation_space, env.single_action_space, network).save(folder / "ppo.safetensors")
    config = EvalTransfer(
        policies={"seeing": PolicySpec(kind="ppo", path=folder / "ppo.safetensors", trained="dream")},
        baselines={
            "straight": PolicySpec(kind="straight"),
            "plan": PolicySpec(kind="plan", search={"horizon": 1, "candidates": 2, "iterations": 1, "elites": 1}),
        },
        scenes=2,
        batch=2,
        task=TASK,
        out=folder / "transfer.jsonl",
        page=folder / "page" / "transfer.md",
    )
    return config, run(config, tiny_model, progress=lambda text: None)


def test_a_run_to_its_end(judged: tuple[EvalTransfer, Results]) -> None:
    config, results = judged
    assert read(config.out) == results
    found = {(one["policy"], one["where"]): one for one in results.lines}
    assert len(found) == 6
    # One that looks at no picture does the same in both.
    for key in ("reasons", "metres", "seconds"):
        assert found["straight", "dream"][key] == found["straight", "truth"][key]
    assert found["seeing", "truth"]["knows"] == {"pictures": True, "goal": True, "plan": False}
    assert found["plan", "truth"]["knows"] == {"pictures": False, "goal": True, "plan": True}
    assert all(one["reasons"] and set(one["reasons"]) <= {"success", "collision", "timeout"} for one in results.lines)


def test_the_page_and_its_picture(judged: tuple[EvalTransfer, Results]) -> None:
    config, results = judged
    page = write(results, config.page).read_text(encoding="utf-8")
    assert "| seeing | dream | pictures, goal |" in page and "Driving straight at the goal" in page
    assert (config.page.parent / "media" / "transfer.png").read_bytes()[:4] == b"\x89PNG"
    assert "| plan | nowhere | goal, floor plan |" in summary(results)


def test_a_second_run_judges_only_what_is_missing(
    judged: tuple[EvalTransfer, Results], tiny_model: WorldModel, tmp_path: Path
) -> None:
    config, results = judged
    out = tmp_path / "again.jsonl"
    Results(setup=results.setup, lines=results.lines[1:]).write(out)
    told: list[str] = []
    again = run(dataclasses.replace(config, out=out), tiny_model, progress=told.append)
    assert len(told) == 1 and told[0].startswith(f"{results.lines[0]['policy']}, {results.lines[0]['where']}")
    assert again.lines[-1]["reasons"] == results.lines[0]["reasons"]
    run(dataclasses.replace(config, out=out), tiny_model, progress=told.append)
    assert len(told) == 1


def test_other_setups_and_other_policies_of_a_name_are_refused(
    judged: tuple[EvalTransfer, Results], tiny_model: WorldModel
) -> None:
    config, _ = judged
    before = config.out.read_bytes()
    with pytest.raises(ConfigError, match="was judged with"):
        run(dataclasses.replace(config, scenes=3), tiny_model)
    other = {"straight": PolicySpec(kind="straight", speed=0.3)}
    with pytest.raises(ConfigError, match="another policy named 'straight'"):
        run(dataclasses.replace(config, baselines=other), tiny_model)
    with pytest.raises(ConfigError, match="names of baselines"):
        run(dataclasses.replace(config, policies={"plan": PolicySpec(kind="walk")}), tiny_model)
    assert config.out.read_bytes() == before


def test_policies_for_other_spaces_are_refused_before_anything_is_judged(
    judged: tuple[EvalTransfer, Results], tiny_model: WorldModel, tmp_path: Path
) -> None:
    env = rooms(1, Undrawn, action_map="twist")
    network = NetworkConfig(pictures=False, features=8, hidden=8)
    blind = PpoPolicy(env.single_observation_space, env.single_action_space, network)
    blind.save(tmp_path / "other.safetensors")
    spec = PolicySpec(kind="ppo", path=tmp_path / "other.safetensors", trained="truth")
    assert not knows(spec, blind).pictures
    config = dataclasses.replace(judged[0], policies={"other": spec}, out=tmp_path / "none.jsonl")
    with pytest.raises(SpaceError, match="the policy was made for action_space"):
        run(config, tiny_model)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("policy", "error", "words"),
    [
        ({"kind": "clone"}, ConfigError, "did you mean 'cloned'"),
        ({"kind": "ppo", "trained": "dream"}, ConfigError, "give the folder or file"),
        ({"kind": "walk", "path": "x"}, ConfigError, "leave it out"),
        ({"kind": "cloned", "path": "nowhere"}, ConfigError, "'dream' or 'truth'"),
        ({"kind": "cloned", "path": "nowhere", "trained": "dream"}, StorageError, "nowhere cannot be read"),
        ({"kind": "straight", "noise": -1}, ConfigError, "noise is -1"),
        ({"kind": "straight", "speed": 3.0}, ConfigError, "speed is 3.0"),
        ({"kind": "plan", "search": {"horizons": 2}}, ConfigError, "did you mean 'horizon'"),
        ({"kind": "walk", "search": {"horizon": 2}}, ConfigError, "does not search"),
    ],
)
def test_bad_policies(
    tiny_model: WorldModel, tmp_path: Path, policy: dict[str, Any], error: type[SanaWMError], words: str
) -> None:
    told = [f"policies={json.dumps({'mine': policy})}", "baselines={}", f"out={tmp_path}/x.jsonl", "scenes=1"]
    with pytest.raises(error, match=words):
        run(from_mapping(EvalTransfer, parse_overrides(told)), tiny_model)
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jsonl").write_text('{"benchmark": "rooms"}\n')
    assert main([f"out={tmp_path}/x.jsonl", "report=true"]) == 2
    assert "is no file of `sanawm eval transfer`" in capsys.readouterr().err
    assert main(["scenes=0"]) == 2
    assert main(["baselines={}"]) == 2
    assert "there is no policy to judge" in capsys.readouterr().err
    assert main(["task=drive", "device=cpu"]) == 2
