"""NVFP4 weights: the format is nvidia-modelopt's, and both backends of the product agree."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from sanawm_env.errors import BackendError, ConfigError
from sanawm_env.kernels import nvfp4
from sanawm_env.kernels.nvfp4.reference import LARGEST, MAGNITUDES

# (rows of x, N, K); sizes that miss the edges of blocks of 64 and 128 among them
SHAPES = [(1, 16, 16), (3, 70, 48), (130, 33, 208), (65, 1030, 64)]


def draw(rows: int, count: int, width: int, device: str = "cpu") -> tuple[Tensor, list[Tensor], Tensor]:
    """x, a quantised weight and a bias."""
    weight = torch.randn(count, width, device=device) * torch.rand(count, 1, device=device).exp()
    packed = [*nvfp4.quantise(weight)]
    return torch.randn(rows, width, device=device), packed, torch.randn(count, device=device)


def compare(rows: int, count: int, width: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    x, packed, bias = draw(rows, count, width, device)
    x, bias = x.to(dtype), bias.to(dtype)
    for given in (bias, None):
        wide = None if given is None else given.float()
        wanted = nvfp4.linear(x.float(), *packed, wide, backend="reference")
        fused = nvfp4.linear(x, *packed, given, backend="fused")
        assert fused.dtype == dtype and fused.shape == (rows, count)
        bound = nvfp4.TOLERANCE if dtype == torch.float32 else 2**-8
        assert (fused - wanted).abs().max() <= bound * wanted.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_fused_equals_reference(shape: tuple[int, int, int], nan_scratch: None) -> None:
    compare(*shape)


def test_a_row_is_the_same_whatever_others_there_are() -> None:
    # In place: the interpreter multiplies by NumPy's BLAS, which on some CPUs adds in another order in another row.
    x, packed, bias = draw(70, 40, 96)
    together = nvfp4.linear(x, *packed, bias, backend="fused")
    for row in (0, 63, 64, 69):
        others = torch.full_like(x[: row + 1], torch.nan)
        others[row] = x[row]
        assert torch.equal(nvfp4.linear(others, *packed, bias, backend="fused")[row], together[row])
    # Alone: numbers whose sums are exact in any order.
    weight = torch.tensor(MAGNITUDES)[torch.randint(len(MAGNITUDES), (40, 96))]
    weight[:, ::16] = LARGEST
    packed = nvfp4.quantise(weight)
    assert torch.equal(nvfp4.dequantise(*packed), weight)
    x, bias = torch.randint(-8, 9, (70, 96)).float(), torch.randint(-8, 9, (40,)).float()
    together = nvfp4.linear(x, *packed, bias, backend="fused")
    for row in (0, 63, 64, 69):
        assert torch.equal(nvfp4.linear(x[row : row + 1], *packed, bias, backend="fused")[0], together[row])


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_leading_axes_are_kept(backend: str) -> None:
    x, packed, bias = draw(6, 20, 32)
    flat = nvfp4.linear(x, *packed, bias, backend=backend)
    folded = nvfp4.linear(x.unflatten(0, (1, 2, 3)), *packed, bias, backend=backend)
    assert folded.shape == (1, 2, 3, 20) and torch.equal(folded.reshape(6, 20), flat)
    assert nvfp4.linear(x[:0], *packed, bias, backend=backend).shape == (0, 20)


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_every_code_and_every_scale(backend: str) -> None:
    """Sixteen codes under each of the 127 scales that are numbers, subnormals and zero among them."""
    codes = torch.arange(16, dtype=torch.uint8)
    row = codes[::2] | codes[1::2] << 4
    scales = torch.arange(127, dtype=torch.uint8)[:, None].view(torch.float8_e4m3fn)
    values = torch.tensor([*MAGNITUDES, *(-x for x in MAGNITUDES)])
    one = torch.tensor(1.0)
    found = nvfp4.linear(torch.eye(16), row.expand(127, 8).contiguous(), scales, one, backend=backend).T
    assert torch.equal(found, values * scales.float())


def test_values_that_have_a_code_come_back() -> None:
    values = torch.tensor([[*MAGNITUDES, *(-x for x in MAGNITUDES)]]) * 448
    assert torch.equal(nvfp4.dequantise(*nvfp4.quantise(values)), values)


def test_halves_go_to_the_even_code() -> None:
    middles = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    row = torch.tensor([[*middles, *(-x for x in middles), 6.0, 0.0]]) * 448
    down = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert nvfp4.dequantise(*nvfp4.quantise(row))[0, :7].tolist() == [448 * x for x in down]
    assert nvfp4.dequantise(*nvfp4.quantise(row))[0, 7:14].tolist() == [-448 * x for x in down]


@pytest.mark.parametrize("weight", [torch.zeros(2, 32), torch.full((1, 16), 1e-30), torch.eye(16)])
def test_zeros_and_small_numbers_stay_finite(weight: Tensor) -> None:
    codes, scales, tensor_scale = nvfp4.quantise(weight)
    assert (codes.shape[1], scales.shape[1]) == (weight.shape[1] // 2, weight.shape[1] // 16)
    found = nvfp4.dequantise(codes, scales, tensor_scale)
    assert bool(found.isfinite().all())
    assert (found - weight).abs().max() <= weight.abs().max() * 1e-6


def test_the_error_of_a_block_is_bounded() -> None:
    """Half a step of the widest gap (4 to 6), and what the 3 bits of the scale's fraction lose."""
    weight = torch.randn(64, 256)
    error = (nvfp4.dequantise(*nvfp4.quantise(weight)) - weight).unflatten(1, (-1, 16)).abs().amax(-1)
    assert bool((error <= weight.unflatten(1, (-1, 16)).abs().amax(-1) * (1 / 6 + 1 / 16)).all())


