"""`evaluate` on a tiny random world: keys, ranges, what it may depend on, and the command around it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sanawm_env import bundle
from sanawm_env.config import from_mapping
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation import __main__ as bare
from sanawm_env.evaluation import evaluate, rooms
from sanawm_env.evaluation.held_out import FIRST_SEED, SEEDS_EACH, held_out, shrunk_intrinsics
from sanawm_env.evaluation.pose_error import as_matrix, magnitude
from sanawm_env.evaluation.summary import summary
from sanawm_env.evaluation.visibility import unproject
from sanawm_env.model.config import WorldConfig, tiny_config
from sanawm_env.world import WorldModel

MAPS = ("psnr_visible", "psnr_all", "ssim_all", "copy_first", "wrong_camera", "autoencoder", "visible_share")
CPU = torch.device("cpu")
ANY = 180.0  # degrees: pictures as small as these tell little


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.random(tiny_config())


@pytest.fixture(scope="module")
def outcome(model: WorldModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    sheet = tmp_path_factory.mktemp("sheet") / "sheet.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "UNSURE", ANY)
        return evaluate(model, scenes=3, frames=16, returns=(16, 32), sheet=sheet), sheet


def test_report_has_the_promised_keys(outcome: tuple[dict[str, Any], Path], model: WorldModel) -> None:
    report = json.loads(json.dumps(outcome[0], allow_nan=False))
    assert report["resolution"] == [32, 40]
    assert report["device"] == "cpu"
    assert report["bundle_sha256"] == model.fingerprint
    assert report["fps"] > 0
    assert all(list(report[key]) == ["1", "8", "16"] for key in MAPS)
    assert list(report["there_and_back_db"]) == ["16", "32"]
    assert list(report["pose_error_degrees"]) == list(report["pose_error_metres"]) == ["8"]


def test_values_are_possible(outcome: tuple[dict[str, Any], Path]) -> None:
    report = outcome[0]
    assert all(0 < share <= 1 for share in report["visible_share"].values())
    assert report["visible_share"]["1"] > report["visible_share"]["16"]
    assert all(-1 <= value <= 1 for value in report["ssim_all"].values())
    assert report["copy_first"]["1"] > report["copy_first"]["16"]
    assert report["streaming_error"] < 1e-5
    assert "frames ahead" in summary(report)
    assert "  frames that tell it                -       3       -" in summary(report)


def test_contact_sheet_shows_the_scenes(outcome: tuple[dict[str, Any], Path]) -> None:
    with Image.open(outcome[1]) as sheet:
        assert sheet.width > 4 * 40
        assert sheet.height > 3 * 3 * 32


def test_grouping_of_scenes_changes_nothing(
    outcome: tuple[dict[str, Any], Path], model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rooms.BUDGETS, "cpu", replace(rooms.BUDGETS["cpu"], group=2))
    again = evaluate(model, scenes=3, frames=16, returns=())
    assert all(again[key] == outcome[0][key] for key in MAPS)


def test_a_perfect_world_is_found_perfect(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ray-caster in place of the model: no pose error, and PSNR that falls only along the wrong path."""

    def oracle(
        model: WorldModel, pictures: torch.Tensor, seeds: tuple[int, ...], poses: torch.Tensor, keep: list[int], *_: Any
    ) -> rooms.Dream:
        drives = rooms.HeldOut(seeds=tuple(seeds), poses=poses, config=model.config, device=CPU)
        latents = torch.zeros(len(seeds), 1 + 2 * (poses.shape[1] - 1) // 8, 8, 4, 5)
        return rooms.Dream(frames=drives.pictures(poses[:, keep]), latents=latents, made=1, seconds=1.0)

    monkeypatch.setattr(rooms, "dream", oracle)
    monkeypatch.setattr(rooms, "UNSURE", ANY)
    report = evaluate(model, scenes=3, frames=16, returns=(16, 32))
    assert all(value > 90 for value in report["psnr_visible"].values())
    assert all(value > 90 for value in report["there_and_back_db"].values())
    assert report["wrong_camera"]["16"] < 40
    assert report["pose_error_degrees"]["8"] < 0.01
    assert report["pose_error_metres"]["8"] < 0.001
    assert report["pose_error_frames"] == {"8": 3}


def test_frames_that_show_little_of_the_first_picture_have_no_pose(
    model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def little(depth: torch.Tensor, *_: Any) -> torch.Tensor:
        seen = torch.ones_like(depth, dtype=torch.bool)
        seen[1, ..., 9:, :] = False  # 9 of 32 rows: less than 0.3
        return seen

    monkeypatch.setattr(rooms, "visible", little)
    monkeypatch.setattr(rooms, "UNSURE", ANY)
    report = evaluate(model, scenes=3, frames=8, returns=())
    assert report["pose_error_frames"] == {"8": 2}
    assert report["pose_error_degrees"]["8"] >= 0
    monkeypatch.setattr(rooms, "visible", lambda depth, *_: torch.zeros_like(depth, dtype=torch.bool))
    report = evaluate(model, scenes=3, frames=8, returns=())
    assert report["pose_error_degrees"] == report["pose_error_metres"] == {"8": None}


def test_a_camera_beside_its_path_is_found() -> None:
    """Real rooms, frames taken one degree and four centimetres off: found within a third of a pixel, mostly."""
    config = replace(tiny_config(), height=64, width=80, intrinsics=(50.0, 50.0, 39.5, 31.5))
    drives = held_out(config, 3, 0, 8, CPU, "diff_drive")
    poses = drives.poses[:, 8:]
    offset = torch.tensor([0.0, math.radians(1.0), 0.0, 0.0, 0.0, 0.04], dtype=torch.float64).expand(3, 1, 6)
    beside, truth = (drives.pictures(where) for where in (poses @ as_matrix(offset), poses))
    found = rooms.pose_offsets(drives, beside, truth, torch.ones(3, 1, 64, 80, dtype=torch.bool), poses)
    degrees, metres = magnitude(found - offset)
    assert degrees.median() < 0.35
    assert metres.median() < 0.02


def test_a_nearly_blank_wall_tells_no_pose() -> None:
    """Two held-out frames, seen as a whole: a furnished room, and a wall with the rim of a red disc."""
    config = from_mapping(WorldConfig, bundle.description("rooms")["config"])
    drives = held_out(config, 13, 0, 64, CPU)
    seen = torch.ones(1, 1, config.height, config.width, dtype=torch.bool)
    room, wall = (drives.part(scene, scene + 1) for scene in (12, 3))
    assert rooms.telling(room, seen, room.poses[:, 64:]).all()
    assert not rooms.telling(wall, seen, wall.poses[:, 64:]).any()
    assert not rooms.telling(room, torch.zeros_like(seen), room.poses[:, 64:]).any()


def test_held_out_scenes_are_beyond_those_of_training() -> None:
    few, many = (held_out(tiny_config(), count, 3, 8, CPU) for count in (2, 4))
    assert few.seeds == (FIRST_SEED + 3 * SEEDS_EACH, FIRST_SEED + 3 * SEEDS_EACH + 1)
    assert torch.equal(many.poses[:2], few.poses)


def test_wrong_paths_begin_where_the_right_ones_do() -> None:
    drives = held_out(tiny_config(), 3, 0, 8, CPU)
    stray = drives.on_anothers_path()
    assert torch.allclose(stray.poses[:, 0], drives.poses[:, 0])
    motion = torch.linalg.inv(stray.poses[0, 0]) @ stray.poses[0, -1]
    assert torch.allclose(motion, torch.linalg.inv(drives.poses[1, 0]) @ drives.poses[1, -1])


def test_there_and_back_is_at_the_start_when_it_is_compared(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    driven = []

    def record(model: WorldModel, pictures: torch.Tensor, seeds: Any, poses: torch.Tensor, *_: Any) -> rooms.Dream:
        driven.append(poses)
        frames = pictures[:, None].expand(-1, 2, -1, -1, -1)
        return rooms.Dream(frames=frames, latents=torch.zeros(0), made=1, seconds=1.0)

    monkeypatch.setattr(rooms, "dream", record)
    drives = held_out(model.config, 4, 0, 16, CPU, "there_and_back")
    rooms._there_and_back(model, drives, (32, 64), lambda frames: None)
    path = driven[0]
    assert path.shape[1] == 65
    assert all(torch.equal(path[:, k], path[:, 0]) for k in (32, 64))
    assert torch.equal(path[:, 16], drives.poses[:, 16])
    assert (path.diff(dim=1).abs().amax((0, 2, 3)) < 0.3).all()


def test_shrunk_pictures_see_the_same_rays() -> None:
    """The centre of a 2x2 block of pixels and the pixel that replaces it."""
    whole = torch.tensor([[100.0, 90.0, 79.5, 63.5]])
    full = unproject(torch.ones(1, 1, 8, 8), whole)[0, 0]
    half = unproject(torch.ones(1, 1, 4, 4), shrunk_intrinsics(whole, 2))[0, 0]
    assert torch.allclose(full.unflatten(0, (4, 2)).unflatten(2, (4, 2)).mean((1, 3)), half)


@pytest.mark.parametrize(("scenes", "seed"), [(1, 0), (0, 0), (4, -1), (SEEDS_EACH + 1, 0)])
def test_impossible_sets_are_one_error(model: WorldModel, scenes: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="cannot be evaluated"):
        evaluate(model, scenes=scenes, seed=seed)


@pytest.mark.parametrize("returns", [(12, 24), (16, 40)])
def test_returns_are_whole_laps_of_whole_chunks(model: WorldModel, returns: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="multiples"):
        evaluate(model, scenes=2, returns=returns)


@pytest.mark.parametrize(
    ("argument", "message"),
    [("scnes=4", "did you mean 'scenes'"), ("scenes=many", "scenes is"), ("json=yes", "json is")],
)
def test_command_refuses_what_it_does_not_know(
    argument: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: WorldModel
) -> None:
    monkeypatch.setattr("sanawm_env.evaluation.command.EvalRooms.load", lambda *_, **__: model)
    assert bare.main([argument]) == 2
    assert message in capsys.readouterr().err


def test_command_ends_with_one_json_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: WorldModel
) -> None:
    monkeypatch.setattr("sanawm_env.evaluation.command.EvalRooms.load", lambda *_, **__: model)
    monkeypatch.setattr("sanawm_env.evaluation.command.evaluate", lambda model, **options: {"options": options})
    assert bare.main(["scenes=2", "frames=8", "json=true"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last)["options"] == {"scenes": 2, "seed": 0, "frames": 8, "returns": [128, 256], "sheet": None}
