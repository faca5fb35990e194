"""`sanawm eval world` on tiny random worlds: what it writes, that it goes on, and what it says of two worlds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.sanawm_env.evaluation.test_world_clips import benchmark

from sanawm_env.errors import ConfigError, StorageError
from sanawm_env.evaluation import world
from sanawm_env.evaluation.rollout import Dream
from sanawm_env.evaluation.world import EvalWorld, Judged, Results, main, read, run
from sanawm_env.evaluation.world_figures import MEASURES, difference, mean_of
from sanawm_env.evaluation.world_report import summary, write_page
from sanawm_env.model.config import tiny_config
from sanawm_env.world import WorldModel

BY_KEY = {measure.key: measure for measure in MEASURES}


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.random(tiny_config())


@pytest.fixture(scope="module")
def judged(model: WorldModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvalWorld, Results]:
    out = tmp_path_factory.mktemp("world") / "world.jsonl"
    config = EvalWorld(scenes=2, frames=16, pose_every=16, device="cpu", out=out)
    return config, run(config, {"one": model, "same": model})


def test_lines_hold_what_was_measured(judged: tuple[EvalWorld, Results]) -> None:
    config, results = judged
    assert read(config.out).lines == results.lines and results.models == ["one", "same"]
    assert [line["template"] for line in results.lines] == ["forward", "backward"] * 2
    for line in results.lines:
        scores = line["scores"]
        assert 0 < scores["visible_share"] <= 1 and 5 < scores["psnr"] < 60 and scores["pose_frames"] >= 1
        assert scores["lpips"] == "not available" or scores["lpips"] >= 0
        assert line["cost"]["made"] == 32 and line["cost"]["state_bytes"] > 0
    with Image.open(config.out.with_name("world-one-simple.png")) as sheet:
        assert sheet.width > 3 * 40


def test_equal_worlds_do_not_differ(judged: tuple[EvalWorld, Results]) -> None:
    lines = judged[1].lines
    for measure in MEASURES:
        found = difference(lines[:2], lines[2:], measure)
        assert not found.verdict and (found.mean.count == 0 or found.mean.value == 0)
    assert "better" not in summary(judged[1]) and "worse" not in summary(judged[1])


def test_a_run_goes_on_where_it_was(
    judged: tuple[EvalWorld, Results], model: WorldModel, monkeypatch: Any, tmp_path: Path
) -> None:
    config, results = judged
    out = tmp_path / "cut.jsonl"
    Results(setup=results.setup, lines=results.lines[:1]).write(out)
    again = run(replace(config, out=out), {"one": model})
    kept = {key: results.lines[1][key] for key in ("clip", "name", "scores")}
    assert {key: again.lines[1][key] for key in kept} == kept, "a clip does not depend on its batch"
    monkeypatch.setattr(world, "dream", None)
    assert run(replace(config, out=out), {"one": model}).lines == again.lines


def test_other_worlds_and_setups_are_kept_apart(judged: tuple[EvalWorld, Results], model: WorldModel) -> None:
    config, _ = judged
    other = WorldModel(model.config, model.denoiser, model.autoencoder, fingerprint="f" * 64)
    with pytest.raises(ConfigError, match="another world named 'one'"):
        run(config, {"one": other})
    with pytest.raises(ConfigError, match="'frames': 32"):
        run(replace(config, frames=32), {"one": model})
    with pytest.raises(StorageError, match="no file of"):
        read(Path(__file__))


def test_a_perfect_world_is_found_perfect(model: WorldModel, monkeypatch: Any, tmp_path: Path) -> None:
    """The ray-caster in the place of the model, once along the path asked for and once at half its speed."""

    def oracle(pace: float) -> Any:
        def dreamt(model: WorldModel, pictures: Any, seeds: Any, poses: torch.Tensor, *_: Any, **__: Any) -> Dream:
            numbers = (pace * torch.arange(poses.shape[1])).long()
            rooms = world.rooms_clips(
                model.config, "hard", [0], 0, poses.shape[1] - 1, model.device, world.Caps()
            ).rooms
            assert rooms is not None
            return Dream(frames=rooms.pictures(poses[:, numbers]), latents=torch.zeros(1), made=16, seconds=1.0)

        return dreamt

    found = {}
    config = EvalWorld(scenes=1, split="hard", frames=16, pose_every=8, device="cpu")
    for name, pace in (("exact", 1.0), ("half", 0.5)):
        monkeypatch.setattr(world, "dream", oracle(pace))
        found[name] = run(replace(config, out=tmp_path / f"{name}.jsonl"), {name: model}).lines[0]["scores"]
    assert found["exact"]["psnr"] > 97 and found["exact"]["rot_err_first"] < 0.01 > found["exact"]["trans_err"]
    assert found["half"]["trans_err_first"] > 0.02 and found["half"]["psnr"] < 40


def lines(scores: np.ndarray, key: str) -> list[dict[str, Any]]:
    return [{"clip": k, "scores": {key: float(x)}} for k, x in enumerate(scores)]


def test_a_planted_difference_is_found_and_chance_is_not() -> None:
    rng = np.random.default_rng(0)
    base, noise = rng.normal(30, 3, size=20), rng.normal(0, 0.2, size=20)
    psnr, error = BY_KEY["psnr"], BY_KEY["rot_err"]
    better = difference(lines(base, "psnr"), lines(base + 0.3 + noise, "psnr"), psnr)
    assert better.verdict == "better" and better.mean.value == pytest.approx(0.3 + noise.mean())
    assert difference(lines(base, "rot_err"), lines(base + 0.3 + noise, "rot_err"), error).verdict == "worse"
    assert difference(lines(base, "psnr"), lines(base + noise - noise.mean(), "psnr"), psnr).verdict == ""
    # Sharper than the truth is no better than blurred: what counts is how far from 1 it is.
    sharp = BY_KEY["sharpness"]
    assert (
        difference(lines(np.full(9, 0.9), "sharpness"), lines(np.full(9, 1.3), "sharpness"), sharp).verdict == "worse"
    )
    assert difference(lines(base[:3], "psnr"), lines(base, "psnr"), psnr).mean.count == 3
    share = mean_of(lines(np.array([0.01, 0.03]), "trans_share_first"), BY_KEY["trans_share_first"])
    assert share.value == pytest.approx(2)


def test_scenes_of_the_benchmark_are_judged_without_truth(model: WorldModel, tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "bench")
    config = EvalWorld(scenes=2, frames=16, benchmark=folder, poses=None, device="cpu", out=tmp_path / "b.jsonl")
    results = run(config, {"one": model})
    assert [line["name"] for line in results.lines] == ["indoor_001", "game_style_002"]
    scores = results.lines[0]["scores"]
    assert scores["rot_err"] is None and scores["revisit"] > 0 and "psnr" not in scores and scores["flicker"] >= 0
    with pytest.raises(ConfigError, match="has 2 of split"):
        run(replace(config, scenes=3, out=tmp_path / "c.jsonl"), {"one": model})
    with pytest.raises(ConfigError, match="needs rooms"):
        replace(config, poses="render")


def test_page_and_plot_are_written(judged: tuple[EvalWorld, Results], tmp_path: Path) -> None:
    page = write_page(judged[1], tmp_path / "evaluation.md")
    text = page.read_text(encoding="utf-8")
    assert "| PSNR, visible pixels, dB" in text and "same less one" in text and "media/evaluation.png" in text
    with Image.open(tmp_path / "media" / "evaluation.png") as picture:
        assert picture.width > 1000


def test_the_bare_command_line(judged: tuple[EvalWorld, Results], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"out={judged[0].out}", "report=true"]) == 0
    assert "PSNR, visible pixels, dB" in capsys.readouterr().out
    assert main(["splitt=hard"]) == 2 and "split" in capsys.readouterr().err
    assert json.loads(judged[0].out.read_text().splitlines()[0])["benchmark"] == "world"
    assert EvalWorld().models == {"rooms": Judged()}
