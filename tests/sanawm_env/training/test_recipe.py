"""Every stage in miniature, in the order of the recipe: stopped, gone on with, and shipped as the package has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sanawm_env import bundle
from sanawm_env.errors import BundleError, ConfigError
from sanawm_env.training import run_stage, stages
from sanawm_env.training.recipe import AVERAGE, DONE, MINUTES, ROOMS, Recipe, mixed
from sanawm_env.world import WorldModel


def told(folder: Path, name: str = "bundle") -> dict[str, Any]:
    described: dict[str, Any] = json.loads((folder / name / "bundle.json").read_text())
    return described


@pytest.mark.slow
def test_every_stage_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, asked = tmp_path / "recipe", {"smoke": True, "out": str(tmp_path / "recipe"), "device": "cpu"}
    asked["starts"] = {"teacher": "bidirectional", "distill": "ode", "real": "bidirectional"}
    asked["distilled"] = {"distill": 1.0}

    def stopped(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setitem(stages.STAGES, "rooms-ode", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_stage("recipe", asked)
    monkeypatch.undo()
    before = {name: (out / name / DONE).stat().st_mtime_ns for name in ("autoencoder", "denoiser", "teacher")}
    assert not (out / "ode" / DONE).exists() and not (out / "bundles").exists()
    figures = run_stage("recipe", asked)
    assert {name: (out / name / DONE).stat().st_mtime_ns for name in before} == before  # those were not run again
    assert list(figures) == [*MINUTES, "bundles"]

    for name in ("bidirectional", "teacher", "ode", "distill"):
        model = bundle.load(figures[name]["bundle"], device="cpu", precision="fp32")
        assert model.config.variant == (name if name in ("bidirectional", "teacher") else "distilled")
        assert np.isfinite(list(figures[name].values())[2:]).all()
    _check_bundles(out / "bundles", figures["bundles"])
    _check_going_on(out, figures["denoiser"]["bundle"])
    # Another schedule is another run, and too large a result is refused.
    with pytest.raises(ConfigError, match="autoencoder was done with other seed"):
        run_stage("recipe", asked | {"settings": {"autoencoder": {"seed": 3}}})
    with pytest.raises(BundleError, match="set fewer bits"):
        run_stage("recipe", asked | {"limit": 0.1})


def _check_bundles(folder: Path, sizes: dict[str, float]) -> None:
    """They open as variants of one another, and say how they were made."""
    assert set(sizes) == {"rooms", "rooms-distilled", "rooms-teacher", "rooms-refiner"} and sum(sizes.values()) < 2
    assert bundle.load(folder / "rooms", device="cpu", precision="fp32", refiner=True).refiner is not None
    for variant in ("teacher", "distilled"):
        model = bundle.load(folder / "rooms", device="cpu", precision="fp32", variant=variant)
        assert (model.config.variant, model.config.name) == (variant, f"tiny-{variant}")
        assert not list((folder / f"rooms-{variant}").glob("autoencoder-*"))
    made = [one["stage"] for one in told(folder, "rooms-distilled")["provenance"]["denoiser"]]
    assert made == ["denoiser", "bidirectional", "teacher", "ode", "distill"]
    # What ships by default is an average, and came from all of these.
    runs = told(folder, "rooms")["provenance"]["denoiser"]
    before = ["denoiser", "denoiser", "bidirectional", "teacher", "ode", "distill", "average"]
    assert [one["stage"] for one in runs] == [*before, "denoiser", "denoiser", "average"]
    assert [one["shares"] for one in runs if one["stage"] == "average"] == [AVERAGE, ROOMS]
    assert told(folder, "rooms")["provenance"]["autoencoder"]["stage"] == "autoencoder"


def _check_going_on(out: Path, start: str) -> None:
    """A bundle is where another run may start; it carries on what is known of the weights."""
    asked = {"start": start, "out": str(out / "on"), "smoke": True, "device": "cpu"}
    first = told(out / "denoiser")
    again = run_stage("rooms-denoiser", asked | {"first_seed": 500})
    second = json.loads((Path(again["bundle"]) / "bundle.json").read_text())
    assert second["provenance"]["denoiser"][0] == first["provenance"]["denoiser"][0]
    assert second["provenance"]["denoiser"][1]["training_seeds"][0] == 500
    assert second["provenance"]["autoencoder"] == first["provenance"]["autoencoder"]
    assert second["files"] != first["files"]
    with pytest.raises(ConfigError, match="start and autoencoder"):
        run_stage("rooms-denoiser", asked | {"autoencoder": str(out / "autoencoder")})


def test_minutes_are_those_of_the_whole_stage() -> None:
    given = Recipe(minutes={"ode": 2.0}, settings={"ode": {"seed": 4}}).given
    assert given("ode")["minutes"] == given("ode")["total_minutes"] == 2.0 and given("ode")["seed"] == 4
    assert given("denoiser")["minutes"] == MINUTES["denoiser"] and "start" not in given("denoiser")
    assert Path(given("refiner")["start"]).parts[-2:] == ("bundles", "rooms")


def test_stages_that_nothing_comes_from_are_left_out() -> None:
    before = ["autoencoder", "denoiser", "rolled", "teacher", "distill"]
    assert Recipe().stages == [*before, "average", "again", "settled", "refiner"]
    assert Recipe(rooms=AVERAGE, distilled=AVERAGE, teacher={"teacher": 1.0}).stages == [*before, "refiner"]
    student = Recipe().given("distill")
    assert student["real"] is None and student["matching"] == 0 < student["adversary"]
    paper = Recipe(starts={"teacher": "bidirectional", "distill": "ode", "real": "bidirectional"})
    assert paper.stages == list(MINUTES) and "matching" not in paper.given("distill")
    found = [Path(paper.given("distill")[name]).parts[-2] for name in ("start", "real")]
    assert found == ["ode", "bidirectional"] and Path(paper.given("ode")["start"]).parts[-2] == "teacher"
    plain = {"denoiser": 1.0}
    assert Recipe(rooms=plain, distilled=plain, teacher={"teacher": 1.0}).stages == [
        *("autoencoder", "denoiser", "teacher", "refiner")
    ]


def test_bundles_are_mixed_by_their_shares(tmp_path: Path, tiny_model: WorldModel) -> None:
    one = {"stage": "denoiser", "steps": 3}
    folders = []
    for seed in range(2):
        made = WorldModel(
            tiny_model.config, WorldModel.random(tiny_model.config, seed=seed).denoiser, tiny_model.autoencoder
        )
        told = {"denoiser": [one, *[{"stage": "distill", "steps": 4}] * seed]}
        folders.append(bundle.save(tmp_path / f"stage{seed}" / "bundle", made, told, bits=32))
    first, second = (bundle.load(x, device="cpu", precision="fp32").denoiser.state_dict() for x in folders)
    model, provenance = mixed(dict(zip(folders, (0.75, 0.25), strict=True)))
    for name, x in model.denoiser.state_dict().items():
        torch.testing.assert_close(x, 0.75 * first[name] + 0.25 * second[name])
    averaged = {"stage": "average", "shares": {"stage0": 0.75, "stage1": 0.25}}
    assert provenance["denoiser"] == [one, {"stage": "distill", "steps": 4}, averaged]


@pytest.mark.parametrize(
    "wrong",
    [
        {"minutes": {"techer": 1.0}},
        {"rooms": {"teacher": 1.0}},
        {"average": {"again": 1.0}},
        {"minutes": {"average": 1.0}},
        {"distilled": {"denoiser": 0.5}},
        {"teacher": {"bidirectional": 1.0}},
        {"bits": {"room": 8}},
        {"starts": {"ode": "distill"}},
        {"starts": {"real": "autoencoder"}},
    ],
)
def test_unknown_stages_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Recipe(**wrong)
