"""The autoencoder stage in miniature: it runs, resumes and leaves a result that can be read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sanawm_env.errors import BackendError, BundleError, ConfigError
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.config import tiny_config
from sanawm_env.training import run_stage
from sanawm_env.training.__main__ import main
from sanawm_env.training.autoencoder import (
    VALIDATION_SEED,
    AutoencoderStage,
    AutoencoderTraining,
    load_autoencoder,
    save_autoencoder,
)
from sanawm_env.training.frames import FrameBank, FrameSource, Picture, cut, to_pixels
from sanawm_env.training.losses import decibels, reconstruction_loss
from sanawm_env.training.paths import HELD_OUT_SEEDS, PathPlanner
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.stages import SMOKE_AUTOENCODER

PICTURE = Picture(height=16, width=24, intrinsics=(15.0, 15.0, 11.5, 7.5), fps=10.0)
SHORT = SMOKE_AUTOENCODER | {
    "max_steps": 2,
    "clip_frames": 5,
    "source_scenes": 1,
    "bank": 2,
    "statistics_clips": 2,
    "validation_scenes": 1,
    "validation_frames": 4,
    "minutes": 10.0,
}


def source(first_seed: int = 0) -> FrameSource:
    planner = PathPlanner(batch=1, frames=8, fps=PICTURE.fps, first_seed=first_seed, workers=0)
    return FrameSource(PICTURE, planner, 5, torch.device("cpu"))


def settings(out: Path, **changes: object) -> AutoencoderTraining:
    return AutoencoderTraining(**(SHORT | {"out": out} | changes))


def run(out: Path, **changes: object) -> AutoencoderStage:
    return AutoencoderStage(settings(out, **changes), PICTURE, tiny_config().autoencoder, Ranks())


def test_a_run_leaves_a_readable_result_and_is_resumed(tmp_path: Path) -> None:
    first = run(tmp_path)
    metrics = first.train()
    model, provenance = load_autoencoder(tmp_path)
    assert provenance["metrics"] == metrics
    assert provenance["steps"] == 2
    assert provenance["settings"].keys() == {field.name for field in dataclasses.fields(AutoencoderTraining)}
    assert provenance["validation_seeds"][0] == VALIDATION_SEED >= HELD_OUT_SEEDS
    averaged = first.averaged.state_dict()
    assert all(torch.equal(x, averaged[name]) for name, x in model.state_dict().items())

    second = run(tmp_path)
    assert second.run.step == 2
    assert 0 < second.run.clock.spent < first.run.clock.seconds
    for name, x in second.model.state_dict().items():
        assert torch.equal(x, first.model.state_dict()[name])
    second.train()
    assert load_autoencoder(tmp_path)[1]["training_seeds"][1] > provenance["training_seeds"][1]


def test_latents_come_out_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, bank = run(tmp_path), FrameBank(source(), 4)
    everything = to_pixels(bank.clips)
    monkeypatch.setattr(bank, "draw", lambda _: everything)
    for _ in range(2):  # the second time over latents that are normalised already
        stage._measure_latents(bank)
        latents = stage.averaged.encode(everything).transpose(1, 2).transpose(0, 1).flatten(1)
        torch.testing.assert_close(latents.mean(1), torch.zeros(8), atol=1e-4, rtol=0)
        torch.testing.assert_close(latents.std(1), torch.ones(8), atol=0.01, rtol=0)


def test_training_reduces_the_loss(tmp_path: Path) -> None:
    stage = run(tmp_path, lr=3e-3, warmup=1)
    truth = FrameBank(source(), 4).draw(2)
    losses = [float(stage._step(truth)[0]) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="run the stage rooms-autoencoder"):
        load_autoencoder(tmp_path)


def test_saved_and_loaded_are_equal(tmp_path: Path) -> None:
    model = Autoencoder(tiny_config().autoencoder)
    save_autoencoder(tmp_path, model, {"steps": 1})
    loaded, provenance = load_autoencoder(tmp_path)
    assert provenance == {"steps": 1}
    assert loaded.config == model.config
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in loaded.state_dict().items())


def test_bank_replaces_its_oldest_clips() -> None:
    bank = FrameBank(source(), 4)
    before = bank.clips.clone()
    bank.refresh()
    assert bank.clips.shape == (4, 5, 16, 24, 3)
    assert torch.equal(bank.clips[2:], before[2:])
    assert not torch.equal(bank.clips[:2], before[:2])
    drawn = bank.draw(3)
    assert drawn.shape == (3, 3, 5, 16, 24)
    assert drawn.min() >= -1
    assert drawn.max() <= 1


def test_clips_of_a_path_share_one_frame() -> None:
    frames = torch.arange(9).view(1, 9).expand(2, 9)
    assert cut(frames, 5).tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]] * 2


def test_held_out_rooms_are_never_trained_on() -> None:
    with pytest.raises(ValueError, match="held out"):
        source(first_seed=HELD_OUT_SEEDS).clips()


def test_losses_by_hand() -> None:
    truth = torch.zeros(1, 3, 2, 2, 2)
    even = reconstruction_loss(truth + 0.1, truth, square=10.0, edges=5.0)
    assert float(even) == pytest.approx(0.1 + 10 * 0.01)
    uneven = truth.clone()
    uneven[..., 0] = 0.2
    assert float(reconstruction_loss(uneven, truth, square=0.0, edges=5.0)) == pytest.approx(0.1 + 5 * 0.2)
    assert float(decibels(torch.tensor(4e-3))) == pytest.approx(30.0)


def test_unknown_stages_keys_and_devices_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'rooms-denoiser'"):
        run_stage("rooms-denoise", {})
    with pytest.raises(ConfigError, match="did you mean 'batch'"):
        run_stage("rooms-autoencoder", {"out": str(tmp_path), "bach": 3})
    with pytest.raises(ConfigError, match="autoencoder=FOLDER"):
        run_stage("rooms-denoiser", {"out": str(tmp_path)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="device=cpu"):
        run_stage("recipe", {"device": "cuda"})


def test_main_reports_errors_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 1
    assert capsys.readouterr().err.startswith("ConfigError: stage is 'nothing'")
    assert main([]) == 0
