"""Visibility on a plane and a box whose depth is known in closed form."""

from __future__ import annotations

import math

import torch

from sanawm_env.evaluation.visibility import project, unproject, visible

SIZE = (48, 60)
INTRINSICS = torch.tensor([[40.0, 40.0, 29.5, 23.5]])


def pose(x: float = 0.0, z: float = 0.0, left: float = 0.0) -> torch.Tensor:
    """Camera at (x, 0, z), turned left by radians: a negative rotation about y, which points down."""
    cosine, sine = math.cos(left), math.sin(left)
    rotation = [[cosine, 0, -sine, x], [0, 1, 0, 0], [sine, 0, cosine, z], [0, 0, 0, 1]]
    return torch.tensor(rotation, dtype=torch.float64)[None]


def wall_depth(camera: torch.Tensor, distance: float = 4.0) -> torch.Tensor:
    """z-depth of the wall z = distance seen from a camera, [1, H, W]."""
    rays = unproject(torch.ones(1, 1, *SIZE), INTRINSICS)[0, 0]
    toward = (rays @ camera[0, :3, :3].T)[..., 2]
    return ((distance - camera[0, 2, 3]) / toward)[None]


def seen(camera: torch.Tensor, depth: torch.Tensor | None = None, first: torch.Tensor | None = None) -> torch.Tensor:
    depth = wall_depth(camera) if depth is None else depth
    first = wall_depth(pose()) if first is None else first
    return visible(depth[:, None], camera[:, None], first, pose(), INTRINSICS)[0, 0]


def test_project_undoes_unproject() -> None:
    depth = torch.rand(1, 2, *SIZE, generator=torch.Generator().manual_seed(0)) + 1
    pixel, z = project(unproject(depth, INTRINSICS), INTRINSICS)
    columns = torch.arange(SIZE[1], dtype=torch.float64).expand(1, 2, *SIZE)
    rows = torch.arange(SIZE[0], dtype=torch.float64)[:, None].expand(1, 2, *SIZE)
    assert torch.allclose(pixel, torch.stack([columns, rows], dim=-1))
    assert torch.allclose(z, depth.double())


def test_standing_still_sees_everything() -> None:
    assert seen(pose()).all()


def test_moving_forward_on_a_plane_sees_nothing_new() -> None:
    assert seen(pose(z=1.5)).all()


def test_moving_back_uncovers_the_border() -> None:
    mask = seen(pose(z=-2.0))
    # At 6 m instead of 4 m, two thirds of the height and width were in the first picture.
    assert 0.95 * 4 / 9 < float(mask.double().mean()) < 1.05 * 4 / 9
    assert mask[24, 30]
    assert not mask[0, 0]


def test_turning_left_uncovers_the_left() -> None:
    mask = seen(pose(left=math.radians(20)))
    assert mask[:, -1].all()
    assert not mask[:, 0].any()
    # Column u looks 20 degrees left of where column v of the first picture looks; those left of its border are new.
    border = math.atan((29.5 + 0.5) / 40) - math.radians(20)
    assert abs(int((~mask[24]).sum()) - (30 - 40 * math.tan(border))) <= 1


def test_turning_away_sees_nothing() -> None:
    behind = pose(left=math.pi)
    assert not seen(behind, depth=torch.full((1, *SIZE), 3.0)).any()


def test_what_a_near_object_hid_is_new() -> None:
    first = wall_depth(pose()).clone()
    first[:, :, 20:40] = 1.0
    mask = seen(pose(), first=first)
    assert not mask[:, 21:39].any()
    assert mask[:, :19].all()
    assert mask[:, 41:].all()


def test_tolerance_is_two_per_cent_of_depth() -> None:
    assert seen(pose(), depth=wall_depth(pose()) * 1.015).all()
    assert not seen(pose(), depth=wall_depth(pose()) * 1.03).any()
