from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from sanawm_env import bundle_choice
from sanawm_env.benchmarks import rooms
from sanawm_env.benchmarks.machine import append_line, machine, percentiles
from sanawm_env.benchmarks.rooms import BenchRooms
from sanawm_env.camera import check_rigid
from sanawm_env.errors import BackendError, ConfigError, StorageError
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.world import WorldModel


def test_a_run_appends_one_line_with_everything(
    tiny_model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundle_choice, "load", lambda *_, **__: tiny_model)
    out = tmp_path / "bench" / "rooms.jsonl"
    config = BenchRooms(
        batch=(1, 2), precision=("fp32",), chunks=2, warmup=1, out=out, renderer_frames=1, renderer_repeats=1
    )
    for _ in range(2):
        report = rooms.run(config)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2 and lines[1] == report
    assert {"time", "commit", "cpu", "torch", "state_bytes", "renderer", "bundle_sha256"} <= set(report)
    assert [(row["batch"], row["decode"]) for row in report["worlds"]] == [(1, True), (1, False), (2, True), (2, False)]
    for row in report["worlds"]:
        assert row["frames_per_second"] > 0 and row["peak_memory_bytes"] > 0
        assert row["chunk_ms"]["p50"] <= row["chunk_ms"]["p99"]
    assert report["renderer"]["frames_per_second"]["pictures"] > 0
    assert capsys.readouterr().out.count("frames/s") == 2 * 5


def test_nothing_is_timed_when_a_batch_is_not_its_worlds(
    tiny_model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_step = rooms.step

    def leaky(model: WorldModel, state: WorldState, poses: torch.Tensor, **how: bool) -> tuple[WorldState, StepOutput]:
        state, output = true_step(model, state, poses, **how)
        return state, dataclasses.replace(output, latents=output.latents + 0.1 * (len(poses) - 1))

    monkeypatch.setattr(rooms, "step", leaky)
    with pytest.raises(BackendError, match="nothing was timed"):
        rooms.check_batch(tiny_model)


def test_the_path_is_a_camera_that_drives_a_circle() -> None:
    path = check_rigid(rooms.turning_path(2, 40, 10.0))
    steps = (path[0, 1:, :3, 3] - path[0, :-1, :3, 3]).norm(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.03), rtol=1e-3, atol=0)
    # It looks where it goes: the middle of two viewing directions is along the step between them.
    ahead = (path[0, :-1, :3, 2] + path[0, 1:, :3, 2]) / 2
    along = ((path[0, 1:, :3, 3] - path[0, :-1, :3, 3]) * ahead).sum(-1) / steps
    assert float(along.min()) > 0.999


@pytest.mark.parametrize("wrong", [{"chunks": 0}, {"warmup": 0}, {"batch": (0,)}, {"batch": ()}])
def test_rejects_settings_that_measure_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected 1 or more"):
        BenchRooms(**wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="only a machine without CUDA can refuse it")
def test_refuses_cuda_where_there_is_none() -> None:
    with pytest.raises(BackendError, match="pass device=cpu"):
        rooms.run(BenchRooms(device="cuda"))


def test_main_prints_the_error_and_returns_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert rooms.main(["chunk=3"]) == 2
    assert "did you mean 'chunks'" in capsys.readouterr().err


def test_percentiles_are_milliseconds() -> None:
    assert percentiles([0.001, 0.002, 0.003])["p50"] == 2.0


def test_machine_names_what_ran() -> None:
    told = machine(torch.device("cpu"))
    assert told["gpu"] is None and told["cpu"] and told["torch"] == torch.__version__


def test_a_line_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot append"):
        append_line(tmp_path / "file" / "a.jsonl", {})
