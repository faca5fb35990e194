"""Quantised denoisers: which layers, how many bytes, and that they are the plain ones up to their rounding."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor

from sanawm_env.errors import BackendError, BundleError, ConfigError
from sanawm_env.kernels import fp8, nvfp4
from sanawm_env.model.checkpoint import bytes_of, fill
from sanawm_env.model.config import DenoiserConfig, rooms_config, tiny_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.feed_forward import token_matrix
from sanawm_env.model.initialise import randomise
from sanawm_env.model.quantised import (
    LayerList,
    LowPrecision,
    Quantisation,
    exact_names,
    layer_names,
    quantising,
    replace_layers,
    weight_bytes,
)

CPU = torch.device("cpu")
EVERYWHERE = {"attn.qkv", "attn.output_gate", "attn.proj", "mlp.inverted_conv.conv", "mlp.point_conv.conv"}
CROSS = {"cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"}
CAMERA = {f"attn.{name}_proj_cam" for name in ("q", "k", "v", "out")} | {"mlp.t_conv", "plucker_proj"}
BOTH = pytest.mark.parametrize("precision", ["fp8", "nvfp4"])


def plain(config: DenoiserConfig | None = None) -> Denoiser:
    denoiser = Denoiser(config or tiny_config().denoiser)
    randomise(denoiser, torch.Generator().manual_seed(3))
    return denoiser


def quantised(source: Denoiser, precision: LowPrecision, layers: LayerList = "max") -> Denoiser:
    with torch.device("meta"):
        denoiser = Denoiser(source.config)
    replace_layers(denoiser, Quantisation(precision=precision, layers=layers, simulated=precision == "fp8"))
    read = quantising(denoiser, source.state_dict().__getitem__, CPU)
    fill(denoiser, read, CPU, torch.float32, exact=exact_names(denoiser))
    return denoiser


def empty(config: DenoiserConfig) -> Denoiser:
    with torch.device("meta"):
        return Denoiser(config).bfloat16()


def of_blocks(names: list[str]) -> Counter[str]:
    return Counter(name.split(".", 2)[2] for name in names)


@pytest.mark.parametrize(
    ("layers", "expected"), [("default", EVERYWHERE | CROSS), ("max", EVERYWHERE | CROSS | CAMERA)]
)
def test_the_lists_on_the_released_model(layers: LayerList, expected: set[str]) -> None:
    assert of_blocks(layer_names(empty(DenoiserConfig()), layers)) == Counter(dict.fromkeys(expected, 20))


def test_what_a_model_lacks_or_cannot_block_is_left_out() -> None:
    rooms = of_blocks(layer_names(empty(rooms_config().denoiser), "default"))
    assert rooms == Counter(dict.fromkeys(EVERYWHERE, 8)), "Rooms reads no text"
    narrow = DenoiserConfig(hidden_size=48, head_dim=24, depth=1, mlp_ratio=2.5, caption_channels=None)
    # The feed-forward is 120 wide, which is no multiple of 16; its opening has 240 rows.
    assert of_blocks(layer_names(empty(narrow), "default")).keys() == EVERYWHERE - {"mlp.point_conv.conv"}


# Shares of the bf16 bytes of the 2.66 B denoiser, as counted; the bounds of the format are 0.67, 0.52 and 0.31.
@pytest.mark.parametrize(
    ("precision", "layers", "share", "bound"),
    [
        ("fp8", "default", 0.6612, 0.67),
        ("fp8", "max", 0.5106, 0.67),
        ("nvfp4", "default", 0.5122, 0.52),
        ("nvfp4", "max", 0.2955, 0.31),
    ],
)
def test_bytes_of_the_released_model(precision: LowPrecision, layers: LayerList, share: float, bound: float) -> None:
    wide = weight_bytes(DenoiserConfig())
    low = weight_bytes(DenoiserConfig(), Quantisation(precision=precision, layers=layers))
    assert wide == pytest.approx(2 * 2_661_800_448, rel=1e-4)
    assert low / wide == pytest.approx(share, abs=1e-4)
    assert low <= bound * wide


def error(low: Tensor, high: Tensor) -> float:
    return float(((low - high).norm() / high.norm()).detach())


@BOTH
def test_each_layer_multiplies_what_it_stores(precision: LowPrecision) -> None:
    source = plain()
    denoiser = quantised(source, precision)
    for name in layer_names(source, "max"):
        layer, stands_for = denoiser.get_submodule(name), source.get_submodule(name)
        matrix = token_matrix(stands_for.get_parameter("weight"))
        x = torch.randn(2, 3, matrix.shape[1])
        bias = stands_for.bias
        if precision == "nvfp4":
            wanted = nvfp4.linear(x, *nvfp4.quantise(matrix, fitted=True), bias)
        else:
            wanted = fp8.linear(x, *fp8.quantise(matrix), bias, backend="reference")
        assert torch.equal(layer(x), wanted), name
        assert error(layer(x), stands_for(x)) < (0.15 if precision == "nvfp4" else 0.06), name


@BOTH
def test_what_is_not_listed_stays_as_it_is(precision: LowPrecision) -> None:
    source = plain()
    denoiser = quantised(source, precision, "default")
    stored = Quantisation(precision=precision)
    assert bytes_of(denoiser.bfloat16()) == weight_bytes(source.config, stored)
    denoiser = quantised(source, precision, "default")
    low, high = denoiser.state_dict(), source.state_dict()
    replaced = {f"{name}.weight" for name in layer_names(source, "default")}
    assert {name for name in high if not torch.equal(low[name].float(), high[name])} == replaced


@BOTH
def test_formats_survive_a_change_of_dtype_and_copies(precision: LowPrecision) -> None:
    denoiser = quantised(plain(), precision)
    exact = exact_names(denoiser)
    before = {name: x for name, x in denoiser.state_dict().items() if name in exact}
    assert before
    for changed in (copy.deepcopy(denoiser).bfloat16(), copy.deepcopy(denoiser).double(), denoiser.float()):
        after = changed.state_dict()
        for name, x in before.items():
            assert after[name].dtype == x.dtype and torch.equal(after[name].float(), x.float()), name
    assert denoiser.blocks[0].attn.proj.bias.dtype == torch.float32


def test_a_layer_keeps_its_tensors_on_the_meta_device() -> None:
    denoiser = empty(tiny_config().denoiser)
    replace_layers(denoiser, Quantisation(precision="nvfp4"))
    moved = denoiser.to(torch.float32).state_dict()
    assert moved["blocks.0.attn.qkv.weight"].dtype == torch.uint8 and moved["blocks.0.attn.qkv.weight"].is_meta


def test_plain_weights_are_read_once_and_in_order() -> None:
    source, asked = plain(), list[str]()
    with torch.device("meta"):
        denoiser = Denoiser(source.config)
    replace_layers(denoiser, Quantisation(precision="nvfp4", layers="max"))
    weights = source.state_dict()
    read = quantising(denoiser, lambda name: asked.append(name) or weights[name], CPU)
    fill(denoiser, read, CPU, torch.bfloat16, exact=exact_names(denoiser))
    assert asked == list(weights)
    assert denoiser.blocks[0].attn.proj.bias.dtype == denoiser.dtype == torch.bfloat16


def test_a_tensor_in_another_format_is_refused() -> None:
    denoiser = quantised(plain(), "nvfp4")
    wrong = dict(denoiser.state_dict())
    name = "blocks.1.attn.qkv.weight_scale"
    wrong[name] = wrong[name].float()
    with pytest.raises(BundleError, match=rf"{name} holds float32, expected float8_e4m3fn; make or download"):
        fill(denoiser, wrong.__getitem__, CPU, torch.float32, exact=exact_names(denoiser))


def test_names_and_combinations_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="precision is 'fp4'; did you mean 'nvfp4'"):
        Quantisation(precision="fp4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="layers is 'maximum'; did you mean 'max'"):
        Quantisation(precision="fp8", layers="maximum")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="simulate is True with 'nvfp4'"):
        Quantisation(precision="nvfp4", simulated=True)
    with pytest.raises(ConfigError, match="is nvfp4 already"):
        replace_layers(quantised(plain(), "nvfp4"), Quantisation(precision="fp8"))


def test_execution_says_what_runs_and_never_calls_a_simulation_real() -> None:
    assert Quantisation(precision="nvfp4").execution(CPU) == "nvfp4 weight-only (reference)"
    assert Quantisation(precision="fp8").execution(torch.device("cuda")) == "fp8 scaled matmul"
    assert Quantisation(precision="fp8", simulated=True).execution(CPU) == "fp8 simulated (reference)"
    with pytest.raises(BackendError, match="'fp8' cannot run on cpu"):
        Quantisation(precision="fp8").check_runs(CPU)
    Quantisation(precision="fp8", simulated=True).check_runs(CPU)
    Quantisation(precision="nvfp4").check_runs(CPU)
