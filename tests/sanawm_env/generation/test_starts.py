"""Starts made ahead of their episodes are those that each episode would get by itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sanawm_env.errors import SceneError
from sanawm_env.generation.config import Generate
from sanawm_env.generation.explorers import PathExplorer
from sanawm_env.generation.plan import Plan, plan
from sanawm_env.generation.starts import Starts
from sanawm_env.start import ResetOptions, Start, make_start

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel


def plans_of(count: int) -> list[Plan]:
    config = Generate(out=Path("unused"), frames=8, batch=3)
    return [plan(config, number) for number in range(count)]


def test_groups_are_cut_and_joined_to_what_each_asks_for(tiny_model: WorldModel) -> None:
    config = tiny_model.config
    explorer = PathExplorer(Generate(out=Path("unused"), frames=8, batch=3), config, None)

    def make(plans: list[Plan]) -> Start:
        options = ResetOptions(scene=[one.room for one in plans], pose=explorer.poses(plans))
        return make_start(options, [one.seed for one in plans], config)

    plans = plans_of(7)
    explorer.expect(plans)
    with ThreadPoolExecutor(1) as ahead:
        starts = Starts(make, group=3, ahead=ahead)
        explorer.group = 7
        explorer._draw_ahead()
        starts.expect(plans)
        for begins, fill in ((plans[:2], 1), (plans[2:5], 0), (plans[5:], 2)):
            asked = begins + begins[:1] * fill
            made, direct = starts.take(asked), make(asked)
            for name in ("images", "poses", "intrinsics", "rooms"):
                assert np.array_equal(getattr(made, name), getattr(direct, name)), name
            assert made.geometry is not None and direct.geometry is not None
            assert made.geometry.primitives.equal(direct.geometry.primitives)
            assert [one.visible for one in made.situations] == [one.visible for one in direct.situations]
            assert [one.seed for one in made.situations] == [one.seed for one in asked]
            again = make_start(ResetOptions(scene=made), [one.seed for one in asked], config)
            assert again is made


def test_an_error_of_the_thread_reaches_who_asks() -> None:
    def fails(plans: list[Plan]) -> Start:
        raise SceneError("no such room")

    with ThreadPoolExecutor(1) as ahead:
        starts = Starts(fails, group=2, ahead=ahead)
        starts.expect(plans_of(2))
        with pytest.raises(SceneError, match="no such room"):
            starts.take(plans_of(1))


def test_a_start_of_other_seeds_is_refused(tiny_model: WorldModel) -> None:
    start = make_start(ResetOptions(), [3, 4], tiny_model.config)
    with pytest.raises(SceneError, match="seeds"):
        make_start(ResetOptions(scene=start), [3, 5], tiny_model.config)
    with pytest.raises(SceneError, match="pose"):
        make_start(ResetOptions(scene=start, pose=np.eye(4)), [3, 4], tiny_model.config)
