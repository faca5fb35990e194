"""Planners over forked futures: the contract of policies, what they find, and that nothing else is touched."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from sanawm_env.errors import ConfigError, PolicyError, SpaceError
from sanawm_env.evaluation.held_out import FIRST_SEED
from sanawm_env.policies.base import Policy
from sanawm_env.policies.cem import CEM, ICEM, CEMConfig, ICEMConfig
from sanawm_env.policies.costs import TaskCost
from sanawm_env.policies.futures import Imagined, imagine
from sanawm_env.policies.mppi import MPPI, MPPIConfig
from sanawm_env.policies.planner import Planner, coloured
from sanawm_env.testing import PolicyContract, assert_same
from sanawm_env.truth import RoomsTruthEnv, RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel

SEEDS = (3, 8, 1)
SMALL: dict[str, Any] = {"horizon": 3, "candidates": 24, "iterations": 3}
PLANNERS = [(CEM, CEMConfig(**SMALL, elites=5)), (ICEM, ICEMConfig(**SMALL, elites=5)), (MPPI, MPPIConfig(**SMALL))]


class Towards:
    """A quadratic cost that real futures give: squared metres from a place each world has, half a metre ahead and a
    little to the left of its start."""

    decode = False

    def __init__(self, starts: np.ndarray, ahead: float = 0.5, left: float = 0.3) -> None:
        self.place = starts[:, :3, 3] + ahead * starts[:, :3, 2] - left * starts[:, :3, 0]

    def __call__(self, imagined: Imagined) -> np.ndarray:
        away = imagined.info["poses"][:, -1, :3, 3] - self.place[imagined.world]
        return np.asarray(100 * (away[:, (0, 2)] ** 2).sum(axis=1))


def truth(model: WorldModel, num_envs: int = len(SEEDS), **options: Any) -> SanaWMVectorEnv:
    env = RoomsTruthVectorEnv(num_envs, model, **{"task": "drive", "frames": "none", **options})
    env.reset(seed=list(SEEDS[:num_envs]))
    return env


def starts(env: Any) -> np.ndarray:
    return np.asarray(env.unwrapped.observe()[1]["poses"]).reshape(-1, 4, 4)


class PlannerContract(PolicyContract):
    """Planners keep the contract of policies, and more."""

    kind: type[Planner]
    config: Any

    @pytest.fixture(autouse=True)
    def _model(self, tiny_model: WorldModel) -> None:
        self.model = tiny_model

    def make_env(self, num_envs: int) -> SanaWMVectorEnv:
        return RoomsTruthVectorEnv(num_envs, self.model, task="goto", observation="dict")

    def make(self, env: SanaWMVectorEnv) -> Policy[Any]:
        return self.kind(env, TaskCost(), self.config)  # type: ignore[call-arg]

    def test_a_batch_plans_what_its_worlds_plan_alone(self) -> None:
        together = self.play(SEEDS)
        for row, seed in enumerate(SEEDS):
            np.testing.assert_array_equal(self.play((seed,))[:, 0], together[:, row])


class TestCEM(PlannerContract):
    kind, config = CEM, CEMConfig(horizon=2, candidates=6, iterations=2, elites=3)


class TestICEM(PlannerContract):
    kind, config = ICEM, ICEMConfig(horizon=2, candidates=6, iterations=2, elites=3, kept=2)


class TestMPPI(PlannerContract):
    kind, config = MPPI, MPPIConfig(horizon=2, candidates=6, iterations=2)


@pytest.mark.parametrize(("kind", "config"), PLANNERS)
def test_they_find_the_optimum_and_beat_random_shooting(tiny_model: WorldModel, kind: Any, config: Any) -> None:
    env = truth(tiny_model)
    cost = Towards(starts(env))
    budget = config.candidates * config.iterations
    shooting = CEMConfig(horizon=3, candidates=budget, iterations=1, elites=1)
    found = {}
    for name, planner in (("search", kind(env, cost, config)), ("shooting", CEM(env, cost, shooting))):
        first, state = planner.act(None, planner.initial_state(len(SEEDS)))
        # What the plan costs when it is followed, not what was promised.
        plan = np.concatenate([first[:, None], state.plans[:, : planner.config.horizon - 1]], axis=1)
        found[name] = imagine(env, plan[:, None], cost, discount=0.95)[:, 0]
    still = imagine(env, np.zeros((len(SEEDS), 1, 3, 2)), cost, discount=0.95)[:, 0]
    assert (found["search"] < 0.35 * still).all()
    assert found["search"].mean() < found["shooting"].mean()


@pytest.mark.parametrize(("kind", "config"), PLANNERS)
def test_they_arrive_where_the_cost_says(tiny_model: WorldModel, kind: Any, config: Any) -> None:
    env = truth(tiny_model)
    cost = Towards(starts(env))
    planner = kind(env, cost, config)
    state = planner.initial_state(len(SEEDS))
    for _ in range(4):
        actions, state = planner.act(None, state)
        env.step(actions)
    away = np.linalg.norm((starts(env)[:, :3, 3] - cost.place)[:, (0, 2)], axis=1)
    assert (away < 0.15).all()


def test_goals_of_held_out_rooms_are_reached(tiny_model: WorldModel) -> None:
    env = RoomsTruthVectorEnv(4, tiny_model, task="goto", frames="none")
    env.reset(seed=FIRST_SEED)
    planner = CEM(env, TaskCost(), CEMConfig(candidates=48, iterations=2))
    state = planner.initial_state(4)
    for _ in range(10):
        actions, state = planner.act(None, state)
        info = env.step(actions)[4]
    assert info["success"].all()


def test_a_warm_start_helps(tiny_model: WorldModel) -> None:
    env = truth(tiny_model)
    planner = CEM(env, Towards(starts(env), ahead=1.5), CEMConfig(horizon=4, candidates=8, iterations=1, elites=3))
    state = planner.initial_state(len(SEEDS))
    warm, cold = [], []
    for _ in range(3):
        actions, state = planner.act(None, state)
        env.step(actions)
        warm.append(planner.act(None, copy.deepcopy(state))[1].cost.mean())
        cold.append(planner.act(None, planner.initial_state(len(SEEDS)))[1].cost.mean())
    assert (np.array(warm) < cold).all()


def test_the_environment_planned_in_is_untouched(tiny_model: WorldModel) -> None:
    env = SanaWMVectorEnv(2, tiny_model, task="goto")
    env.reset(seed=0)
    env.step(np.array([[0.3, 0.1]] * 2, np.float32))
    before, shown = env.get_state(), env.observe()
    planner = ICEM(env, TaskCost(), ICEMConfig(horizon=2, candidates=6, elites=3, kept=1))
    planner.act(shown[0], planner.initial_state(2))
    after = env.get_state()
    for name, tensor in before.world.tensors().items():
        np.testing.assert_array_equal(tensor.float().numpy(), after.world.tensors()[name].float().numpy(), err_msg=name)
    assert_same(before.rows, after.rows)
    assert before.rng == after.rng
    for one, other in zip(shown, env.observe(), strict=True):
        assert_same(one, other)


def test_a_single_environment_is_planned_in_as_a_batch_of_one(tiny_model: WorldModel) -> None:
    config = CEMConfig(horizon=2, candidates=6, elites=3)
    single = RoomsTruthEnv(tiny_model, task="goto")
    single.reset(seed=3)
    batch = truth(tiny_model, 1, task="goto")
    plans = [
        planner.act(None, planner.initial_state(1))[0]
        for planner in (CEM(single, TaskCost(), config), CEM(batch, TaskCost(), config))
    ]
    np.testing.assert_array_equal(*plans)
    assert plans[0].shape == (1, 2)
    assert plans[0][0] in single.action_space


def test_futures_in_groups_cost_the_same(tiny_model: WorldModel) -> None:
    env = SanaWMVectorEnv(2, tiny_model, task="drive", frames="none")
    env.reset(seed=4)
    alive = []

    class Latents:
        decode = False

        def __call__(self, imagined: Imagined) -> Any:
            alive.append(imagined.futures.num_envs)
            return imagined.futures.last_output[1].flatten(1).square().mean(dim=1)

    plans = np.random.default_rng(0).uniform(-1, 1, (2, 5, 2, 2))
    whole = imagine(env, plans, Latents())
    np.testing.assert_array_equal(imagine(env, plans, Latents(), at_once=2), whole)
    assert alive == [10, 10, 4, 4, 4, 4, 2, 2]
    assert len(np.unique(whole)) == 10


def test_a_future_that_ends_keeps_its_return(tiny_model: WorldModel) -> None:
    env = RoomsTruthVectorEnv(1, tiny_model, task="goto", frames="none")
    env.reset(seed=18)  # straight ahead something is hit in the second chunk
    plans = np.tile(np.array([1.0, 0.0]), (1, 1, 5, 1))
    costs = imagine(env, plans, TaskCost())
    rewards = [env.step(plans[:, 0, step])[1][0] for step in range(5)]
    assert env.ended.all()
    assert rewards[-1] == 0
    np.testing.assert_allclose(costs[0, 0], -sum(rewards))


def test_worlds_that_have_ended_are_not_planned_for(tiny_model: WorldModel) -> None:
    env = truth(tiny_model, task="drive")
    env.reset(seed=[18, 0, 5])
    while not env.ended[0]:
        env.step(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], np.float32))
    asked = []

    class Noted(TaskCost):
        def __call__(self, imagined: Imagined) -> np.ndarray:
            asked.append(sorted(set(imagined.world.tolist())))
            return super().__call__(imagined)

    planner = CEM(env, Noted(), CEMConfig(horizon=1, candidates=4, iterations=1, elites=2))
    actions, state = planner.act(None, planner.initial_state(3))
    assert asked == [[1, 2]]
    assert actions.shape == (3, 2)
    assert np.isnan(state.cost[0]) and np.isfinite(state.cost[1:]).all()


class Given:
    """A cost that says what it is told, whatever the future."""

    decode = False

    def __init__(self, *values: float) -> None:
        self.values = np.array(values)

    def __call__(self, imagined: Imagined) -> np.ndarray:
        return np.resize(self.values, len(imagined.world))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_costs_that_say_nothing_are_refused(tiny_model: WorldModel, value: float) -> None:
    env = truth(tiny_model)
    with pytest.raises(PolicyError, match=r"Given gave .* for 9 of 18 futures, the first of world 0"):
        imagine(env, np.zeros((3, 6, 1, 2)), Given(0.0, value))


def test_costs_of_another_shape_are_refused(tiny_model: WorldModel) -> None:
    class Scalar:
        decode = False

        def __call__(self, imagined: Imagined) -> np.ndarray:
            return np.zeros(1)

    with pytest.raises(PolicyError, match=r"shape \(1,\), expected \(6,\)"):
        imagine(truth(tiny_model), np.zeros((3, 2, 1, 2)), Scalar())


@pytest.mark.parametrize(("kind", "config"), PLANNERS)
def test_what_must_never_be_chosen_is_not(tiny_model: WorldModel, kind: Any, config: Any) -> None:
    class OnlyLeft:
        decode = False

        def __call__(self, imagined: Imagined) -> np.ndarray:
            first, last = imagined.info["poses"][:, 0], imagined.info["poses"][:, -1]
            left = -np.einsum("bi,bi->b", last[:, :3, 2], first[:, :3, 0])
            return np.where(left > 0.01, 1.0, np.inf)

    env = truth(tiny_model)
    actions, state = kind(env, OnlyLeft(), config).act(None, kind(env, OnlyLeft(), config).initial_state(3))
    assert (actions[:, 1] > 0).all()
    assert np.isfinite(state.cost).all()


@pytest.mark.parametrize("kind", [CEM, ICEM, MPPI])
def test_where_every_future_is_faulty_the_last_plan_is_followed(tiny_model: WorldModel, kind: Any) -> None:
    env = SanaWMVectorEnv(2, tiny_model, task="drive", frames="none")
    env.reset(seed=0)
    env.world.memory[0][next(iter(env.world.memory[0]))].fill_(float("nan"))
    config = {CEM: CEMConfig, ICEM: ICEMConfig, MPPI: MPPIConfig}[kind]
    planner = kind(
        env, TaskCost(), config(horizon=1, candidates=6, iterations=1, **({"elites": 4} if kind is not MPPI else {}))
    )
    state = planner.initial_state(2)
    state.plans[:] = 0.25
    actions, state = planner.act(None, state)
    np.testing.assert_array_equal(actions, np.full((2, 2), 0.25, np.float32))
    assert (state.cost == np.inf).all()


def test_smooth_noise_has_unit_variance_and_neighbours_alike() -> None:
    white = np.random.default_rng(0).standard_normal((1, 4000, 6, 2))
    assert coloured(white, 0.0) is white
    smooth = coloured(white, 2.0)
    np.testing.assert_allclose(smooth.std(axis=(0, 1)), 1.0, atol=0.05)
    together = (smooth[:, :, 1:] * smooth[:, :, :-1]).mean()
    assert together > 0.4
    assert abs((white[:, :, 1:] * white[:, :, :-1]).mean()) < 0.05


def test_planners_refuse_what_they_cannot_search(tiny_model: WorldModel) -> None:
    env = RoomsTruthVectorEnv(2, tiny_model, task="drive", action_map="keys", action_options={"flavour": "discrete"})
    with pytest.raises(SpaceError, match="planners search bounded numbers"):
        CEM(env, TaskCost())
    with pytest.raises(PolicyError, match="asked for 3 worlds, its environment has 2"):
        CEM(truth(tiny_model, 2), TaskCost()).initial_state(3)
    with pytest.raises(ConfigError, match="plans are for 3 worlds, the environment runs 2"):
        imagine(truth(tiny_model, 2), np.zeros((3, 2, 1, 2)), TaskCost())


@pytest.mark.parametrize(
    ("kind", "wrong", "told"),
    [
        (CEMConfig, {"horizon": 0}, "horizon is 0"),
        (CEMConfig, {"discount": 0.0}, "discount is 0.0"),
        (CEMConfig, {"elites": 65}, "elites is 65"),
        (CEMConfig, {"momentum": 1.0}, "momentum is 1.0"),
        (ICEMConfig, {"candidates": 4, "elites": 4, "kept": 3}, "kept is 3"),
        (MPPIConfig, {"temperature": 0.0}, "temperature is 0.0"),
        (MPPIConfig, {"at_once": 0}, "at_once is 0"),
    ],
)
def test_wrong_settings_are_named(kind: Any, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        kind(**wrong)
