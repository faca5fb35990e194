"""The drift guard: its fit, and what environments and dataset filters make of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.sanawm_env.generation.jobs import NO_LIMITS, job, record

from sanawm_env.drift_guard import SIGNALS, DriftGuard, fit, open_guard, rows_of, signals
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import BundleError, ConfigError
from sanawm_env.evaluation.drift_guard import EvalDriftGuard, auc, calibrate
from sanawm_env.generation import generate
from sanawm_env.generation.filters import drift, measure
from sanawm_env.truth import RoomsTruthEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel

ACTION = [0.5, 0.3]


def guard(model: WorldModel, *, bias: float = 3.0, **weights: float) -> DriftGuard:
    """Of standard signals and these weights."""
    count = len(SIGNALS)
    own = tuple(weights.get(name, 0.0) for name in SIGNALS)
    return DriftGuard(
        world=model.fingerprint, signals=SIGNALS, mean=(0.0,) * count, scale=(1.0,) * count, weights=own, bias=bias
    )


def test_the_fit_finds_what_decides() -> None:
    rng = np.random.default_rng(0)
    told = rng.normal(size=(4000, len(SIGNALS))) * [1, 2, 3, 1, 1, 1] + 5
    chance = 1 / (1 + np.exp(-(2 * (told[:, 0] - 5) - (told[:, 2] - 5))))
    good = rng.uniform(size=len(told)) < chance
    made = fit(told, good, world="w")
    found = made.confidence(told)
    assert np.abs(found - chance).mean() < 0.02, "confidence is a probability"
    assert auc(found, good) == pytest.approx(auc(chance, good), abs=0.01)
    per_unit = np.array(made.weights) / np.array(made.scale)
    np.testing.assert_allclose(per_unit, [2, 0, -1, 0, 0, 0], atol=0.15)
    assert np.isnan(made.confidence(np.full((1, len(SIGNALS)), np.nan))).all()
    with pytest.raises(ConfigError, match="4000 of 4000 chunks"):
        fit(told, np.ones(4000, bool), world="w")


def test_auc_counts_pairs() -> None:
    good = np.array([False, True, False, True])
    assert auc(np.array([1.0, 2.0, 3.0, 4.0]), good) == 0.75
    assert auc(np.array([1.0, 1.0, 1.0, 1.0]), good) == 0.5
    assert np.isnan(auc(np.ones(2), np.ones(2, bool)))


def test_signals_are_those_of_the_filters_and_zero_without_change() -> None:
    draw = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 8, 32, 40, 3), dtype=torch.uint8, generator=draw)
    first, now = measure(frames, torch.randn(2, 2, 5, 4, 5, generator=draw)), torch.randn(2, 2, 5, 4, 5, generator=draw)
    later = measure(frames // 2, now)
    told = signals(rows_of(first), rows_of(later), [3, 3])
    for row in range(2):
        assert told[row, :2].sum() == pytest.approx(drift(first.latents[row], later.latents[row]))
    np.testing.assert_allclose(told[:, 2:4], -np.log(2), atol=0.02)
    np.testing.assert_allclose(told[:, 5], np.log(4))
    np.testing.assert_allclose(signals(rows_of(first), rows_of(first), [0, 0])[:, [0, 1, 2, 3, 5]], 0, atol=1e-12)


def test_info_carries_the_confidence_and_branches_keep_the_first_chunk(tiny_model: WorldModel) -> None:
    env = SanaWMEnv(tiny_model, guard=guard(tiny_model, shift=-1.0), task="drive")
    env.reset(seed=3)
    first = env.step(ACTION)[4]["confidence"]
    assert first == pytest.approx(1 / (1 + np.exp(-3.0))), "the first chunk has not drifted from itself"
    taken, branch = env.get_state(), env.fork(2)
    second = env.step(ACTION)[4]["confidence"]
    assert 0 < second < first
    # On one batch size or another, pixels and so contrast may round differently; the latents decide here.
    assert branch.step([ACTION, ACTION])[4]["confidence"] == pytest.approx([second, second], abs=1e-6)
    env.set_state(taken)
    assert env.step(ACTION)[4]["confidence"] == second
    plain = SanaWMEnv(tiny_model, task="drive")
    plain.reset(seed=3)
    plain.set_state(taken)
    assert "confidence" not in plain.step(ACTION)[4]
    env.set_state(plain.get_state())
    assert np.isnan(env.step(ACTION)[4]["confidence"]), "nobody has seen the first chunk"


def test_low_confidence_truncates_once(tiny_model: WorldModel) -> None:
    made = guard(tiny_model, bias=2.0, age=-3.0)  # 0.88, then 0.48
    env = SanaWMVectorEnv(2, tiny_model, guard=made, truncate_below=0.5, task="drive")
    env.reset(seed=1)
    _, _, _, truncated, info = env.step([ACTION] * 2)
    assert not truncated.any() and (info["confidence"] > 0.5).all()
    _, _, terminated, truncated, info = env.step([ACTION] * 2)
    assert truncated.all() and not terminated.any() and list(info["truncation_reason"]) == ["drift", "drift"]
    assert list(info["end_index"]) == [7, 7] and list(info["valid_frames"]) == [8, 8]
    _, reward, _, truncated, info = env.step([ACTION] * 2)
    assert truncated.all() and list(info["end_index"]) == [-1, -1] and not reward.any()
    _, info = env.reset(options={"reset_mask": np.array([True, False])})
    _, _, _, truncated, info = env.step([ACTION] * 2)
    assert list(truncated) == [False, True]


def test_a_guard_of_another_world_or_none_is_refused(tiny_model: WorldModel, tmp_path: Path) -> None:
    other = dataclasses.replace(guard(tiny_model), world="a" * 64)
    with pytest.raises(ConfigError, match="eval drift-guard"):
        SanaWMEnv(tiny_model, guard=other)
    with pytest.raises(ConfigError, match="beside a guard"):
        SanaWMEnv(tiny_model, truncate_below=0.5)
    with pytest.raises(ConfigError, match="guard is"):
        RoomsTruthEnv(tiny_model, guard=guard(tiny_model))
    (tmp_path / "drift_guard.json").write_text("{")
    with pytest.raises(BundleError, match="eval drift-guard"):
        open_guard(tmp_path / "drift_guard.json")
    path = tmp_path / "mine.json"
    guard(tiny_model, shift=-1.0).write(path)
    assert open_guard(path) == guard(tiny_model, shift=-1.0)


def test_filters_reject_what_cannot_be_believed(tiny_model: WorldModel, tmp_path: Path) -> None:
    path = tmp_path / "guard.json"
    guard(tiny_model, shift=-1.0).write(path)
    limits: dict[str, Any] = {"guard": str(path)}
    kept = generate(
        job(tmp_path / "kept", filters=dataclasses.replace(NO_LIMITS, confidence=0.0, **limits)), model=tiny_model
    )
    assert kept["stored"] == 5
    found = {number: line["scores"]["confidence"] for number, line in record(tmp_path / "kept").items()}
    middle = sorted(found.values())[2]
    strict = dataclasses.replace(NO_LIMITS, confidence=middle, **limits)
    told = generate(job(tmp_path / "strict", filters=strict), model=tiny_model)
    assert (told["stored"], told["reasons"]) == (3, {"confidence": 2})
    with pytest.raises(ConfigError, match=r"without filters\.confidence"):
        dataclasses.replace(NO_LIMITS, **limits)


def test_calibration_tells_what_it_is_worth(tiny_model: WorldModel) -> None:
    settings = EvalDriftGuard(scenes=4, frames=24, tested=0.5, bad_psnr=0.0)
    with pytest.raises(ConfigError, match="choose another bad_psnr"):
        calibrate(tiny_model, settings)
    # A random world is bad at once; where exactly lies between the chunks' values.
    from sanawm_env.evaluation.drift_guard import judged_chunks

    chunks = judged_chunks(tiny_model, settings)
    assert chunks.signals.shape == (len(chunks.psnr), len(SIGNALS)) and set(chunks.scene) <= set(range(4))
    fitted = chunks.psnr[chunks.scene < 2]
    made = calibrate(tiny_model, dataclasses.replace(settings, bad_psnr=float(np.median(fitted))))
    assert made.world == tiny_model.fingerprint
    assert made.told["chunks"]["fitted"] + made.told["chunks"]["tested"] == len(chunks.psnr)
    assert 0 <= made.told["brier"] <= 1 and set(made.told["auc_alone"]) == set(SIGNALS)
