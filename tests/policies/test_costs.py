"""What planners minimise: pictures and latents of goals, places, and what each refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ConfigError, PolicyError, SceneError
from sanawm_env.policies.costs import GoalImageCost, GoalLatentCost, GoalPlaceCost
from sanawm_env.policies.futures import imagine
from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel

SEEDS = [3, 8]
# Held (v, w) for two steps: straight on, standing, backwards, turning left.
PLANS = np.repeat(np.array([[0.6, 0.0], [0.0, 0.0], [-0.6, 0.0], [0.2, 0.8]])[:, None], 2, axis=1)


def truth(model: WorldModel, **options: Any) -> RoomsTruthVectorEnv:
    env = RoomsTruthVectorEnv(2, model, **{"task": "drive", "frames": "none", **options})
    env.reset(seed=SEEDS)
    return env


def after(env: Any, plan: np.ndarray) -> np.ndarray:
    """The pictures [B, H, W, 3] that a plan [H, A] ends with."""
    with_plan = env.fork(1)
    for action in plan:
        with_plan.step(np.repeat(action[None], env.num_envs, axis=0))
    return with_plan.last_output[0][:, -1].cpu().numpy()


@pytest.mark.parametrize("wanted", range(len(PLANS)))
def test_the_plan_that_ends_at_the_goal_picture_costs_least(tiny_model: WorldModel, wanted: int) -> None:
    env = truth(tiny_model)
    goal = after(env, PLANS[wanted])
    plans = np.repeat(PLANS[None], 2, axis=0)
    costs = imagine(env, plans, GoalImageCost(goal, blocks=(2, 4), on_the_way=0.0))
    np.testing.assert_array_equal(costs.argmin(axis=1), wanted)
    np.testing.assert_allclose(costs[:, wanted], 0.05, rtol=1e-5)


def test_a_goal_picture_has_a_slope_towards_it(tiny_model: WorldModel) -> None:
    env = truth(tiny_model)
    goal = env.last_output[0][:, -1].numpy()
    # One step of 0.8 s: ever farther back, then ever more turned.
    aways = np.array([[[-v, 0.0] for v in (0.0, 0.2, 0.4, 0.6, 0.8)], [[0.0, w] for w in (0.0, 0.1, 0.2, 0.3, 0.4)]])
    for plans in aways:
        costs = imagine(env, np.repeat(plans[None, :, None], 2, axis=0), GoalImageCost(goal, blocks=(1, 2, 4)))
        assert (np.diff(costs, axis=1) > 0).all()


def test_each_world_has_its_own_goal_whatever_group_it_is_planned_in(tiny_model: WorldModel) -> None:
    env = truth(tiny_model)
    goals, plans = after(env, PLANS[0]), np.repeat(PLANS[None], 2, axis=0)
    costs = imagine(env, plans, GoalImageCost(goals))
    second = imagine(env.select([1]), plans[1:], GoalImageCost(goals), worlds=np.array([1]), at_once=3)
    np.testing.assert_allclose(second[0], costs[1], rtol=1e-6)
    shared = imagine(env, plans, GoalImageCost(goals[0]))
    np.testing.assert_allclose(shared[0], costs[0], rtol=1e-6)
    assert not np.allclose(shared[1], costs[1])


def test_a_goal_in_latents_is_nearest_where_the_picture_was_taken(tiny_model: WorldModel) -> None:
    env = SanaWMVectorEnv(2, tiny_model, task="drive", frames="none")
    env.reset(seed=SEEDS)
    cost = GoalLatentCost(env, after(env, PLANS[0]))
    assert cost.latent.shape == (2, *env.world.first_latent.shape[1:])
    costs = imagine(env, np.repeat(PLANS[None], 2, axis=0), cost)
    assert np.isfinite(costs).all() and (costs.std(axis=1) > 0).all()
    # Of no goal does it say more than how far the newest latent is from it.
    cost.latent = None  # type: ignore[assignment]
    futures = env.fork(1, decode=False)
    futures.step(np.array([[0.6, 0.0]] * 2))
    cost.latent = futures.last_output[1][:, -1].float()
    np.testing.assert_allclose(imagine(env, PLANS[None, :1, :1].repeat(2, axis=0), cost), 0.0)


def test_a_goal_of_another_size_is_refused_with_both_sizes(tiny_model: WorldModel) -> None:
    env = truth(tiny_model)
    goal = np.zeros((24, 40, 3), np.uint8)
    with pytest.raises(SceneError, match=r"goal picture is 24x40 .*the worlds' pictures are 32x40"):
        imagine(env, np.zeros((2, 2, 1, 2)), GoalImageCost(goal))
    learned = SanaWMEnv(tiny_model)
    with pytest.raises(SceneError, match=r"goal picture is 24x40 .*the worlds' pictures are 32x40"):
        GoalLatentCost(learned, goal)
    with pytest.raises(SceneError, match=r"goal picture is float64 \(32, 40, 3\), allowed is uint8"):
        GoalImageCost(np.zeros((32, 40, 3)))
    with pytest.raises(SceneError, match=r"there are 2 goal pictures, and world 2 has none"):
        imagine(env, np.zeros((2, 2, 1, 2)), GoalImageCost(after(env, PLANS[0])), worlds=np.array([1, 2]))
    with pytest.raises(ConfigError, match="RoomsTruthVectorEnv have no latents"):
        GoalLatentCost(env, np.zeros((32, 40, 3), np.uint8))


def test_the_goals_place_is_metres_away_and_obstacles_add_to_it(tiny_model: WorldModel) -> None:
    env = truth(tiny_model, task="goto", observation="dict", frames="all")
    plans = np.repeat(PLANS[None], 2, axis=0)
    costs = imagine(env, plans[:, :, :1], GoalPlaceCost())
    stepped = env.fork(len(PLANS))
    observation = stepped.step(plans[:, :, 0].reshape(-1, 2))[0]
    height = (stepped.observe()[1]["goal"] - stepped.observe()[1]["poses"][:, -1, :3, 3])[:, 1]
    np.testing.assert_allclose(np.hypot(costs.ravel(), height), np.linalg.norm(observation["goal"], axis=1), rtol=1e-5)

    seen = []

    def brightness(frames: torch.Tensor) -> torch.Tensor:
        seen.append(frames.shape)
        return frames.float().mean(dim=(1, 2, 3, 4))

    higher = imagine(env, plans[:, :, :1], GoalPlaceCost(brightness))
    bright = stepped.last_output[0].float().mean(dim=(1, 2, 3, 4)).numpy().reshape(2, -1)
    np.testing.assert_allclose(higher - costs, bright, rtol=1e-5)
    assert seen == [(8, 8, 32, 40, 3)]
    with pytest.raises(PolicyError, match="needs a goal"):
        imagine(truth(tiny_model), plans[:, :, :1], GoalPlaceCost())
