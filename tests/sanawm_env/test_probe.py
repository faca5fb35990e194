"""The camera probe: models that follow the camera pass, those that ignore it or hold no numbers are refused."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from sanawm_env import load
from sanawm_env.errors import BundleError
from sanawm_env.model.config import tiny_config
from sanawm_env.probe import LEAST_CHANGE, check_camera
from sanawm_env.world import WorldModel


def changed(model: WorldModel, **weights: float) -> WorldModel:
    """The model with the weights whose names hold one of these words set to a value."""
    denoiser = copy.deepcopy(model.denoiser)
    for name, x in denoiser.state_dict().items():
        for word, value in weights.items():
            if word in name:
                x.fill_(value)
    return WorldModel(model.config, denoiser, model.autoencoder)


def test_models_with_a_camera_pass(tiny_model: WorldModel) -> None:
    assert check_camera(tiny_model) > LEAST_CHANGE
    text = dataclasses.replace(tiny_config().denoiser, caption_channels=32, caption_length=6, cross_heads=2)
    assert check_camera(WorldModel.random(dataclasses.replace(tiny_config(), denoiser=text))) > LEAST_CHANGE


def test_the_shipped_world_follows_its_camera() -> None:
    assert check_camera(load("rooms", device="cpu")) > 0.01


def test_a_model_that_ignores_the_camera_is_refused(tiny_model: WorldModel) -> None:
    assert check_camera(changed(tiny_model, plucker_proj=0.0)) > LEAST_CHANGE  # rays still reach the attention
    with pytest.raises(BundleError, match="ignore the camera"):
        check_camera(changed(tiny_model, plucker_proj=0.0, out_proj_cam=0.0))


def test_weights_without_numbers_are_refused(tiny_model: WorldModel) -> None:
    with pytest.raises(BundleError, match="NaN or infinity"):
        check_camera(changed(tiny_model, x_embedder=float("nan")))
