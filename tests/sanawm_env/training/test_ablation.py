"""The stage `ablation` on a tiny world: its line, its budget, and what it does where a form breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sanawm_env import bundle
from sanawm_env.benchmarks.machine import read_lines
from sanawm_env.errors import ConfigError
from sanawm_env.training import run_stage
from sanawm_env.training.ablation import AblationStage, AblationTraining
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.stages import SMOKE_CLIPS, SMOKE_FORM, _read
from sanawm_env.world import WorldModel


@pytest.fixture(scope="module")
def tiny(tiny_model: WorldModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.save(tmp_path_factory.mktemp("bundles") / "tiny", tiny_model, {})


def ran(tiny: Path, folder: Path, **given: Any) -> dict[str, Any]:
    told = {"device": "cpu", "smoke": True, "start": str(tiny), "lines": str(folder / "lines.jsonl"), "max_steps": None}
    return run_stage("ablation", told | {"out": str(folder / given.get("form", "gdn")), "minutes": 1.0} | given)


def test_a_form_is_trained_judged_and_told_in_a_line(tiny: Path, tmp_path: Path) -> None:
    told = ran(tiny, tmp_path, form="linear+no_sink", steps=12)
    assert told["steps"] == 12 and told["diverged"] is None and told["ms_a_step"] > 0
    (line,) = read_lines(tmp_path / "lines.jsonl")
    assert line["form"] == "linear+no_sink" and line["operations_a_clip"] > line["parameters"] > 1000
    assert [clip["clip"] for clip in line["clips"]] == [0, 1]
    assert all(5 < clip["scores"][name] < 60 for clip in line["clips"] for name in ("psnr_8", "back"))
    assert {name: x for name, x in told.items() if name in line} == {n: x for n, x in line.items() if n != "clips"}
    assert not (tmp_path / "linear+no_sink" / "bundle").exists()
    # What is there is not trained again; another seed is another run.
    assert ran(tiny, tmp_path, form="linear+no_sink", steps=12) == told
    ran(tiny, tmp_path, form="linear+no_sink", steps=2, seed=1, out=str(tmp_path / "other"))
    assert [line["seed"] for line in read_lines(tmp_path / "lines.jsonl")] == [0, 1]


def test_forms_of_equal_compute_take_other_numbers_of_steps(tiny: Path, tmp_path: Path) -> None:
    one = ran(tiny, tmp_path, steps=1)
    budget = {"operations": SMOKE_CLIPS["batch"] * 8 * one["operations_a_clip"]}
    whole, less = (ran(tiny, tmp_path, form=form, **budget) for form in ("gdn", "no_ucpe+no_convolution"))
    assert whole["steps"] == 8 and whole["budget"] == less["budget"]
    assert less["steps"] == round(8 * whole["operations_a_clip"] / less["operations_a_clip"]) > 8


def test_a_run_that_was_cut_off_goes_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("sanawm_env.training.ablation.judge", cut)
    with pytest.raises(KeyboardInterrupt):
        ran(tiny, tmp_path, steps=3)
    monkeypatch.undo()
    assert not read_lines(tmp_path / "lines.jsonl")
    told = ran(tiny, tmp_path, steps=3)
    assert told["steps"] == 3 and told["psnr_8"] > 5


def test_a_form_that_breaks_says_at_which_step(tiny: Path, tmp_path: Path) -> None:
    given = {"out": tmp_path, "start": None, "lines": tmp_path / "lines.jsonl", "max_steps": 40}
    settings = _read(AblationTraining, {k: x for k, x in given.items() if k != "start"}, SMOKE_CLIPS | SMOKE_FORM)
    ranks = Ranks()
    ranks.device = torch.device("cpu")
    stage = AblationStage(settings, bundle.load(tiny, device="cpu", precision="fp32"), ranks)
    with torch.no_grad():
        stage.denoiser.final_layer.linear.bias.fill_(torch.nan)
    line = stage.measured()
    assert line["diverged"] == 1 and line["steps"] == 10 and line["clips"] == []
    assert json.loads((tmp_path / "lines.jsonl").read_text()) == line


def test_settings_are_checked(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="form is 'softmx'; did you mean 'softmax'"):
        ran(tiny, tmp_path, form="softmx")
    with pytest.raises(ConfigError, match="steps is 0"):
        ran(tiny, tmp_path, steps=0)
    with pytest.raises(ConfigError, match="operations is 0"):
        ran(tiny, tmp_path, operations=0.0)
