"""Quantised refiners: which layers, how many bytes, and that they refine as the plain ones up to their rounding."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.refiner_parts import GRID, build, clips, prompts
from torch import Tensor, nn

from sanawm_env.errors import ConfigError
from sanawm_env.kernels.backend import fp8_obstacle
from sanawm_env.model.checkpoint import bytes_of
from sanawm_env.model.quantised import (
    LAYERS,
    LayerList,
    LowPrecision,
    Quantisation,
    exact_names,
    execution,
    layer_names,
    replace_layers,
)
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig, RefinerState
from sanawm_env.quantise import quantised_refiner

ATTENTION = {f"{name}.{part}" for name in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")}
LISTED = ATTENTION | {"ff.net.0.proj", "ff.net.2"}
SIMULATED = Quantisation(precision="fp8", simulated=True)
NVFP4 = Quantisation(precision="nvfp4")
# Of three blocks of the tiny refiner, over the size of what fp32 gives: 0.018 and 0.079 as measured.
BOTH = pytest.mark.parametrize(("chosen", "bound"), [(SIMULATED, 0.05), (NVFP4, 0.15)], ids=["fp8", "nvfp4"])


def released() -> Refiner:
    with torch.device("meta"):
        return Refiner(RefinerConfig(), {}).bfloat16()


def refined(refiner: Refiner, blocks: int = 3) -> tuple[Tensor, RefinerState]:
    """Some blocks of a clip, refined one after another, and the last state."""
    device, dtype = refiner.transformer.proj_in.weight.device, refiner.dtype
    torch.manual_seed(1)
    latents, noise, (text, mask) = clips(1 + 3 * blocks), clips(3 * blocks), prompts()
    latents, noise, text = (x.to(device, dtype) for x in (latents, noise, text))
    mask, found = mask.to(device), []
    state = refiner.open(refiner.empty_state(2, GRID), latents[:, :1], text, mask)
    for block, eps in zip(latents[:, 1:].split(3, dim=1), noise.split(3, dim=1), strict=True):
        one, state = refiner.refine(state, block, eps, text, mask)
        found.append(one)
    return torch.cat(found, dim=1), state


def error(low: Tensor, high: Tensor) -> float:
    return float((low - high).norm() / high.norm())


@pytest.mark.parametrize("layers", ["default", "max"])
def test_the_lists_on_the_released_refiner(layers: LayerList) -> None:
    names = layer_names(released(), layers)
    of_blocks = Counter(name.removeprefix("transformer.transformer_blocks.").split(".", 1)[1] for name in names)
    assert len(names) == 480 and of_blocks == Counter(dict.fromkeys(LISTED, 48))
    assert set(LAYERS[layers]) >= LISTED


# Shares of the bf16 bytes of the 13.0 B parameters of the video half, as counted.
@pytest.mark.parametrize(("precision", "share"), [("fp8", 0.5064), ("nvfp4", 0.2899)])
def test_bytes_of_the_released_refiner(precision: LowPrecision, share: float) -> None:
    refiner = released()
    wide = bytes_of(refiner)
    replace_layers(refiner, Quantisation(precision=precision))
    assert bytes_of(refiner) / wide == pytest.approx(share, abs=1e-4)


@BOTH
def test_it_refines_as_the_plain_one_up_to_its_rounding(chosen: Quantisation, bound: float) -> None:
    plain = build()
    low = quantised_refiner(plain, chosen)
    (wanted, told), (found, kept) = refined(plain), refined(low)
    assert 0 < error(found, wanted) < bound
    before, after = told.tensors(), kept.tensors()
    assert {name: (x.shape, x.dtype) for name, x in after.items()} == {n: (x.shape, x.dtype) for n, x in before.items()}
    assert all(error(after[name], x) < 2 * bound for name, x in before.items() if name != "position")
    latents, noise, (text, mask) = clips(7), clips(6), prompts()
    whole = (refiner.refine_clip(latents, noise, text, mask) for refiner in (low, plain))
    assert error(*whole) < bound


@BOTH
def test_what_is_not_listed_stays_as_it_is(chosen: Quantisation, bound: float) -> None:
    plain = build(gated_attn=True)
    low = quantised_refiner(plain, chosen)
    stored, source = low.state_dict(), plain.state_dict()
    replaced = {f"transformer.transformer_blocks.{index}.{name}.weight" for index in range(2) for name in LISTED}
    assert {name for name, x in source.items() if not torch.equal(stored[name].float(), x)} == replaced
    assert replaced <= exact_names(low) and plain.quantisation is None
    assert isinstance(low.blocks[0].attn1.to_gate_logits, nn.Linear)
    assert bytes_of(low) < bytes_of(plain)


def test_execution_is_told_of_the_refiner_itself() -> None:
    plain = build()
    assert execution(plain) == "fp32"
    assert execution(quantised_refiner(plain, SIMULATED)) == "fp8 simulated (reference)"
    assert execution(quantised_refiner(plain, NVFP4)) == "nvfp4 weight-only (reference)"


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ConfigError, match="the refiner is nvfp4 already"):
        quantised_refiner(quantised_refiner(build(), NVFP4), SIMULATED)
    narrow = build(attention_head_dim=12, cross_attention_dim=24)
    with pytest.raises(ConfigError, match=r"no layer of the list 'default' whose sides are multiples of 16.*'bf16'"):
        quantised_refiner(narrow, NVFP4)


@pytest.mark.gpu
def test_scaled_products_on_a_gpu_refine_as_their_reference() -> None:
    if fp8_obstacle(torch.device("cuda")):
        pytest.skip("this card multiplies no 8-bit floats")
    plain = build().bfloat16().cuda()
    real = quantised_refiner(plain, Quantisation(precision="fp8"))
    assert execution(real) == "fp8 scaled matmul"
    (found, _), (wanted, _), (wide, _) = (
        refined(refiner) for refiner in (real, quantised_refiner(plain, SIMULATED), plain)
    )
    # Both round to bf16, at other places; what 8 bits cost is no more than on the CPU.
    assert error(found.float(), wanted.float()) < 0.03
    assert error(found.float(), wide.float()) < 0.06
