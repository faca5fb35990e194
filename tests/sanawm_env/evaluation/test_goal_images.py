"""Goal-image navigation: what problems are like, and that a planner which sees the truth solves one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sanawm_env import bundle_choice
from sanawm_env.actions import heading
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation import goal_images as goal_images_command
from sanawm_env.evaluation.goal_images import EvalGoalImages, Results, command, run
from sanawm_env.evaluation.goal_images_report import section
from sanawm_env.evaluation.goal_problems import GoalImages, Reached, drive_to, goal_images, solvable
from sanawm_env.evaluation.held_out import FIRST_SEED
from sanawm_env.policies.cem import ICEM, ICEMConfig
from sanawm_env.policies.costs import GoalImageCost
from sanawm_env.rooms import clearance, sample_scenes
from sanawm_env.truth import RoomsTruth, RoomsTruthVectorEnv
from sanawm_env.world import WorldModel

SEEDS = [FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2]


def truth(model: WorldModel, worlds: int) -> RoomsTruthVectorEnv:
    small = replace(model.config, height=16, width=24, intrinsics=(15.0, 15.0, 11.5, 7.5))
    return RoomsTruthVectorEnv(worlds, RoomsTruth(small), task="drive", frames="none")


@pytest.fixture(scope="module")
def problems(tiny_model: WorldModel) -> GoalImages:
    return goal_images(truth(tiny_model, 3), SEEDS)


def test_goals_are_ahead_free_and_what_the_truth_shows_there(problems: GoalImages, tiny_model: WorldModel) -> None:
    shift = problems.goals[:, :3, 3] - problems.starts[:, :3, 3]
    away = np.linalg.norm(shift, axis=1)
    assert (away >= 0.8).all() and (away <= 1.6).all() and np.allclose(shift[:, 1], 0)
    turn = heading(problems.goals) - heading(problems.starts)
    assert (np.degrees(np.abs((turn + np.pi) % (2 * np.pi) - np.pi)) <= 20).all()
    line = problems.starts[:, None, :3, 3] + np.linspace(0, 1, 40)[:, None] * shift[:, None]
    free = clearance(sample_scenes(SEEDS), torch.from_numpy(line)).numpy()
    assert (free > 0.15).all() and (free[:, -1] >= 0.34).all()
    env = truth(tiny_model, 1)
    seen, _ = env.reset(seed=[SEEDS[1]], options={"pose": problems.goals[1:2]})
    np.testing.assert_array_equal(seen[0], problems.pictures[1])
    alone = goal_images(env, SEEDS[1:2])
    np.testing.assert_array_equal(alone.goals[0], problems.goals[1])


def test_no_room_for_a_goal_is_said(tiny_model: WorldModel) -> None:
    with pytest.raises(ConfigError, match=r"world 0 \(seed 1000000000\) has no free goal 30.0 .. 31.0 m ahead"):
        goal_images(truth(tiny_model, 1), SEEDS[:1], metres=(30.0, 31.0))


def test_a_planner_with_perfect_dreams_arrives_and_one_that_stands_does_not(tiny_model: WorldModel) -> None:
    env, dream = truth(tiny_model, 2), truth(tiny_model, 2)
    problems = goal_images(env, SEEDS[:2], metres=(0.6, 0.8))

    class Standing(ICEM):
        def act(self, observation: object, state: object) -> tuple[np.ndarray, object]:  # type: ignore[override]
            return np.zeros((2, 2), np.float32), state

    config = ICEMConfig(horizon=1, candidates=12, iterations=2, elites=3, kept=2)
    cost = GoalImageCost(problems.pictures, blocks=(1, 2, 4))
    shown: list[tuple[int, int]] = []
    driven = drive_to(
        ICEM(dream, cost, config), problems, env, dream, steps=2, progress=lambda *done: shown.append(done)
    )
    stood = drive_to(Standing(dream, cost, config), problems, env, dream, steps=1)
    assert shown == [(1, 2), (2, 2)]
    assert (driven.metres < 0.6 * stood.metres).all()
    assert stood.rate == 0 and not stood.success.any() and not stood.collision.any()
    np.testing.assert_allclose(stood.metres, np.linalg.norm((problems.goals - problems.starts)[:, :3, 3], axis=1))
    assert driven.pictures.shape == problems.pictures.shape
    np.testing.assert_array_equal(driven.success, (driven.metres <= 0.3) & (driven.degrees <= 15) & ~driven.collision)


def test_an_interrupted_run_goes_on_and_the_page_tells_it(
    tiny_model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvalGoalImages(
        device="cpu",
        scenes=3,
        batch=2,
        steps=1,
        planner=ICEMConfig(horizon=1, candidates=4, iterations=1, elites=2, kept=1),
        out=tmp_path / "goals.jsonl",
    )
    groups: list[tuple[int, ...]] = []

    def driven(policy: Any, problems: GoalImages, *rest: Any, **options: Any) -> Reached:
        if groups:
            raise KeyboardInterrupt
        groups.append(problems.seeds)
        return drive_to(policy, problems, *rest, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(goal_images_command, "drive_to", driven)
        run(config, tiny_model)
    results = run(config, tiny_model)
    seeds = [line["seed"] for line in results.lines]
    assert len(seeds) == 3 and tuple(seeds[:2]) == groups[0] and Results.read(config.out) == results
    alone = run(replace(config, batch=3, out=tmp_path / "whole.jsonl"), tiny_model)
    timeless = [[{**line, "seconds": 0} for line in one.lines] for one in (results, alone)]
    assert timeless[0] == timeless[1]
    monkeypatch.setattr(bundle_choice, "load", lambda *_, **__: tiny_model)
    told = json.loads(command(config))
    assert told["scenes"] == 3 and told["interval"][0] <= told["rate"] <= told["interval"][1]
    missed = told["missed_seeds"]
    assert sum(told["missed"].values()) == len(missed) == 3 - told["success"] > 0
    with Image.open(tmp_path / "goals" / f"{missed[0]}.png") as strip:
        assert strip.size == (3 * 40, 32)
    page = section(config.out, tmp_path / "media")
    assert f"in {told['success']} of 3 held-out rooms" in page and "![Missed cases](media/goal_images.png)" in page
    assert (tmp_path / "media" / "goal_images.png").read_bytes() == (tmp_path / "goals.png").read_bytes()
    with pytest.raises(ConfigError, match=r"was made with \{'steps': 1\}, asked for is \{'steps': 2\}"):
        run(replace(config, steps=2), tiny_model)
    with pytest.raises(ConfigError, match="plan_in is 'truth', which has no latents"):
        EvalGoalImages(plan_in="truth", cost="latent")


def test_planning_in_the_truth_and_by_latents(tiny_model: WorldModel, tmp_path: Path) -> None:
    small = ICEMConfig(horizon=1, candidates=3, iterations=1, elites=1, kept=1)
    for plan_in, cost in (("truth", "image"), ("dream", "latent")):
        few: dict[str, Any] = {"scenes": 1, "batch": 1, "steps": 1, "planner": small}
        config = EvalGoalImages(**few, cost=cost, plan_in=plan_in, out=tmp_path / cost)  # type: ignore[arg-type]
        assert run(config, tiny_model).figures()["scenes"] == 1


def test_seeds_without_a_free_goal_are_left_out(tiny_model: WorldModel) -> None:
    assert solvable(truth(tiny_model, 3), SEEDS) == SEEDS
    assert solvable(truth(tiny_model, 3), SEEDS, metres=(30.0, 31.0)) == []
