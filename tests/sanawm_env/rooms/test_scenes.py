"""Scenes: a room depends on its seed alone, furniture stands apart, objects can be named."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from sanawm_env.errors import SceneError
from sanawm_env.rooms import clearance, layout, sample_scenes
from sanawm_env.rooms.draws import Draws
from sanawm_env.rooms.palette import NAMES, VIVID

# Sums of the tables of rooms 0, 5 and 10^9, in the order of the fields, as they were when weights were trained on them.
LOOK = [1000000005.0, 27.569, 25078.432, 2490577.456, -9448.352, -7.867, 5.364, 12006.576, 220.0, 191.0, 43.004]


def test_a_room_does_not_depend_on_its_batch() -> None:
    batch = sample_scenes(range(100, 137))
    for row in (0, 7, 36):
        alone = sample_scenes([100 + row])
        for field in fields(alone):
            assert torch.equal(getattr(alone, field.name)[0], getattr(batch, field.name)[row]), field.name


def test_seeds_differ_and_large_seeds_work() -> None:
    rooms = sample_scenes([0, 1, 10**9, 2**62])
    assert len(rooms.half_size[:, 0].unique()) == 4
    assert torch.isfinite(rooms.materials).all()


def test_draws_are_uniform_and_domains_differ() -> None:
    seeds = torch.arange(2000)
    draws = Draws(seeds, 1).uniform(8)
    assert abs(float(draws.mean()) - 0.5) < 0.01
    assert abs(float(draws.var()) - 1 / 12) < 0.002
    assert not torch.equal(draws, Draws(seeds, 2).uniform(8))
    assert abs(float(torch.corrcoef(draws[:-1].T)[0, 1])) < 0.06


def test_rooms_keep_to_the_documented_sizes() -> None:
    half_x, height, half_z = sample_scenes(range(500)).half_size.unbind(1)
    for half in (half_x, half_z):
        assert float(half.min()) >= 2.2 and float(half.max()) <= 4.2
    assert float(height.min()) >= 2.5 and float(height.max()) <= 3.1


def test_furniture_does_not_overlap() -> None:
    rooms = sample_scenes(range(200))
    for row in range(len(rooms)):
        found = rooms.objects(row)
        balls = [o for o in found if o.kind in ("ball", "drum", "pillar", "crate")]
        for i, one in enumerate(balls):
            for other in balls[i + 1 :]:
                apart = ((one.centre[0] - other.centre[0]) ** 2 + (one.centre[2] - other.centre[2]) ** 2) ** 0.5
                assert apart > 0.9 * (one.radius + other.radius)


def test_movable_objects_have_colours_of_their_own() -> None:
    rooms = sample_scenes(range(50))
    for row in range(50):
        colours = [o.colour for o in rooms.objects(row) if o.kind in ("ball", "drum", "pillar", "crate")]
        assert len(set(colours)) == len(colours)
        assert set(colours) <= set(NAMES[:VIVID])


def test_objects_lie_where_their_footprints_do() -> None:
    rooms = sample_scenes(range(20))
    for row in range(20):
        for thing in rooms.objects(row):
            centre = torch.tensor([[thing.centre]])
            assert float(clearance(rooms.select([row]), centre)) < 0
            assert layout.INSTANCE_OBJECT <= thing.instance < layout.INSTANCE_OBJECT + layout.OBJECTS


def test_select_takes_indices_masks_and_repeats() -> None:
    rooms = sample_scenes(range(4))
    assert rooms.select([2, 2, 0]).seeds.tolist() == [2, 2, 0]
    assert rooms.select(torch.tensor([True, False, False, True])).seeds.tolist() == [0, 3]
    assert rooms.select(slice(1, 3)).seeds.tolist() == [1, 2]


def test_clearance_is_signed() -> None:
    rooms = sample_scenes([3])
    half_x, half_z = float(rooms.half_size[0, 0]), float(rooms.half_size[0, 2])
    points = torch.tensor([[[half_x - 0.01, -1.0, 0.0], [half_x + 0.5, -1.0, 0.0], [0.0, -1.0, -half_z - 1.0]]])
    gaps = clearance(rooms, points)[0]
    assert float(gaps[0]) <= 0.0101
    assert float(gaps[1]) <= -0.499 and float(gaps[2]) <= -0.999
    thing = rooms.objects(0)[-1]
    beside = torch.tensor([[[thing.centre[0], 0.0, thing.centre[2]]]])
    assert abs(float(clearance(rooms, beside)) + thing.radius) < 1e-4


def test_no_seed_is_an_error() -> None:
    with pytest.raises(SceneError, match="at least one"):
        sample_scenes([])


def test_styles_change_colours_and_light_alone() -> None:
    day, night = (sample_scenes(range(20), style=style) for style in ("day", "night"))
    default = sample_scenes(range(20))
    names = [field.name for field in fields(day)]
    assert all(torch.equal(getattr(day, name), getattr(default, name)) for name in names)
    changed = {name for name in names if not torch.equal(getattr(day, name), getattr(night, name))}
    assert changed == {"materials", "decals", "lights", "ambient"}
    assert torch.equal(day.materials[:, 9:], night.materials[:, 9:])  # patterns
    assert torch.equal(day.materials[:, :, : layout.FLOOR], night.materials[:, :, : layout.FLOOR])  # furniture
    assert torch.equal(day.lights[..., :3], night.lights[..., :3])
    alone = sample_scenes([7], style="night")
    assert torch.equal(alone.materials[0], night.materials[7])
    with pytest.raises(SceneError, match="style is 'dusk'"):
        sample_scenes([0], style="dusk")


def test_rooms_of_day_look_as_they_always_did() -> None:
    rooms = sample_scenes([0, 5, 10**9])
    found = [round(float(getattr(rooms, field.name).double().sum()), 3) for field in fields(rooms)]
    assert found == LOOK
