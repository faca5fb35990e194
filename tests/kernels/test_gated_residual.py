"""Gated residual: both backends agree, with and without the offset."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.agreement import assert_close, assert_same_in_any_batch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.gated_residual import TOLERANCE, gated_residual

SHAPES = [(1, 1, 1, 3), (2, 3, 5, 70)]
DTYPES = [torch.float32, torch.bfloat16]


def draw(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """x, gate (rows of a table, which is how a block has them), branch and offset."""
    x, branch, offset = (torch.randn(shape, device=device).to(dtype) for _ in range(3))
    gate = torch.randn(*shape[:2], 6, shape[3], device=device).to(dtype)[:, :, :, None].unbind(2)[2]
    return [x, gate, branch, offset]


def compare(device: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    given = draw(shape, dtype, device)
    for count in (3, 4):
        wanted = gated_residual(*(x.float() for x in given[:count]), backend="reference")
        assert_close(gated_residual(*given[:count], backend="fused"), wanted, dtype, TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_equals_reference(shape: tuple[int, int, int, int], dtype: torch.dtype, nan_scratch: None) -> None:
    compare("cpu", shape, dtype)


def test_the_reference_is_the_formula() -> None:
    x, gate, branch, offset = draw((1, 2, 3, 4), torch.float32)
    made = gated_residual(x, gate, branch, offset)[0, 1, 2]
    torch.testing.assert_close(made, x[0, 1, 2] + gate[0, 1, 0] * branch[0, 1, 2] + offset[0, 1, 2])


def test_fused_reads_any_layout() -> None:
    x, gate, branch, offset = draw((2, 2, 3, 8), torch.float32)
    wanted = gated_residual(x, gate, branch, offset, backend="fused")
    across = x.transpose(2, 3).contiguous().transpose(2, 3)
    inner = torch.cat([branch, branch], dim=-1).chunk(2, dim=-1)[1]
    assert torch.equal(gated_residual(across, gate, inner, offset, backend="fused"), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    assert_same_in_any_batch(lambda *x: gated_residual(*x, backend="fused"), *draw((3, 2, 5, 7), dtype))


def test_fused_has_no_gradients() -> None:
    given = [x.requires_grad_() for x in draw((1, 1, 2, 4), torch.float32)]
    with pytest.raises(BackendError, match="no gradients"):
        gated_residual(*given, backend="fused")
    assert gated_residual(*given).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    for shape in (*SHAPES, (1, 3, 880, 2240), (2, 3, 320, 320)):
        compare("cuda", shape, dtype)
    assert_same_in_any_batch(gated_residual, *draw((5, 3, 320, 320), dtype, "cuda"))
