"""The task Explore: what is seen of a room's floor, what it pays, and that the floor plan hides what it should."""

from __future__ import annotations

import numpy as np
import pytest

from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import TaskError
from sanawm_env.explore import EXTENT, Explore
from sanawm_env.rigid import about_vertical, homogeneous
from sanawm_env.rooms import sample_scenes
from sanawm_env.rooms.collision import FloorPlan
from sanawm_env.tasks import Situation, make_task, task_fields
from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.world import WorldModel

# A room of 4 x 6 m with a cupboard of 2 x 0.4 m across, one metre ahead of its middle.
PLAN = FloorPlan(np.array([[[0.0, 1.0, 1.0, 0.2, 1.0, 0.0, 0.0]]]), np.array([[2.0, 2.5, 3.0]]))


def pose(x: float = 0.0, z: float = 0.0, left: float = 0.0) -> np.ndarray:
    return homogeneous(about_vertical(np.array(-left)), np.array([x, -1.2, z]))


def situation(start: np.ndarray) -> Situation:
    return Situation(pose=start, seed=0, objects=(), visible={}, plan=PLAN)


def cell(task: Explore, x: float, z: float) -> tuple[int, int]:
    count = int(np.ceil(EXTENT / task.cell))
    return int((x / task.cell) + count / 2), int((z / task.cell) + count / 2)


def test_furniture_hides_what_is_behind_it_and_the_back_is_not_seen() -> None:
    task = Explore(view_range=5.0)
    columns = task.begin([situation(pose())])
    seen = columns["seen"][0]
    assert seen[cell(task, 0.1, 0.6)]
    assert not seen[cell(task, 0.1, 1.6)]  # behind the cupboard
    assert not seen[cell(task, 0.1, -0.6)]  # behind the camera
    assert not columns["open"][0][cell(task, 0.1, 1.1)]  # under the cupboard
    assert not columns["open"][0][cell(task, 2.1, 0.0)]  # outside
    beside = task.begin([situation(pose(1.6))])["seen"][0]
    assert beside[cell(task, 1.6, 2.6)]
    assert columns["open"].sum() * task.cell**2 == pytest.approx(4 * 6 - 2 * 0.4, rel=0.05)


def test_it_pays_for_floor_that_was_not_seen_before() -> None:
    task = Explore()
    start = pose()
    columns = task.begin([situation(start)])
    path = np.stack([pose(left=0.4 * k) for k in (1, 2, 2, 1)])[None]
    verdict = task.evaluate(columns, start[None], path, np.ones((1, 4)))
    assert (verdict.reward[0, :2] > 0.01).all()
    np.testing.assert_array_equal(verdict.reward[0, 2:], 0.0)
    after = task.describe(columns | verdict.columns, path[:, -1])["coverage"]
    assert after[0] == pytest.approx(task.describe(columns, path[:, -1])["coverage"][0] + verdict.reward.sum())
    again = task.evaluate(columns | verdict.columns, path[0, -1:], path, np.ones((1, 4)))
    assert not again.reward.any()


def test_success_is_coverage_and_collisions_cost() -> None:
    task = Explore(coverage=0.3, collision_penalty=2.0)
    start = pose()
    columns = task.begin([situation(start)])
    turn = np.stack([pose(left=0.6 * k) for k in range(1, 9)])[None]
    verdict = task.evaluate(columns, start[None], turn, np.full((1, 8), 0.1))
    first = int(verdict.success[0].argmax())
    assert first > 0
    assert verdict.collision[0, :first].all()
    assert not verdict.collision[0, first:].any()
    assert verdict.reward[0, 0] < -1.5
    assert verdict.reward[0, first] > 1.0


def test_rays_end_where_the_distance_to_the_plan_becomes_zero() -> None:
    plan = FloorPlan.of(sample_scenes([3]))
    generator = np.random.default_rng(0)
    x, z = generator.uniform(-2, 2, (1, 200)), generator.uniform(-2, 2, (1, 200))
    free = plan.distance(x, z)[0] > 0.05
    x, z = x[:, free], z[:, free]
    along = generator.uniform(-np.pi, np.pi, (1, x.shape[1], 1))
    reach = plan.sight(x, z, along)[..., 0]
    for part, tolerance in ((0.5, None), (1.0, 0.15)):  # half-way it is free; round furniture ends as a square
        at_x, at_z = x - part * reach * np.sin(along[..., 0]), z + part * reach * np.cos(along[..., 0])
        left = plan.distance(at_x, at_z)
        assert (left > 0).all() if tolerance is None else (np.abs(left) < tolerance).all()


def test_worlds_explore_together_and_snapshots_know_what_was_seen(tiny_model: WorldModel) -> None:
    env = RoomsTruthVectorEnv(2, tiny_model, task="explore", frames="none")
    _, info = env.reset(seed=[1, 2])
    assert (info["coverage"] > 0).all()
    before, action = info["coverage"], np.array([[0.0, 1.0], [0.0, -1.0]])
    _, reward, _, _, info = env.step(action)
    np.testing.assert_allclose(info["coverage"] - before, reward)
    taken = env.get_state()
    following = env.step(action)
    env.set_state(taken)
    np.testing.assert_array_equal(env.step(action)[1], following[1])
    np.testing.assert_array_equal(env.fork(2).step(np.repeat(action, 2, axis=0))[1][::2], env.step(action)[1])


def test_names_fields_and_pictures(tiny_model: WorldModel) -> None:
    task = make_task({"name": "explore", "coverage": 0.5})
    assert make_task(task_fields(task)) == task == Explore(coverage=0.5)
    with pytest.raises(TaskError, match="coverage of task 'explore' is 2"):
        Explore(coverage=2.0)
    with pytest.raises(TaskError, match="task 'explore' needs known geometry"):
        SanaWMEnv(tiny_model, task="explore").reset(options={"image": np.zeros((32, 40, 3), np.uint8)})
