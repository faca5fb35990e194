"""Tasks without a world: choice of the goal, rewards, ends."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sanawm_env.errors import ConfigError, TaskError
from sanawm_env.tasks import Drive, GoTo, Situation, make_task, task_fields

OBJECTS = [
    SimpleNamespace(instance=7, kind="crate", colour="red", centre=(0.0, -0.2, 3.0), radius=0.5),
    SimpleNamespace(instance=8, kind="ball", colour="blue", centre=(2.0, -0.2, 0.0), radius=0.2),
    SimpleNamespace(instance=9, kind="plant", colour="green", centre=(0.0, -0.4, 0.6), radius=0.3),
]


def situation(seed: int = 0, **visible: int) -> Situation:
    pixels = {int(name[1:]): count for name, count in visible.items()}
    return Situation(pose=np.eye(4), seed=seed, objects=OBJECTS, visible=pixels)  # type: ignore[arg-type]


def path(*z: float) -> np.ndarray:
    poses = np.tile(np.eye(4), (1, len(z), 1, 1))
    poses[0, :, 2, 3] = z
    return poses


def judged(task: Drive, start: Situation, *z: float, clearance: float = 1.0) -> tuple[np.ndarray, ...]:
    columns = task.begin([start])
    verdict = task.evaluate(columns, start.pose[None], path(*z), np.full((1, len(z)), clearance))
    return verdict.reward[0], verdict.success[0], verdict.collision[0]


def test_goto_pays_metres_gained_and_the_bonus_where_it_arrives() -> None:
    reward, success, collision = judged(GoTo(colour="red"), situation(), 0.5, 1.0, 2.1)
    np.testing.assert_allclose(reward, [0.5, 0.5, 1.1 + 1.0])
    assert success.tolist() == [False, False, True]
    assert not collision.any()


def test_goto_takes_the_penalty_for_a_collision_but_not_on_arrival() -> None:
    reward, success, collision = judged(GoTo(colour="red"), situation(), -0.5, 2.1, clearance=0.1)
    np.testing.assert_allclose(reward, [-0.5 - 1.0, 2.6 + 1.0])
    assert success.tolist() == [False, True]
    assert collision.tolist() == [True, False]


def test_the_goal_is_one_that_is_seen_and_not_yet_reached() -> None:
    for seed in range(8):
        assert GoTo().begin([situation(seed, _8=30, _9=400)])["goal_instance"].tolist() == [8]
    drawn = {int(GoTo().begin([situation(seed)])["goal_instance"][0]) for seed in range(30)}
    assert drawn == {7, 8}  # nothing seen: any but the plant, which is within reach at the start


def test_the_goal_depends_on_the_seed_alone() -> None:
    several = GoTo().begin([situation(seed) for seed in range(6)])["goal_instance"]
    alone = [GoTo().begin([situation(seed)])["goal_instance"][0] for seed in range(6)]
    assert several.tolist() == alone


def test_a_goal_can_be_asked_for() -> None:
    assert GoTo(kind="plant").instructions([situation()]) == ["go to the green plant"]
    with pytest.raises(TaskError, match="this room has: 7 red crate, 8 blue ball"):
        GoTo(colour="blue", kind="crate").begin([situation()])


def test_drive_ends_only_by_collision() -> None:
    reward, success, collision = judged(Drive(), situation(), 0.5, 1.0, clearance=0.1)
    assert (reward.tolist(), success.any(), collision.all()) == ([0.0, 0.0], False, True)


def test_tasks_by_name_mapping_or_themselves() -> None:
    task = make_task({"name": "goto", "reach": 1, "colour": "red"})
    assert task == GoTo(reach=1.0, colour="red")
    assert make_task(task_fields(task)) == task
    assert make_task("drive") == Drive()


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("drvie", TaskError, "did you mean 'drive'"),
        ({"name": "goto", "reech": 1.0}, ConfigError, "did you mean 'reach'"),
        ({"name": "goto", "reach": -1.0}, TaskError, "reach of task 'goto' is -1.0"),
        (3, TaskError, "unknown task 3"),
    ],
)
def test_wrong_tasks_are_named(given: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make_task(given)  # type: ignore[arg-type]
