"""Clips of rooms stay clear of what stands there; the benchmark of 80 scenes is read as its folder is laid out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sanawm_env.errors import SceneError, StorageError
from sanawm_env.evaluation.benchmark_paths import Caps
from sanawm_env.evaluation.world_clips import folder_clips, rooms_clips
from sanawm_env.model.config import tiny_config
from sanawm_env.rooms import clearance

CPU = torch.device("cpu")


def test_paths_through_rooms_keep_the_margin_and_do_not_depend_on_the_batch() -> None:
    clips = rooms_clips(tiny_config(), "hard", range(3), 0, 32, CPU, Caps())
    assert clips.rooms is not None and clips.templates == ("fast_yaw", "whip_pan", "vertical")
    free = clearance(clips.rooms.scenes, clips.poses[:, :, :3, 3])
    assert float(free.min()) >= 0.3 - 1e-4
    height = -clips.poses[:, :, 1, 3]
    assert bool(((height > 0.3) & (height < clips.rooms.scenes.half_size[:, 1, None] - 0.3)).all())
    alone = rooms_clips(tiny_config(), "hard", [2], 0, 32, CPU, Caps())
    torch.testing.assert_close(alone.poses[0], clips.poses[2], rtol=0, atol=0)
    torch.testing.assert_close(alone.pictures[0], clips.pictures[2], rtol=0, atol=0)


def benchmark(folder: Path, frames: int = 33) -> Path:
    """Two scenes at 20 frames/s with pictures of 80 x 128, in the layout of SANA-WM-Bench."""
    export = folder / "benchmark_v2_smooth_60s" / "sanawm_export_v2"
    export.mkdir(parents=True)
    (folder / "images").mkdir()
    rows = []
    for number, name in enumerate(("indoor_001", "game_style_002")):
        Image.fromarray(np.full((80, 128, 3), 50 * number, np.uint8)).save(folder / "images" / f"{name}.png")
        poses = np.tile(np.eye(4), (frames, 1, 1))
        poses[:, 2, 3] = 0.01 * np.arange(frames)
        matrix = np.array([[100.0, 0, 63.5], [0, 100, 39.5], [0, 0, 1]])
        path = export / f"{name}.npz"
        np.savez(path, c2w=poses, intrinsics=np.tile(matrix, (frames, 1, 1)), fps=20, num_frames=frames)
        rows.append(
            {
                "id": name,
                "image_path": f"images/{name}.png",
                "camera_path": str(path.relative_to(folder)),
                "prompt": "a",
            }
        )
    (export / "run_manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scenes = [
        {"scene_id": "indoor_001", "evaluation_pairs": [{"frame_a": 4, "frame_b": 20}, {"frame_a": 0, "frame_b": 32}]}
    ]
    (export.parent / "scene_trajectories_v2.json").write_text(json.dumps({"scenes": scenes}))
    return folder


def test_the_benchmark_of_80_scenes_is_read(tmp_path: Path) -> None:
    config = tiny_config()
    assert (config.fps, config.height, config.width) == (10, 32, 40)
    clips = folder_clips(config, benchmark(tmp_path), "simple", [0, 1], 12)
    assert clips.names == ("indoor_001", "game_style_002") and clips.prompts == ("a", "a") and clips.rooms is None
    # Every second pose of 20 frames/s; 80 x 128 covers 32 x 40 at 0.4 and loses 11 or 12 columns at the left.
    np.testing.assert_allclose(clips.poses[0, :, 2, 3], 0.02 * np.arange(13))
    fx, fy, cx, cy = clips.intrinsics[0].tolist()
    assert fx == pytest.approx(40, rel=0.02) and fy == pytest.approx(40) and cy == pytest.approx(15.8)
    assert cx == pytest.approx(63.5 * fx / 100 - 5, abs=0.6)
    assert int(clips.pictures[1].unique()) == 50
    assert clips.pairs[0] == [(2, 10)], "the pair that ends behind the clip is left out"


def test_a_folder_that_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="SANA-WM-Bench"):
        folder_clips(tiny_config(), tmp_path, "simple", [0], 12)
    folder = benchmark(tmp_path / "b")
    with pytest.raises(SceneError, match="ask for 16 frames"):
        folder_clips(tiny_config(), folder, "simple", [0], 20)
    (folder / "benchmark_v2_smooth_60s" / "sanawm_export_v2" / "indoor_001.npz").unlink()
    with pytest.raises(StorageError, match="indoor_001"):
        folder_clips(tiny_config(), folder, "simple", [0], 12)
