"""Scene files: what they say of camera, scale and origin, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sanawm_env import Scene, load_scene
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import PoseError, SceneError
from sanawm_env.scene import read_scene
from sanawm_env.world import WorldModel


def write(folder: Path, size: tuple[int, int] = (80, 64), **told: Any) -> Path:
    """A folder with first.png of the given width and height, and scene.yaml."""
    draw = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(draw).save(folder / "first.png")
    (folder / "scene.yaml").write_text(yaml.safe_dump({"image": "first.png"} | told))
    return folder


def test_a_file_says_all_that_is_known(tmp_path: Path) -> None:
    pose = np.eye(4)
    pose[:3, 3] = [1.0, 2.0, 3.0]
    folder = write(
        tmp_path,
        intrinsics=[50, 50, 39.5, 31.5],
        prompt="a kitchen",
        pose=pose.tolist(),
        units_per_metre=2,
        units_from="estimated",
        source="own photograph",
        licence="CC0-1.0",
        fps=10,
    )
    for path in (folder, str(folder / "scene.yaml")):
        scene = load_scene(path, 32, 40)
        assert scene.image.shape == (32, 40, 3)
        assert scene.intrinsics == (25.0, 25.0, 19.75, 15.75) and scene.intrinsics_from == "given"
        assert (scene.prompt, scene.units_per_metre, scene.units_from) == ("a kitchen", 2, "estimated")
        assert (scene.source, scene.licence, scene.fps) == ("own photograph", "CC0-1.0", 10)
        assert scene.pose is not None and np.array_equal(scene.pose, pose)


def test_opengl_poses_are_turned_to_opencv_axes(tmp_path: Path) -> None:
    scene = load_scene(write(tmp_path, pose=np.eye(4).tolist(), pose_convention="opengl"), 32, 40)
    assert scene.pose is not None
    # An OpenGL camera looks along -z: that is the z axis of the OpenCV pose.
    assert scene.pose[:3, 2].tolist() == [0, 0, -1] and scene.pose[:3, 1].tolist() == [0, -1, 0]


def test_unknown_intrinsics_are_estimated_and_the_record_says_how(tmp_path: Path) -> None:
    usual = load_scene(write(tmp_path, intrinsics="estimate"), 64, 80)
    assert usual.intrinsics == (64.0, 64.0, 39.5, 31.5) and usual.intrinsics_from == "usual"
    exif = Image.Exif()
    exif[0x8769] = {0xA405: 36}  # 36 mm on film, whose diagonal is 43.27 mm
    Image.new("RGB", (80, 64)).save(tmp_path / "first.png", exif=exif)
    scene = load_scene(tmp_path, 64, 80)
    assert scene.intrinsics_from == "exif" and scene.intrinsics is not None
    assert scene.intrinsics[0] == pytest.approx(36 * np.hypot(80, 64) / np.hypot(36, 24))


@pytest.mark.parametrize(
    ("told", "kind", "message"),
    [
        ({"promt": "x"}, SceneError, "unknown key 'promt'; did you mean 'prompt'"),
        ({"image": "second.png"}, SceneError, "'second.png' is no file beside it"),
        ({"intrinsics": [1, 2]}, SceneError, r"intrinsics are \[1, 2\]"),
        ({"intrinsics": "guess"}, SceneError, "or 'estimate'"),
        ({"pose": [[1, 0], [0, 1]]}, PoseError, r"shape \(2, 2\)"),
        ({"pose_convention": "blender"}, SceneError, "'blender'; .*opengl"),
        ({"units_per_metre": 0}, SceneError, "units_per_metre is 0"),
        ({"units_from": "guessed"}, SceneError, "units_from is 'guessed'"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, told: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_scene(write(tmp_path, **told), 32, 40)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"cannot be read.*pass the seed of a room"):
        load_scene(tmp_path / "none", 32, 40)
    (tmp_path / "scene.yaml").write_text("- a\n- b\n")
    with pytest.raises(SceneError, match="holds list"):
        load_scene(tmp_path, 32, 40)
    write(tmp_path)
    (tmp_path / "first.png").write_bytes(b"no picture")
    with pytest.raises(SceneError, match="cannot be read as a picture"):
        load_scene(tmp_path, 32, 40)
    with pytest.raises(SceneError, match="no 'image'"):
        read_scene({"prompt": "x"})


def test_an_environment_starts_from_a_file_and_follows_its_scale(tiny_model: WorldModel, tmp_path: Path) -> None:
    env = SanaWMEnv(tiny_model, task="drive")
    seen = {}
    for units in (None, 1.0, 3.0):
        folder = tmp_path / str(units)
        folder.mkdir()
        told = {} if units is None else {"units_per_metre": units}
        _, info = env.reset(seed=0, options={"scene": str(write(folder, intrinsics=[50, 50, 39.5, 31.5], **told))})
        assert info["calibrated"]  # the bundle's own scale where the scene says nothing
        seen[units] = env.step([1.0, 0.0])[0]
    assert np.array_equal(seen[None], seen[1.0])  # the tiny model counts in metres
    assert not np.array_equal(seen[1.0], seen[3.0])


def test_unknown_scale_counts_as_metres_and_says_so(tiny_model: WorldModel) -> None:
    state = tiny_model.empty_state(2)
    assert state.units.tolist() == [1.0, 1.0]
    state.units[:] = torch.nan
    assert state.clone().units.isnan().all()
    with pytest.raises(SceneError, match="units_per_metre is -1"):
        Scene(image=np.zeros((32, 40, 3), np.uint8), units_per_metre=-1)
