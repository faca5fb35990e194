"""The ray-caster against plane geometry, against itself from other places, and against aliasing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sanawm_env.errors import PoseError
from sanawm_env.rooms import layout, render, sample_scenes, sample_trajectories
from sanawm_env.rooms.geometry import ALL_PARTS, Vector, nearest_hit, present_parts
from sanawm_env.rooms.scenes import Scenes
from sanawm_env.rooms.textures import edge_cover, pulse_share

SIZE = (32, 40)
LENS = (25.0, 25.0, 19.5, 15.5)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _pose(x: float, y: float, z: float, yaw: float = 0.0) -> Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 0], pose[0, 2], pose[2, 0], pose[2, 2] = math.cos(yaw), math.sin(yaw), -math.sin(yaw), math.cos(yaw)
    pose[:3, 3] = torch.tensor([x, y, z])
    return pose


def _starts(rooms: Scenes, frames: int = 0) -> Tensor:
    return torch.from_numpy(sample_trajectories(rooms, rooms.seeds.tolist(), frames, 10.0, kind="diff_drive").poses)


def _bare(rooms: Scenes) -> Scenes:
    """The rooms without furniture."""
    primitives = rooms.primitives.clone()
    primitives[:, 1, : layout.PRIMITIVES] = 1000.0
    return Scenes(**{**vars(rooms), "primitives": primitives})


def test_depth_of_walls_floor_and_ceiling() -> None:
    rooms = _bare(sample_scenes([5]))
    half_x, height, half_z = rooms.half_size[0].tolist()
    pose = _pose(0.3, -1.2, -0.4)
    seen = render(rooms, pose[None, None], LENS, SIZE, supersample=1)
    v, u = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    a, b = (u - 19.5) / 25.0, (v - 15.5) / 25.0
    side = torch.where(a > 0, half_x - 0.3, half_x + 0.3) / a.abs()
    level = torch.where(b > 0, torch.tensor(1.2), torch.tensor(height - 1.2)) / b.abs()
    expected = torch.minimum(torch.minimum(side, level), torch.tensor(half_z + 0.4))
    torch.testing.assert_close(seen.depth[0, 0], expected, rtol=1e-5, atol=0.0)
    instance = seen.instance[0, 0]
    assert instance[31, 20] == layout.INSTANCE_FLOOR and instance[0, 20] in (2, 5)
    assert (instance[level < torch.minimum(side, torch.tensor(half_z + 0.4))] <= 2).all()


def test_mask_names_the_object_that_is_there() -> None:
    rooms = sample_scenes(range(12))
    seen = render(rooms, _starts(rooms), LENS, SIZE)
    named = 0
    for row in range(len(rooms)):
        things = {thing.instance: thing for thing in rooms.objects(row)}
        present = set(seen.instance[row].unique().tolist())
        assert 0 not in present
        assert {number for number in present if number >= layout.INSTANCE_OBJECT} <= set(things)
        points = _points(seen.depth[row, 0], _starts(rooms)[row, 0])
        for number in present & set(things):
            inside = points[seen.instance[row, 0] == number]
            far = (inside[:, (0, 2)] - torch.tensor(things[number].centre)[[0, 2]]).norm(dim=-1)
            assert float(far.max()) <= things[number].radius + 0.01
            named += 1
    assert named > 15


def _points(depth: Tensor, pose: Tensor) -> Tensor:
    """World points [H, W, 3] of a depth map."""
    height, width = depth.shape
    v, u = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    rays = torch.stack(((u - LENS[2]) / LENS[0], (v - LENS[3]) / LENS[1], torch.ones_like(u)), dim=-1)
    return (rays * depth[..., None]) @ pose[:3, :3].float().T + pose[:3, 3].float()


def test_frames_agree_through_depth() -> None:
    """A later frame, warped by its depth into frame 0, shows the same colours where both see the same point."""
    rooms = sample_scenes(range(6))
    poses = _starts(rooms, frames=6)[:, [0, 6]]
    size, lens = (64, 80), (50.0, 50.0, 39.5, 31.5)
    seen = render(rooms, poses, lens, size)
    for row in range(len(rooms)):
        v, u = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
        rays = torch.stack(((u - 39.5) / 50, (v - 31.5) / 50, torch.ones_like(u)), dim=-1)
        points = (rays * seen.depth[row, 1, ..., None]) @ poses[row, 1, :3, :3].float().T + poses[row, 1, :3, 3].float()
        local = (points - poses[row, 0, :3, 3].float()) @ poses[row, 0, :3, :3].float()
        where = torch.stack((local[..., 0] / local[..., 2] * 50 / 40, local[..., 1] / local[..., 2] * 50 / 32), dim=-1)
        maps = torch.cat((seen.rgb[row, 0].float(), seen.depth[row, 0, ..., None]), dim=-1).permute(2, 0, 1)
        found = torch.nn.functional.grid_sample(maps[None], where[None], align_corners=False)[0]
        both = (where.abs().amax(-1) < 0.97) & (local[..., 2] > 0.1)
        both &= (found[3] - local[..., 2]).abs() < 0.02 * local[..., 2]
        error = (found[:3].permute(1, 2, 0) - seen.rgb[row, 1].float()).abs().mean(-1)[both]
        plain = (seen.rgb[row, 0].float() - seen.rgb[row, 1].float()).abs().mean(-1)[both]
        assert float(both.float().mean()) > 0.4
        assert float(error.mean()) < 4.0
        assert float(error.mean()) < 0.6 * float(plain.mean())


def test_a_picture_does_not_depend_on_its_batch() -> None:
    rooms = sample_scenes(range(40, 45))
    poses = _starts(rooms, frames=2)
    together = render(rooms, poses, LENS, SIZE)
    alone = render(rooms.select([3]), poses[3:4], LENS, SIZE)
    assert torch.equal(together.rgb[3], alone.rgb[0])
    assert torch.equal(together.depth[3], alone.depth[0])
    assert torch.equal(together.instance[3], alone.instance[0])


def test_nothing_shimmers() -> None:
    """A fiftieth of a pixel of turn, again and again, changes the picture by small and even steps."""
    rooms = sample_scenes(range(4))
    start = _starts(rooms)[:, 0]
    turns = torch.stack([_pose(0, 0, 0, 0.02 * k / LENS[0]) for k in range(9)])
    frames = render(rooms, start[:, None] @ turns, LENS, SIZE, geometry=False).rgb.float()
    steps = (frames[:, 1:] - frames[:, :-1]).abs()
    assert float(steps.mean()) < 1.0
    assert float(steps.amax(dim=(2, 3, 4)).quantile(0.5)) < 60.0
    assert float((steps > 40).float().mean()) < 1e-3


def test_absent_primitives_may_be_left_out() -> None:
    rooms = sample_scenes(range(3))
    angle = torch.linspace(-1.0, 1.0, 200).expand(3, -1)
    origin = Vector(*(torch.full((3, 1), value) for value in (0.1, -1.3, 0.2)))
    direction = Vector(angle.sin() * 1.7, angle * 0.3, angle.cos())
    every = nearest_hit(rooms.primitives, origin, direction, ALL_PARTS)
    some = nearest_hit(rooms.primitives, origin, direction, present_parts(rooms.primitives))
    assert torch.equal(every[0], some[0]) and torch.equal(every[1], some[1])


def test_footprint_averages_are_exact() -> None:
    x, width = torch.tensor([0.0, 0.3, 0.5, 7.1]), torch.tensor([0.2, 0.7, 1.0, 2.5])
    fine = x[:, None] + width[:, None] * (torch.arange(20000) + 0.5 - 10000) / 20000
    expected = ((fine - fine.round()).abs() < 0.15).float().mean(dim=1)
    torch.testing.assert_close(pulse_share(x, width, torch.full_like(x, 0.15)), expected, atol=2e-3, rtol=0)
    assert edge_cover(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(0.5)).tolist() == [1.0, 0.5, 0.0]


def test_without_geometry_nothing_else_is_cast() -> None:
    rooms = sample_scenes([1])
    seen = render(rooms, _starts(rooms), LENS, SIZE, geometry=False)
    assert seen.rgb.shape == (1, 1, 32, 40, 3) and not seen.depth.numel() and not seen.instance.numel()


def test_wrong_shapes_are_named() -> None:
    rooms = sample_scenes([1, 2])
    with pytest.raises(PoseError, match=r"expected \(2, T, 4, 4\)"):
        render(rooms, torch.eye(4)[None, None], LENS, SIZE)
    with pytest.raises(PoseError, match="fx, fy, cx, cy"):
        render(rooms, torch.eye(4).expand(2, 1, 4, 4), (1.0, 1.0, 1.0), SIZE)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares CUDA with the CPU")
def test_cuda_compiled_equals_cpu() -> None:
    rooms = sample_scenes(range(4))
    poses = _starts(rooms, frames=3)
    here, there = render(rooms, poses, LENS, SIZE), render(rooms.to("cuda"), poses.cuda(), LENS, SIZE)
    off = (here.rgb.int() - there.rgb.cpu().int()).abs()
    assert float((off > 2).float().mean()) < 2e-3
    assert float((here.instance == there.instance.cpu()).float().mean()) > 0.998
