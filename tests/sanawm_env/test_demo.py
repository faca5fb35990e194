from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sanawm_env import demo
from sanawm_env.actions import make_action_map
from sanawm_env.bundle import save as save_bundle
from sanawm_env.datasets.provenance import Provenance, StoreInfo
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.verify import verify
from sanawm_env.errors import BundleError, ConfigError, StorageError
from sanawm_env.rooms import clearance, sample_scenes
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.rollouts import DIFFERENCE_GAIN
from sanawm_env.wrappers.tape import EpisodeTape


def made_up(frames: int = 17, height: int = 64, width: int = 80) -> demo.Rollout:
    """A rollout without a world, of one frame and two steps: the dream is the truth, a little brighter."""
    y, x = np.mgrid[:height, :width]
    truth = np.stack([np.stack([x + t, y + t, x + y], -1) for t in range(frames)]).astype(np.uint8)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 2, 3] = np.linspace(0, 1, frames)
    whole = {
        "frames": truth + np.uint8(5),
        "poses": poses,
        "intrinsics": np.tile(np.float32([50.0, 50.0, 39.5, 31.5]), (frames, 1)),
        "truth_frames": truth,
        "truth_depth": np.full((frames, height, width), 2.0, dtype=np.float32),
        "truth_instances": np.ones((frames, height, width), dtype=np.int16),
    }
    steps = {
        "actions": np.zeros((frames - 1, 2), dtype=np.float32),
        "rewards": np.zeros(frames - 1),
        "terminated": np.zeros(frames - 1, dtype=bool),
        "truncated": np.zeros(frames - 1, dtype=bool),
        "valid": np.ones(frames - 1, dtype=bool),
        "step_seconds": np.ones(frames - 1, dtype=np.float32),
    }
    return demo.Rollout(
        taped={name: rows[1:] for name, rows in whole.items()}
        | {f"start_{name}": rows[0] for name, rows in whole.items()}
        | steps,
        psnr=np.full(frames, 34.0),
        visible_psnr=np.full(frames, 35.0),
        seconds=2.0,
        info=StoreInfo(
            fps=10.0,
            frames_per_step=(frames - 1) // 2 or 1,
            action_columns=("v", "w"),
            action_units=("m/s", "rad/s"),
        ),
        provenance=Provenance(bundle_sha256="ab" * 32),
    )


def test_writes_four_files_and_says_how_to_open_each(tmp_path: Path) -> None:
    lines = list(demo.write(made_up(), demo.DemoConfig(out=tmp_path, frames=16)))
    names = ["rollout.mp4", "contact_sheet.png", "rollout.rrd", "episode.zarr"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert [name in line for name, line in zip(names, lines)] == [True] * 4
    with av.open(str(tmp_path / "rollout.mp4")) as container:
        assert container.streams.video[0].frames == 17
        assert container.streams.video[0].width == 3 * (3 * 80 + 4)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 3 * 80
    episode = EpisodeStore(tmp_path / "episode.zarr")
    assert episode.describe(0)["room"] == 1_000_000_007
    assert episode[0]["truth_depth"].shape == (16, 64, 80)


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    for frames in (17, 9):
        assert len(list(demo.write(made_up(frames), demo.DemoConfig(out=tmp_path)))) == 4
    assert len(EpisodeStore(tmp_path / "episode.zarr")[0]["frames"]) == 8


@pytest.mark.parametrize("limit", [2_000, 20_000])
def test_a_full_disk_is_one_error_and_no_half_file(tmp_path: Path, limit: int) -> None:
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_demo import demo, made_up, StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    list(demo.write(made_up(), demo.DemoConfig(out=Path({str(tmp_path)!r}))))
except StorageError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("refused: "), done.stderr
    assert not list(tmp_path.glob(".*")), "no draft is left"
    for path in tmp_path.glob("*.mp4"):
        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == 17


def test_refuses_a_folder_it_cannot_write_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="--out"):
        demo.run(demo.DemoConfig(out=tmp_path / "file" / "demo"))
    with pytest.raises(ConfigError, match="frames is 0"):
        demo.DemoConfig(frames=0)


