"""Footage whose camera path is known: a room of Rooms and a scene of MuJoCo, as videos of 640x480."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sanawm_env.datasets.video import Mp4Writer

SIZE = (480, 640)
LENS = (420.0, 420.0, 319.5, 239.5)
ROOM, ROOM_FRAMES = 12, 24

# Boxes in a hall; the textures are noise, drawn in `mujoco_footage`.
SCENE = """
<mujoco>
  <visual>
    <headlight ambient="0.7 0.7 0.7" diffuse="0.3 0.3 0.3" specular="0 0 0"/>
    <global offwidth="640" offheight="480"/>
  </visual>
  <asset>{assets}</asset>
  <worldbody>
    <geom type="box" size="4 4 0.05" pos="0 0 -0.05" material="m0"/>
    <geom type="box" size="0.05 4 2" pos="4 0 2" material="m1"/>
    <geom type="box" size="4 0.05 2" pos="0 4 2" material="m2"/>
    <geom type="box" size="4 0.05 2" pos="0 -4 2" material="m3"/>
    <geom type="box" size="0.4 0.4 0.4" pos="1.5 1 0.4" material="m1"/>
    <geom type="box" size="0.3 0.5 0.6" pos="2 -1.2 0.6" material="m2"/>
    <geom type="box" size="0.3 0.3 0.3" pos="0.6 0 0.3" material="m3"/>
    <body mocap="true"><camera name="eye" xyaxes="0 -1 0 0 0 1" fovy="60"/></body>
  </worldbody>
</mujoco>
"""
ASSET = """
<texture name="t{0}" type="2d" builtin="flat" width="256" height="256" rgb1="0.5 0.5 0.5"/>
<material name="m{0}" texture="t{0}"/>
"""


@dataclass(frozen=True)
class Known:
    """A video, and the truth of its frames. poses: [T, 4, 4]. intrinsics: [4]. depth: [T, H, W] where there is one."""

    path: Path
    fps: float
    poses: np.ndarray
    intrinsics: np.ndarray
    depth: np.ndarray | None = None

    @property
    def speed(self) -> float:
        """Mean, m/s."""
        steps = np.linalg.norm(np.diff(self.poses[:, :3, 3], axis=0), axis=1)
        return float(steps.mean() * self.fps)


def write(path: Path, pictures: Iterable[np.ndarray], fps: float) -> None:
    with Mp4Writer(path, fps, SIZE) as video:
        for picture in pictures:
            video.add(picture)


def rooms_footage(path: Path) -> Known:
    """A flight through a room of tiles and bricks, 5 frames a second."""
    import torch

    from sanawm_env.rooms import render, sample_scenes, sample_trajectories

    room = sample_scenes([ROOM])
    poses = sample_trajectories(room, [ROOM], 2 * ROOM_FRAMES, 10.0, kind="free").poses[:, : 2 * ROOM_FRAMES : 2]
    seen = render(room, torch.from_numpy(poses), LENS, SIZE, supersample=1)
    write(path, seen.rgb[0].numpy(), 5.0)
    return Known(path, 5.0, poses[0], np.array(LENS), seen.depth[0].numpy())


def mujoco_footage(path: Path, frames: int = 24) -> Known:
    """A camera that moves ahead and to the side past boxes, and turns; MuJoCo's own picture, pose and lens."""
    import mujoco

    from sanawm_env.wrappers.mujoco_camera import camera_intrinsics, camera_pose

    model = mujoco.MjModel.from_xml_string(SCENE.format(assets="".join(ASSET.format(k) for k in range(4))))
    _paint(model)
    data, pictures, poses = mujoco.MjData(model), [], []
    with mujoco.Renderer(model, *SIZE) as renderer:
        for s in np.linspace(0, 1, frames):
            data.mocap_pos[0] = [-2.5 + 1.8 * s, -0.8 + 1.6 * np.sin(1.7 * s), 1.2 + 0.3 * np.sin(4 * s)]
            yaw = 0.25 * np.sin(3 * s)
            data.mocap_quat[0] = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, "eye")
            pictures.append(renderer.render().copy())
            poses.append(camera_pose(data, 0))
    write(path, pictures, 6.0)
    return Known(path, 6.0, np.stack(poses), camera_intrinsics(model, 0, SIZE))


def needs_pycolmap() -> None:
    pytest.importorskip("pycolmap", reason="the extra `annotate` is not installed")


def _paint(model: object) -> None:
    """Noise of several grain sizes into every texture."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    for number in range(model.ntex):  # type: ignore[attr-defined]
        noise = sum(gaussian_filter(rng.normal(size=(256, 256)), s, mode="wrap") * s for s in (1, 3, 8))
        grey = np.clip(128 + 55 * noise / noise.std(), 0, 255)
        colours = np.stack([grey * share for share in rng.uniform(0.5, 1, 3)], axis=-1).astype(np.uint8)
        start = model.tex_adr[number]  # type: ignore[attr-defined]
        model.tex_data[start : start + colours.size] = colours.ravel()  # type: ignore[attr-defined]
