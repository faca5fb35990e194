from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.datasets.made_up import INFO, add

from sanawm_env import cli
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.writer import EpisodeWriter


@pytest.fixture
def stores(tmp_path: Path) -> list[str]:
    for name in ("a", "b"):
        with EpisodeWriter(tmp_path / f"{name}.zarr", INFO, durable=False) as writer:
            add(writer, ord(name))
    return [str(tmp_path / f"{name}.zarr") for name in ("a", "b")]


def test_verify_says_what_is_damaged_with_status_1(stores: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", *stores]) == 0
    assert capsys.readouterr().out.count(": sound; 1 episodes") == 2
    (Path(stores[1]) / "data/frames/c.0.0.0.0").unlink()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", "--json", *stores])
    assert stopped.value.code == 1
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(report["problems"]) for report in reports] == [0, 1]
    with pytest.raises(SystemExit):
        cli.main(["verify", stores[1]])
    assert "data/frames: file 0 is missing; it belongs to episode 0" in capsys.readouterr().out
    assert cli.main(["verify", stores[0] + ".none"]) == 2


def test_repair_says_what_it_removed(stores: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (Path(stores[0]) / "data/frames/c.77.0.0.0").write_bytes(b"0" * 2_000_000)
    assert cli.main(["verify", stores[0]]) == 0
    assert "1 files (2.0 MB) belong to no episode; `sanawm repair` removes them" in capsys.readouterr().out
    assert cli.main(["repair", *stores]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("removed 1 files (2.0 MB)") and printed[1].endswith("nothing to remove")
    with EpisodeWriter(stores[0]):
        assert cli.main(["repair", stores[0]]) == 2
    assert "has a writer already" in capsys.readouterr().err


def test_merge(stores: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "all.zarr")
    assert cli.main(["merge", *stores, "--out", target]) == 0
    assert "2 episodes added" in capsys.readouterr().out
    assert cli.main(["merge", *stores, "--out", target]) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main(["merge", *stores, "--out", target, "--resume"]) == 0
    assert len(EpisodeStore(target)) == 2


def test_export_and_import(stores: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, back = str(tmp_path / "film"), str(tmp_path / "back.zarr")
    assert cli.main(["export", stores[0], "--format", "mp4", "--out", film]) == 0
    assert capsys.readouterr().out == f"{film}: 1 episodes, 7 frames\n"
    assert cli.main(["export", stores[0], "--format", "mp4", "--out", film]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["export", stores[0], "--format", "avi", "--out", film]) == 2
    assert "format is 'avi'" in capsys.readouterr().err
    for told in ("1 episodes added", "0 episodes added; 1 were there already"):
        assert cli.main(["import", film, "--format", "mp4", "--out", back]) == 0
        assert capsys.readouterr().out == f"{back}: {told}\n"
    (tmp_path / "film/sanawm.json").unlink()
    name = next((tmp_path / "film").glob("*.json"))
    told = json.loads(name.read_text())
    name.write_text(json.dumps({key: told[key] for key in ("poses", "intrinsics", "actions")}))
    other = ["import", film, "--format", "mp4", "--out", str(tmp_path / "other.zarr")]
    assert cli.main(other) == 2 and "--fps" in capsys.readouterr().err
    assert cli.main([*other, "--fps", "5", "--licence", "MIT", "--licence", "CC0-1.0", "--synthetic"]) == 0
    read = EpisodeStore(tmp_path / "other.zarr")
    assert read.info.fps == 5 and read.describe(0)["licences"] == ["MIT", "CC0-1.0"] and read.describe(0)["synthetic"]
