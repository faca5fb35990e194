"""What a refiner refuses: configurations, transformers and inputs that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.refiner_parts import GRID, TINY, build, clips, prompts

from sanawm_env.errors import ConfigError, StateError
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return build()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kv_max_frames": 3}, "kv_max_frames is 3, allowed >= 4"),
        ({"kv_max_frames": 6, "block_latents": 6}, "kv_max_frames is 6, allowed >= 7"),
        ({"block_latents": 0}, "block_latents is 0"),
        ({"sink": 0}, "sink is 0"),
        ({"sigmas": (0.7, 0.9, 0.0)}, "sigmas are"),
        ({"sigmas": (0.9, 0.7)}, "sigmas are"),
        ({"sigmas": (0.0,)}, "sigmas are"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"spatial_stride": 0}, "spatial_stride is 0"),
    ],
)
def test_wrong_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RefinerConfig(**changes)


def test_wrong_transformers_are_refused(refiner: Refiner) -> None:
    with pytest.raises(ConfigError, match="transformer is a Linear"):
        Refiner(RefinerConfig(), torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="cross_attn_mod is True"):
        Refiner(RefinerConfig(), TINY | {"cross_attn_mod": True})
    with pytest.raises(ConfigError, match="norm_eps is 1e-05, the refiner needs 1e-06"):
        Refiner(RefinerConfig(), TINY | {"norm_eps": 1e-5})
    with pytest.raises(ConfigError, match="patch_size is 2"):
        Refiner(RefinerConfig(), TINY | {"patch_size": 2})
    with pytest.raises(ConfigError, match="vae_scale_factors"):
        Refiner(RefinerConfig(spatial_stride=16), refiner.transformer)


def test_wrong_inputs_are_refused(refiner: Refiner) -> None:
    latents, noise, (text, mask) = clips(4), clips(3), prompts()
    empty = refiner.empty_state(2, GRID)
    opened = refiner.open(empty, latents[:, :1], text, mask)
    block = latents[:, 1:]
    with pytest.raises(StateError, match="begin each with `open`"):
        refiner.refine(empty, block, noise, text, mask)
    with pytest.raises(StateError, match="take `empty_state`"):
        refiner.open(opened, latents[:, :1], text, mask)
    with pytest.raises(StateError, match="first: shape"):
        refiner.open(empty, latents[:, 0], text, mask)
    with pytest.raises(StateError, match="latents: shape"):
        refiner.refine(opened, block[:, :2], noise, text, mask)
    with pytest.raises(StateError, match="latents: shape"):
        refiner.refine(opened, block.transpose(3, 4), noise, text, mask)
    with pytest.raises(StateError, match="noise: shape"):
        refiner.refine(opened, block, noise[:1], text, mask)
    with pytest.raises(StateError, match="text has shape"):
        refiner.refine(opened, block, noise, text[:1], mask)
    with pytest.raises(StateError, match="text_mask has shape"):
        refiner.refine(opened, block, noise, text, mask[:, :2])
    with pytest.raises(StateError, match="the state has 2 layers"):
        Refiner(RefinerConfig(kv_max_frames=8), refiner.transformer).refine(opened, block, noise, text, mask)
    with pytest.raises(StateError, match="with T > 1"):
        refiner.refine_clip(latents[:, :1], noise[:, :0], text, mask)
    with pytest.raises(StateError, match="noise: shape"):
        refiner.refine_clip(latents, latents, text, mask)
