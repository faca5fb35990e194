"""FP8 products: the reference rounds as the format says, and what cannot run is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels import fp8
from sanawm_env.kernels.backend import fp8_obstacle


def draw(rows: int, count: int, width: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """x, a weight and a bias."""
    shapes = ((rows, width), (count, width), (count,))
    x, weight, bias = (torch.randn(shape, device=device) for shape in shapes)
    return x, weight, bias


def test_each_row_uses_the_whole_range() -> None:
    weight = torch.randn(5, 32) * torch.logspace(-6, 6, 5)[:, None]
    levels, scales = fp8.quantise(weight)
    assert levels.dtype == torch.float8_e4m3fn and scales.dtype == torch.float32
    assert levels.float().abs().amax(1).tolist() == [448.0] * 5
    error = (levels.float() * scales[:, None] - weight).abs()
    # Half a unit of three bits of fraction, or half the smallest step.
    assert bool((error <= torch.maximum(weight.abs() / 16, scales[:, None] * 2**-10) * (1 + 1e-6)).all())


def same_rows(device: str, dtype: torch.dtype) -> None:
    """Both forms of quantising give the same levels, also of a row of zeros and of one part of a wider matrix."""
    x = (torch.randn(7, 96, device=device) * torch.logspace(-3, 3, 7, device=device)[:, None]).to(dtype)
    x[3] = 0
    part = x.chunk(2, dim=1)[1]
    for rows in (x, part):
        fused, wanted = (fp8.quantise(rows, backend=backend) for backend in ("fused", "reference"))
        assert torch.equal(fused[1], wanted[1])
        got, levels = fused[0].float(), wanted[0].float()
        # Triton's interpreter takes levels below 2^-6 for zero.
        allowed = 0.0 if levels.is_cuda else 2**-6 * (levels.abs() < 2**-6)
        assert ((got - levels).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_rows_equal_the_reference(dtype: torch.dtype, nan_scratch: None) -> None:
    same_rows("cpu", dtype)


def same_activated_rows(device: str, dtype: torch.dtype) -> None:
    """The fused form with GELU gives what the reference gives of rows that went through GELU, up to its own rounding:
    half a unit of three bits at most once more, where it moves a value over an edge."""
    x = (3 * torch.randn(7, 96, device=device)).to(dtype)
    x[3] = 0
    fused, wanted = (fp8.quantise(x, gelu=True, backend=backend) for backend in ("fused", "reference"))
    by_hand = fp8.quantise(torch.nn.functional.gelu(x.float(), approximate="tanh"), backend="reference")
    assert torch.equal(wanted[0].float(), by_hand[0].float()) and torch.equal(wanted[1], by_hand[1])
    torch.testing.assert_close(fused[1], wanted[1], rtol=1e-6, atol=0)
    got, levels = fused[0].float(), wanted[0].float()
    assert ((got - levels).abs() <= torch.maximum(levels.abs() / 8, torch.tensor(2**-6, device=device))).all()
    assert (got != levels)[levels.abs() >= 2**-6].float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_rows_take_a_gelu_on_the_way(dtype: torch.dtype, nan_scratch: None) -> None:
    same_activated_rows("cpu", dtype)


def test_a_product_takes_a_gelu_on_the_way() -> None:
    x, weight, bias = draw(6, 32, 48)
    packed = fp8.quantise(weight)
    wanted = fp8.linear(torch.nn.functional.gelu(x, approximate="tanh"), *packed, bias, backend="reference")
    assert torch.equal(fp8.linear(x, *packed, bias, gelu=True, backend="reference"), wanted)


def test_fused_rows_have_no_gradients() -> None:
    with pytest.raises(BackendError, match="no gradients"):
        fp8.quantise(torch.randn(2, 16, requires_grad=True), backend="fused")


def test_rows_of_zeros_stay_zeros() -> None:
    levels, scales = fp8.quantise(torch.zeros(2, 16))
    assert levels.float().abs().sum() == 0 and scales.tolist() == [1.0, 1.0]


def test_the_reference_is_the_formula() -> None:
    x, weight, bias = draw(6, 32, 48)
    found = fp8.linear(x.unflatten(0, (2, 3)), *fp8.quantise(weight), bias, backend="reference")
    rounded = [levels.double() * scales[:, None] for levels, scales in (fp8.quantise(x), fp8.quantise(weight))]
    expected = rounded[0] @ rounded[1].T + bias
    assert found.shape == (2, 3, 32) and found.dtype == x.dtype
    torch.testing.assert_close(found.reshape(6, 32).double(), expected, rtol=1e-5, atol=1e-4)
    exact = x @ weight.T + bias
    assert (found.reshape(6, 32) - exact).norm() < 0.05 * exact.norm()


def test_what_the_device_lacks_is_refused_not_simulated() -> None:
    x, weight, _ = draw(2, 16, 16)
    for backend in ("auto", "scaled"):
        with pytest.raises(BackendError, match=r"'fp8' cannot run on cpu: .*NVIDIA.*\nUse 'bf16' or 'nvfp4'"):
            fp8.linear(x, *fp8.quantise(weight), backend=backend)
    with pytest.raises(BackendError, match="did you mean 'scaled'"):
        fp8.linear(x, *fp8.quantise(weight), backend="scale")


@pytest.mark.parametrize(("capability", "said"), [((8, 6), r"8\.6 is below 8\.9"), ((8, 9), ""), ((12, 0), "")])
def test_cards_by_their_capability(capability: tuple[int, int], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    obstacle = fp8_obstacle(torch.device("cuda"))
    assert bool(obstacle) == bool(said)
    if said:
        with pytest.raises(BackendError, match=said):
            fp8.check_scaled("cuda")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if fp8_obstacle(torch.device("cuda")):
        pytest.skip("this card multiplies no 8-bit floats")
    for dtype in (torch.float32, torch.bfloat16):
        same_rows("cuda", dtype)
        same_activated_rows("cuda", dtype)
    for rows, count, width in ((1, 16, 16), (5, 320, 800), (880, 2240, 6720)):
        x, weight, bias = (t.bfloat16() for t in draw(rows, count, width, "cuda"))
        packed = fp8.quantise(weight)
        for added, gelu in ((bias, False), (None, False), (bias, True)):
            found = fp8.linear(x, *packed, added, gelu=gelu)
            high = None if added is None else added.float()
            wanted = fp8.linear(x.float(), *packed, high, gelu=gelu, backend="reference")
            assert found.dtype == torch.bfloat16
            assert (found - wanted).abs().max() <= fp8.TOLERANCE * wanted.abs().max()
