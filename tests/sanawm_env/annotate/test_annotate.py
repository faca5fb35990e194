"""`sanawm annotate` on footage whose camera path is known, and on footage that it must refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.mujoco_here import needs_mujoco
from tests.sanawm_env.annotate.footage import SIZE, Known, mujoco_footage, needs_pycolmap, rooms_footage, write

from sanawm_env import cli
from sanawm_env.actions import Pose
from sanawm_env.annotate.command import KNOWN, Outcome, run
from sanawm_env.annotate.settings import Annotate
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.verify import verify
from sanawm_env.errors import ConfigError, StorageError
from sanawm_env.evaluation.camera_error import camera_error


def poses_of(store: EpisodeStore) -> np.ndarray:
    return np.concatenate([store[0]["start_poses"][None], store[0]["poses"]])


def check_path(known: Known, path: Path, outcomes: list[Outcome]) -> EpisodeStore:
    """The episode has the footage's camera: RotErr <= 1 degree, TransErr <= 2 % of the path, as it does up to scale."""
    assert [outcome.episode for outcome in outcomes] == [0], [outcome.text() for outcome in outcomes]
    store = EpisodeStore(path)
    error = camera_error(poses_of(store), known.poses)
    focal = store[0]["intrinsics"][0, 0] / known.intrinsics[0] - 1
    print(
        f"RotErr {error.rotation:.3f} degrees, TransErr {error.relative:.3%}, scale {error.scale:.4f}, fx {focal:+.2%}"
    )
    assert error.rotation <= 1.0 and error.relative <= 0.02
    assert abs(focal) < 0.02 and np.abs(store[0]["intrinsics"][0, 2:] - known.intrinsics[2:]).max() < 0.01
    assert store.describe(0)["synthetic"] is False and store.describe(0)["licences"] == ["CC0-1.0"]
    assert not verify(path).problems
    return store


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mujoco_footage_of_known_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_pycolmap()
    needs_mujoco()
    known = mujoco_footage(tmp_path / "hall.mp4")
    config = Annotate(video=known.path, out=tmp_path / "a.zarr", licence="CC0-1.0", speed=known.speed)
    store = check_path(known, config.out, run(config))
    assert camera_error(poses_of(store), known.poses).scale == pytest.approx(1, abs=0.02), "metres"
    extra = store.describe(0)["extra"]
    assert extra["scale_source"] == "speed" and extra["figures"]["registered_share"] == 1
    assert store.describe(0)["units_per_metre"] == 1 and len(extra["video"]["sha256"]) == 64
    first, actions = store[0]["start_poses"], store[0]["actions"]
    replayed, _ = Pose(mode="delta").rollout(first[None], np.zeros((1, 0)), actions[None].astype(float), known.fps)
    assert np.abs(replayed[0] - store[0]["poses"]).max() < 1e-5, "actions lead along the path"
    told = ["annotate", str(known.path), "--out", str(config.out), "--licence", "CC0-1.0", "--speed", str(known.speed)]
    assert cli.main(told) == 0
    assert KNOWN in (said := capsys.readouterr().out) and "0 episodes added, 0 shots rejected" in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rooms_footage_of_known_depth(tmp_path: Path) -> None:
    needs_pycolmap()
    known = rooms_footage(tmp_path / "room.mp4")
    planes = iter(np.asarray(known.depth)[np.linspace(0, len(known.poses) - 1, 16).round().astype(int)])
    config = Annotate(video=known.path, out=tmp_path / "a.zarr", licence="CC0-1.0")
    store = check_path(known, config.out, run(config, depth=lambda frame: next(planes)))
    assert camera_error(poses_of(store), known.poses).scale == pytest.approx(1, abs=0.03), "metres"
    extra = store.describe(0)["extra"]
    assert extra["scale_source"] == "depth" and extra["figures"]["depth_spread"] < 0.1


def test_a_shot_that_fails_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_pycolmap()
    still = np.random.default_rng(0).integers(60, 200, (*SIZE, 3), dtype=np.uint8)
    write(tmp_path / "still.mp4", [still] * 20, 10.0)
    out = tmp_path / "a.zarr"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["annotate", str(tmp_path / "still.mp4"), "--out", str(out), "--licence", "CC0-1.0"])
    assert stopped.value.code == 1 and not out.exists()
    assert "frames 0 to 19: rejected: motion is 0" in capsys.readouterr().out
    flat = [np.full((*SIZE, 3), 40 + 5 * k, np.uint8) for k in range(20)]
    write(tmp_path / "flat.mp4", flat, 10.0)
    (outcome,) = run(Annotate(video=tmp_path / "flat.mp4", out=out, licence="CC0-1.0"))
    assert outcome.rejected and "too little texture" in outcome.reason and not out.exists()


def test_what_is_refused_before_any_work(tmp_path: Path) -> None:
    needs_pycolmap()
    given = {"video": tmp_path / "a.mp4", "out": tmp_path / "a.zarr", "licence": "CC0-1.0"}
    with pytest.raises(ConfigError, match="licence is empty"):
        Annotate(**{**given, "licence": " "})
    with pytest.raises(ConfigError, match="each give a scale"):
        Annotate(**given, speed=1.0, depth="model")
    with pytest.raises(ConfigError, match="above 0"):
        Annotate(**given, speed=-1.0)
    with pytest.raises(StorageError, match="cannot be read as a video"):
        run(Annotate(**given))
    write(tmp_path / "a.mp4", [np.zeros((*SIZE, 3), np.uint8)] * 3, 10.0)
    with pytest.raises(ConfigError, match="fps is 20"):
        run(dataclasses.replace(Annotate(**given), fps=20.0))
    assert not (tmp_path / "a.zarr").exists()
    assert cli.main(["annotate", str(tmp_path / "a.mp4"), "--out", str(tmp_path / "a.zarr")]) == 2