def test_fitted_scales_lose_less_in_every_block() -> None:
    weight = torch.randn(64, 256)
    weight[3, :16] = 0

    def error(fitted: bool) -> Tensor:
        found = nvfp4.dequantise(*nvfp4.quantise(weight, fitted=fitted))
        return (found - weight).square().unflatten(1, (-1, 16)).sum(-1)

    assert bool((error(True) <= error(False)).all())
    assert error(True).sum() < 0.8 * error(False).sum()
    assert bool(nvfp4.dequantise(*nvfp4.quantise(torch.zeros(2, 16), fitted=True)).eq(0).all())


def test_shapes_without_a_form() -> None:
    for shape in ((4, 24), (16,), (2, 2, 16)):
        with pytest.raises(ConfigError, match=r"has no NVFP4 form; allowed are matrices.*multiples of 16"):
            nvfp4.quantise(torch.zeros(shape))


def test_fused_has_no_gradients() -> None:
    x, packed, _ = draw(2, 16, 16)
    with pytest.raises(BackendError, match="no gradients"):
        nvfp4.linear(x.requires_grad_(), *packed, backend="fused")
    assert nvfp4.linear(x, *packed).requires_grad


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("modelopt", "pulp")),
    reason="nvidia-modelopt is not installed; pip install 'sanawm-env[quant]'",
)
@pytest.mark.filterwarnings("ignore:transformers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modelopt_makes_the_same_bits(dtype: torch.dtype) -> None:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    for weight in (torch.randn(48, 320), torch.randn(16, 64) * torch.logspace(-9, 1, 16)[:, None]):
        weight[0, :16] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 2)
        weight[1, 16:32] = 0
        weight = weight.to(dtype)
        made, scales, tensor_scale = NVFP4QTensor.quantize(weight.clone(), 16)
        ours = nvfp4.quantise(weight)
        assert torch.equal(ours[0], made._quantized_data)
        assert torch.equal(ours[1].view(torch.uint8), scales.view(torch.uint8))
        assert torch.equal(ours[2], tensor_scale)
        theirs = made.dequantize(torch.float32, scale=scales, double_scale=tensor_scale, block_sizes={-1: 16})
        assert torch.equal(nvfp4.dequantise(*ours), theirs)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    for shape in (*SHAPES, (880, 2240, 2240)):
        compare(*shape, device="cuda")
        compare(*shape, device="cuda", dtype=torch.bfloat16)
    x, packed, bias = draw(700, 1120, 2240, device="cuda")
    together = nvfp4.linear(x.bfloat16(), *packed, bias.bfloat16())
    alone = nvfp4.linear(x[333:334].bfloat16(), *packed, bias.bfloat16())
    assert torch.equal(alone[0], together[333])


def test_known_inputs_make_losses_make_up_for_one_another() -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 64) * torch.rand(64)
    # Inputs of few directions: what one column loses, others can give.
    inputs = torch.randn(300, 12) @ torch.randn(12, 64) + 0.1 * torch.randn(300, 64)
    losses = []
    for moments in (None, inputs.T @ inputs):
        packed = nvfp4.quantise(weight, fitted=True, moments=moments)
        assert packed[0].shape == (24, 32) and packed[1].shape == (24, 4) and packed[1].dtype == torch.float8_e4m3fn
        losses.append(float((inputs @ (nvfp4.dequantise(*packed) - weight).T).norm()))
    assert losses[1] < 0.5 * losses[0]
    # Inputs that have nothing to do with one another leave every column to itself.
    packed, alone = (nvfp4.quantise(weight, moments=moments) for moments in (torch.eye(64), None))
    assert all(torch.equal(x.float(), y.float()) for x, y in zip(packed, alone, strict=True))


def test_inputs_that_were_never_seen_do_no_harm() -> None:
    torch.manual_seed(1)
    weight, inputs = torch.randn(8, 32), torch.randn(50, 32)
    inputs[:, 5:20] = 0
    packed = nvfp4.quantise(weight, fitted=True, moments=inputs.T @ inputs)
    assert float((nvfp4.dequantise(*packed) - weight).abs().max()) < 2 * float(weight.abs().max())
    assert nvfp4.dequantise(*nvfp4.quantise(weight, moments=torch.zeros(32, 32))).isfinite().all()
