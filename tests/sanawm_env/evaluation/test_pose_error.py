"""Render-and-compare finds a known offset of the camera, in a room made for the test."""

from __future__ import annotations

import math

import pytest
import torch

from sanawm_env.evaluation.pose_error import as_matrix, magnitude, refine, uncertainty
from sanawm_env.evaluation.visibility import unproject

SIZE = (32, 40)
INTRINSICS = torch.tensor([[25.0, 25.0, 19.5, 15.5]])
HALF = torch.tensor([3.0, 1.5, 4.0], dtype=torch.float64)


def render(poses: torch.Tensor) -> torch.Tensor:
    """A box room with smooth patterns on its walls, seen from inside: float [B, T, h, w, 3] in 0 .. 255."""
    rays = unproject(torch.ones(1, 1, *SIZE), INTRINSICS)[0, 0]
    direction = torch.einsum("btij,hwj->bthwi", poses[..., :3, :3], rays)
    origin = poses[:, :, None, None, :3, 3].expand_as(direction)
    reach = ((HALF * direction.sign() - origin) / direction.where(direction != 0, torch.tensor(1e-9).double())).amin(-1)
    x, y, z = (origin + reach[..., None] * direction).unbind(-1)
    waves = [
        torch.sin(3 * x + 2 * y) + torch.cos(2.5 * z),
        torch.sin(2 * z + y) + torch.cos(3 * x),
        torch.sin(4 * y + x - z),
    ]
    return (128 + 50 * torch.stack(waves, dim=-1)).clamp(0, 255).float()


def camera(batch: int, frames: int) -> torch.Tensor:
    poses = torch.eye(4, dtype=torch.float64).repeat(batch, frames, 1, 1)
    poses[..., 0, 3] = 0.2 * torch.arange(batch)[:, None]
    poses[..., 2, 3] = 0.3 * torch.arange(frames)
    return poses


def everything(batch: int, frames: int) -> torch.Tensor:
    return torch.ones(batch, frames, *SIZE, dtype=torch.bool)


def test_a_frame_at_its_pose_has_no_error() -> None:
    poses = camera(1, 2)
    degrees, metres = magnitude(refine(render(poses), poses, render, everything(1, 2)))
    assert float(degrees.max()) < 0.01
    assert float(metres.max()) < 1e-3


def test_known_offsets_are_found() -> None:
    poses = camera(2, 2)
    radians = math.radians(1)
    offsets = torch.tensor(
        [
            [[1.5 * radians, 0, 0, 0, 0, 0], [0, -2 * radians, 0.5 * radians, 0, 0, 0]],
            [[0, 0, 0, 0.06, -0.03, 0.08], [radians, radians, 0, -0.04, 0, 0.05]],
        ],
        dtype=torch.float64,
    )
    found = refine(render(poses @ as_matrix(offsets)), poses, render, everything(2, 2))
    assert (found[..., :3] - offsets[..., :3]).abs().max() < math.radians(0.1)
    assert (found[..., 3:] - offsets[..., 3:]).abs().max() < 0.01


def test_an_invented_part_does_not_move_the_pose() -> None:
    """A quarter of the picture is something else: without a mask it is outvoted, with one it is not looked at."""
    poses = camera(1, 1)
    offset = torch.tensor([[[0, math.radians(1), 0, 0, 0, 0.04]]], dtype=torch.float64)
    frames = render(poses @ as_matrix(offset))
    frames[:, :, :, :10] = 20.0
    mask = everything(1, 1)
    mask[..., :12] = False
    for compared, degrees, metres in ((everything(1, 1), 0.3, 0.03), (mask, 0.1, 0.01)):
        found = refine(frames, poses, render, compared)
        assert (found - offset)[..., :3].abs().max() < math.radians(degrees)
        assert (found - offset)[..., 3:].abs().max() < metres


def test_a_frame_without_pixels_stays() -> None:
    poses = camera(1, 1)
    assert refine(render(poses) * 0, poses, render, ~everything(1, 1)).abs().max() == 0


def test_what_a_picture_can_tell_of_its_pose() -> None:
    poses, half = camera(1, 1), everything(1, 1)
    half[..., :20] = False
    plain = float(uncertainty(poses, render, everything(1, 1)))
    assert 0.1 < plain < 2, "walls with a pattern"
    assert float(uncertainty(poses, lambda where: 2 * render(where), everything(1, 1))) == pytest.approx(plain / 2)
    assert float(uncertainty(poses, render, half)) > 1.2 * plain
    assert float(uncertainty(poses, render, ~everything(1, 1))) > 1000
    blank = torch.full((1, 1, *SIZE, 3), 128.0)
    assert float(uncertainty(poses, lambda where: blank, everything(1, 1))) > 1000


def test_the_search_scatters_as_the_uncertainty_says() -> None:
    """Noise of each pixel and colour, faint beside the scale of the search, moves it as far as the bound says."""
    poses, sigma = camera(1, 1).expand(24, -1, -1, -1), 3.0
    torch.manual_seed(0)
    noise = sigma * torch.randn(24, 1, *SIZE, 3)
    found = refine(render(poses) + noise, poses, render, everything(24, 1))
    spread = torch.rad2deg(found[..., :3].square().sum(-1).mean().sqrt())
    # The bound is for errors of 12 grey levels that are alike over a patch of the blur (8 pixels) in three colours.
    bound = float(uncertainty(poses[:1], render, everything(1, 1))) * sigma / 12 / math.sqrt(3 * 8.04)
    assert float(spread) == pytest.approx(bound, rel=0.3)


def test_motions_are_rigid_and_right_handed() -> None:
    quarter = as_matrix(torch.tensor([0, math.pi / 2, 0, 1, 2, 3], dtype=torch.float64))
    assert torch.allclose(quarter[:3, 2], torch.tensor([1.0, 0, 0], dtype=torch.float64), atol=1e-12)
    assert quarter[:3, 3].tolist() == pytest.approx([1, 2, 3])
    assert float(torch.linalg.det(quarter)) == pytest.approx(1)