def test_the_whole_demo_with_a_tiny_world(
    tiny_model: WorldModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_bundle(tmp_path / "bundle", tiny_model, {})
    config = demo.DemoConfig(bundle=str(tmp_path / "bundle"), frames=9, out=tmp_path / "out")
    figures = demo.run(config)
    printed = capsys.readouterr().out
    assert figures["frames"] == 16, "rounded up to whole steps"
    assert figures["fps"] > 0 and list(figures["psnr_visible"]) == ["8"]
    assert printed.startswith("loading torch ...") and "loading the bundle" in printed
    assert printed.count(str(tmp_path / "out")) >= 4
    episode = EpisodeStore(tmp_path / "out" / "episode.zarr")
    assert episode[0]["frames"].shape == (16, 32, 40, 3) and episode.describe(0)["seed"] == 0
    assert episode[0]["start_truth_frames"].shape == (32, 40, 3) and not verify(episode.path).problems


def test_an_error_starts_on_a_line_of_its_own(
    tiny_model: WorldModel, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise StorageError("no space; make some")

    config = demo.DemoConfig(bundle=str(tmp_path / "bundle"), frames=1, out=tmp_path / "out")
    with pytest.raises(BundleError):
        demo.run(config)
    assert capfd.readouterr().out.endswith("... failed\n")
    save_bundle(tmp_path / "bundle", tiny_model, {})
    monkeypatch.setattr("sanawm_env.rooms.render", refused)
    env = demo.make(config)
    env.reset = lambda **_: EpisodeTape.reset(env, options={"image": np.zeros((32, 40, 3), np.uint8)})
    # While the error is on its way, as when the command line prints it, the bar before it is closed.
    with pytest.raises(StorageError):
        demo.drive(env, config)
    progress = capfd.readouterr().err
    assert "rendering the truth" in progress and progress.endswith("\n")


def test_side_by_side_shows_the_difference_enlarged() -> None:
    shown = demo.side_by_side(made_up(2))
    assert shown.shape == (2, 64, 3 * 80 + 4, 3)
    assert set(np.unique(shown[:, :, -80:])) == {DIFFERENCE_GAIN * 5}


def test_point_cloud_lies_where_the_depth_says() -> None:
    positions, colours = demo.point_cloud(made_up(9), every=8, pixels=4)
    assert positions.shape == colours.shape == (2 * 16 * 20, 3)
    assert positions[:, 1].min() > -demo.HEADROOM
    # Depth 2 m from a camera that looks along z, at z = 0 m and z = 1 m.
    np.testing.assert_allclose(np.unique(positions[:, 2].round(4)), [2.0, 3.0])


@pytest.mark.parametrize("seed", [10**9, 10**9 + 7, 3])
def test_the_tour_keeps_its_distance(seed: int) -> None:
    import torch

    scenes, drive = sample_scenes([seed]), make_action_map("diff_drive")
    pose = np.eye(4)
    pose[1, 3] = -1.0
    plan = demo.free_tour(scenes, pose, drive, steps=16, chunk=8, fps=10.0)
    assert plan.shape == (16, 2) and np.abs(plan).max() <= 1
    path, _ = drive.rollout(pose[None], drive.initial(1), np.repeat(plan, 8, axis=0)[None], 10.0)
    free = clearance(scenes, torch.as_tensor(path[..., :3, 3]))
    assert not plan[:, 0].any() or float(free.min()) >= demo.MARGIN


def test_the_tour_has_128_frames_and_looks_both_ways() -> None:
    turns = [turn for steps, _, turn in demo.TOUR for _ in range(steps)]
    assert len(turns) == 16
    assert min(turns) < 0 < max(turns)
