"""`sanawm eval ablations` on a tiny bundle: rows, resuming, and that its scores are those of the other evaluations."""

from __future__ import annotations

import pytest
import torch

from sanawm_env import bundle
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation import ablations
from sanawm_env.evaluation.ablations import EvalAblations, Results, command, main, run
from sanawm_env.evaluation.form_scores import MEASURES, Judging, judge
from sanawm_env.evaluation.rooms import evaluate
from sanawm_env.evaluation.world_figures import difference, mean_of
from sanawm_env.placement import find_dtype
from sanawm_env.world import WorldModel

# The precision that this machine does not choose by itself.
OTHER = "fp32" if find_dtype("auto", torch.device("cpu")) == torch.bfloat16 else "bf16"
FEW = Judging(scenes=2, frames=40, back=16, back_scenes=2, pose_every=0)


@pytest.fixture(scope="module")
def config(tiny_model: WorldModel, tmp_path_factory: pytest.TempPathFactory) -> EvalAblations:
    folder = tmp_path_factory.mktemp("ablations")
    tiny = str(bundle.save(folder / "tiny", tiny_model, {}))
    rows = ("as it is", "steps 4", "forgetful", "no_ucpe", "window 2", "window 5", OTHER, "teacher")
    return EvalAblations(bundle=tiny, rows=rows, judging=FEW, device="cpu", out=folder / "lines.jsonl")


@pytest.fixture(scope="module")
def results(config: EvalAblations) -> Results:
    return run(config)


def test_each_row_changes_one_thing(results: Results, config: EvalAblations) -> None:
    rows = {line["row"]: line["clips"] for line in results.lines}
    assert list(rows) == [name for name in config.rows or () if name != "teacher"]  # which this bundle does not have
    seen = next(measure for measure in MEASURES if measure.key == "psnr_32")
    assert rows["window 2"] == rows["as it is"]
    for name in ("steps 4", "no_ucpe", "window 5", OTHER):
        assert difference(rows["as it is"], rows[name], seen).mean.value != 0
    # The state is lost behind frame 32: what comes before is as it was.
    assert (
        difference(rows["as it is"], rows["forgetful"], seen).mean.value == 0 and rows["forgetful"] != rows["as it is"]
    )


def test_rows_that_are_there_are_not_made_again(
    results: Results, config: EvalAblations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(ablations, "judge", never)
    assert run(config).lines == results.lines
    assert "steps 4" in command(config)
    with pytest.raises(ConfigError, match="choose another out="):
        run(EvalAblations(**{**vars(config), "judging": Judging(scenes=3)}))


def test_scores_are_those_of_eval_rooms(tiny_model: WorldModel) -> None:
    told = evaluate(tiny_model, scenes=2, seed=7, device="cpu", frames=40, returns=(16,))
    lines = judge(tiny_model, FEW)
    found = {measure.key: mean_of(lines, measure).value for measure in MEASURES}
    assert found["psnr_8"] == pytest.approx(told["psnr_visible"]["8"], abs=1e-3)
    assert found["psnr_32"] == pytest.approx(told["psnr_visible"]["32"], abs=1e-3)
    assert found["back"] == pytest.approx(told["there_and_back_db"]["16"], abs=1e-3)


def test_cameras_are_found_where_asked(tiny_model: WorldModel) -> None:
    lines = judge(tiny_model, Judging(scenes=2, frames=16, back=0, pose_every=8))
    assert all({"rot_err_first", "trans_err_first"} <= set(line["scores"]) for line in lines)
    assert all("back" not in line["scores"] for line in lines)


def test_what_cannot_be_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['rows=["steps 3"]']) == 2
    assert "steps 3" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="even number"):
        Judging(back=3)
