"""The recipe's page: it is what the lines give, says what was not measured, and lets intervals decide."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sanawm_env import bundle
from sanawm_env.evaluation.ablations import ROWS, Results
from sanawm_env.evaluation.recipe_claims import CLAIMS, NOT_MEASURED, broken, decide
from sanawm_env.evaluation.recipe_report import FORM_ROWS, Measured, Recipe, main, read, run, text
from sanawm_env.evaluation.recipe_stages import folder_bytes, stage_rows, stages, variant_rows
from sanawm_env.world import WorldModel

PAGE = Path(__file__).parents[3] / "examples" / "recipe.md"
MACHINE = {"time": "2026-11-22T00:00:00Z", "commit": "abc", "cpu": "c", "threads": 1, "gpu": None, "torch": "2"}


def clips(shift: float, seed: int = 0) -> list[dict[str, Any]]:
    """Eight rooms, all scores of one moved by `shift` times their spread."""
    draw = np.random.default_rng(seed).normal(size=8)
    keys = {"psnr_8": 30.0, "psnr_32": 28.0, "psnr_64": 25.0, "back": 27.0, "rot_err_first": 1.0}
    return [{"clip": k, "scores": {key: mean + draw[k] + shift for key, mean in keys.items()}} for k in range(8)]


def line(form: str, shift: float, **given: Any) -> dict[str, Any]:
    told = {"form": form, "width": 64, "depth": 2, "seed": 0, "mixture_share": 0.08, "batch": 8, "latents": 17}
    told |= {"budget": {"minutes": 8.0}, "diverged": None, "steps": 100, "minutes": 8.0}
    told |= {"ms_a_step": 12.5, "operations_a_clip": 10**10, "parameters": 10**6, **MACHINE}
    return told | {"clips": clips(shift)} | given


def measured() -> Measured:
    training = [line("gdn", 0.0), line("linear", -1.0), line("softmax", 1.0), line("no_softmax", 0.0)]
    training.append(line("no_key_scale", 0.0, diverged=1, clips=[], budget={"minutes": 1.0, "steps": 20}))
    setup = {"benchmark": "ablations", "bundle": "0" * 64, "name": "rooms", "judging": {"scenes": 8}}
    rows = {"as it is": 0.0, "teacher": 0.2, "distilled": 0.0, "forgetful": -3.0, "fp32": 0.0, "nvfp4": -1.0}
    judged = [{"row": name, "execution": "fp32", "clips": clips(shift), **MACHINE} for name, shift in rows.items()]
    return Measured(training=training, judged=Results(setup=setup, lines=judged))


def test_the_page_is_what_the_lines_give() -> None:
    expected = text(read(Recipe()), "media/recipe.png")
    assert PAGE.read_text(encoding="utf-8") == expected, "run `sanawm eval recipe`: lines or bundles have changed"
    assert (PAGE.parent / "media" / "recipe.png").exists()


def test_rows_that_are_not_measured_are_said() -> None:
    page = text(Measured(training=[], judged=None), "x.png")
    ablations = page[page.index("## Ablations of training") :].splitlines()  # a stage may be called as a row is
    for start in (*(f"| {form}: " for form in FORM_ROWS), *(f"| {row} | " for row in ROWS)):
        assert [NOT_MEASURED in row for row in ablations if row.startswith(start)] == [True], start
    assert page.count(NOT_MEASURED) >= len(FORM_ROWS) + len(ROWS) + len(CLAIMS)


def test_intervals_decide_claims() -> None:
    found = measured()
    page = text(found, "x.png")
    told = [row.split(" | ") for row in page.splitlines() if "less" in row and row.startswith("|")]
    verdicts = {(row[0].removeprefix("| "), row[1]): row[-1].removesuffix(" |") for row in told}

    def verdict(compared: str) -> str:
        return next(verdict for (_, pair), verdict in verdicts.items() if pair.startswith(compared))

    assert verdict("linear less gdn, PSNR, 32") == "holds"
    assert verdict("softmax less gdn, PSNR, 32") == "does not hold: the other way"
    assert verdict("no_softmax less gdn, PSNR, 32") == "not seen"
    assert verdict("no_ucpe less gdn") == NOT_MEASURED
    assert verdict("forgetful less as it is, PSNR, 64") == "holds"
    assert verdict("distilled less teacher, PSNR, 32") == "holds"  # 0.2 dB of the 0.5 that are allowed
    assert verdict("nvfp4 less fp32, PSNR, 64") == "does not hold"
    assert "| keys without a scale break training | no_key_scale | training |  | holds: the loss" in page
    assert "8 minutes; width 64" in page and "The one that ships now is another" in page
    assert broken("l2_keys", [line("l2_keys", 0.0)]) == "does not hold: sound for 100 steps"


def test_a_margin_that_the_interval_crosses_is_not_decided() -> None:
    claim = next(claim for claim in CLAIMS if claim.other == "nvfp4")
    noisy = [{"clip": k, "scores": {"psnr_8": 30.0 + (-1.5 if k % 2 else 0.5)}} for k in range(8)]
    still = [{"clip": k, "scores": {"psnr_8": 30.0}} for k in range(8)]
    verdicts = [one.verdict for one in decide(claim, {"fp32": still, "nvfp4": noisy})]
    assert verdicts == ["not decided", NOT_MEASURED, NOT_MEASURED]
    less = replace(claim, margin=0.1, measures=("psnr_8",))
    worse = [{"clip": k, "scores": {"psnr_8": 29.0}} for k in range(8)]
    assert [one.verdict for one in decide(less, {"fp32": still, "nvfp4": worse})] == ["does not hold"]


def test_page_and_picture_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured()
    assert found.judged is not None
    (tmp_path / "training.json").write_text("".join(json.dumps(one) + "\n" for one in found.training))
    found.judged.write(tmp_path / "judged.json")
    told = {name: tmp_path / f"{name}.json" for name in ("training", "judged")}
    page = Path(run(Recipe(**told, out=tmp_path / "recipe.md")))
    assert page.read_text() == text(found, "media/recipe.png")
    with Image.open(tmp_path / "media" / "recipe.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert main([f"training={tmp_path / 'nothing.json'}", "judged=nowhere.json"]) == 2
    assert "nowhere.json" in capsys.readouterr().err


def test_stages_are_counted_once(tiny_model: WorldModel, tmp_path: Path) -> None:
    first = {"steps": 10, "batch": 4, "devices": 2, "minutes": 3.0, "device": "x"}
    second = {**first, "stage": "teacher", "minutes": 1.5}
    pixels = {"steps": 5, "batch": 1, "devices": 1, "minutes": 2.0}
    bundle.save(tmp_path / "rooms", tiny_model, {"autoencoder": pixels, "denoiser": [first]}, bits=32)
    both = {"autoencoder": pixels, "denoiser": [first, second]}
    bundle.save(tmp_path / "rooms-teacher", tiny_model, both, shared=tmp_path / "rooms")
    rows = stage_rows(tmp_path)
    assert [row[0] for row in rows[1:]] == ["autoencoder", "denoiser", "teacher", *["not made yet"] * 2, "all"]
    assert rows[1][1] == "rooms, rooms-teacher" and rows[-1][6] == "11.0"
    assert [name for name, _ in stages({"source": both, "quantised_from": {}})] == [
        "autoencoder",
        "denoiser",
        "teacher",
    ]
    sizes = {row[0]: row for row in variant_rows(tmp_path)}
    whole = folder_bytes(tmp_path) / 2**20
    assert sizes["all, allowed 40"][-1] == f"{whole:.2f}" and sizes["rooms-refiner"][2] == "not made yet"
    assert [sizes[name][3] for name in ("rooms", "rooms-teacher")] == ["32 bits", "8 bits of difference"]
    assert float(sizes["rooms-teacher"][-1]) < float(sizes["rooms"][-1])  # whose autoencoder it reads
