"""Moments of what layers multiply are those of the rows they were given, and watching ends."""

from __future__ import annotations

import pytest
import torch

from sanawm_env.errors import ConfigError
from sanawm_env.model.calibration import input_moments
from sanawm_env.model.config import tiny_config
from sanawm_env.model.quantised import Quantisation, layer_names
from sanawm_env.quantise import Quantize, quantised
from sanawm_env.world import WorldModel


def test_moments_are_sums_over_all_rows_that_a_layer_was_given() -> None:
    denoiser = WorldModel.random(tiny_config()).denoiser
    layer = denoiser.blocks[0].plucker_proj
    rows = torch.randn(2, 3, layer.in_features)

    def work() -> None:
        layer(rows)
        layer(rows[:1])

    moments = input_moments(denoiser, ["blocks.0.plucker_proj"], work)
    flat = torch.cat([rows.flatten(0, 1), rows[0]])
    torch.testing.assert_close(moments["blocks.0.plucker_proj"], flat.T @ flat)
    before = moments["blocks.0.plucker_proj"].clone()
    work()
    assert torch.equal(moments["blocks.0.plucker_proj"], before)


def test_a_calibrated_denoiser_has_the_same_layers_and_other_codes() -> None:
    model = WorldModel.random(tiny_config())
    chosen = Quantisation(precision="nvfp4", layers="default")
    plain, calibrated = quantised(model, chosen).denoiser, quantised(model, chosen, calibrate=1).denoiser
    assert layer_names(plain, "default") == layer_names(calibrated, "default")
    found, other = plain.state_dict(), calibrated.state_dict()
    assert found.keys() == other.keys()
    assert any(not torch.equal(found[name].float(), other[name].float()) for name in found)
    with pytest.raises(ConfigError, match="calibrate is -1"):
        Quantize(bundle="rooms", out="x", calibrate=-1)  # type: ignore[arg-type]
