"""Modulated norm: both backends agree, rows that miss block edges included, and no world sees another."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.agreement import assert_close, assert_same_in_any_batch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.modulated_norm import TOLERANCE, modulated_norm

SHAPES = [(1, 1, 1, 16), (2, 3, 5, 70), (1, 2, 3, 2240)]
DTYPES = [torch.float32, torch.bfloat16]


def draw(batch: int, frames: int, tokens: int, width: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """x, far from zero mean, and shift and scale as rows of one table, which is how a block has them."""
    table = torch.randn(batch, frames, 6, width, device=device)[:, :, :, None].unbind(2)
    return torch.randn(batch, frames, tokens, width, device=device) * 2 + 3, table[0], table[4]


def compare(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, shift, scale = (y.to(dtype) for y in draw(*shape, device=device))
    for centred in (True, False):
        wanted = modulated_norm(x.float(), shift.float(), scale.float(), centred=centred, backend="reference")
        assert_close(modulated_norm(x, shift, scale, centred=centred, backend="fused"), wanted, dtype, TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_equals_reference(shape: tuple[int, ...], dtype: torch.dtype, nan_scratch: None) -> None:
    compare("cpu", shape, dtype)


def test_the_reference_is_the_formula() -> None:
    x, shift, scale = draw(1, 2, 3, 8)
    row = x[0, 1, 2].double()
    normed = (row - row.mean()) / (row.var(correction=0) + 1e-6).sqrt()
    wanted = normed * (1 + scale[0, 1, 0].double()) + shift[0, 1, 0].double()
    torch.testing.assert_close(modulated_norm(x, shift, scale)[0, 1, 2], wanted.float())
    normed = row / (row.square().mean() + 1e-6).sqrt()
    wanted = normed * (1 + scale[0, 1, 0].double()) + shift[0, 1, 0].double()
    torch.testing.assert_close(modulated_norm(x, shift, scale, centred=False)[0, 1, 2], wanted.float())


def test_fused_reads_any_layout() -> None:
    x, shift, scale = draw(2, 2, 5, 24)
    wanted = modulated_norm(x, shift, scale, backend="fused")
    across = x.transpose(2, 3).contiguous().transpose(2, 3)
    inner = torch.cat([x, x], dim=-1).chunk(2, dim=-1)[1]
    assert torch.equal(modulated_norm(across, shift, scale, backend="fused"), wanted)
    assert torch.equal(modulated_norm(inner, shift, scale, backend="fused"), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    given = [x.to(dtype) for x in draw(3, 2, 7, 48)]
    assert_same_in_any_batch(lambda *x: modulated_norm(*x, backend="fused"), *given)


def test_fused_has_no_gradients() -> None:
    x, shift, scale = draw(1, 1, 4, 16)
    x.requires_grad_()
    with pytest.raises(BackendError, match="no gradients"):
        modulated_norm(x, shift, scale, backend="fused")
    assert modulated_norm(x, shift, scale).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    for shape in (*SHAPES, (1, 3, 880, 2240), (2, 3, 320, 320)):
        compare("cuda", shape, dtype)
    given = [x.to(dtype) for x in draw(5, 3, 320, 320, device="cuda")]
    assert_same_in_any_batch(modulated_norm, *given)
