"""Gated spatial convolution: both backends agree, on grids and widths that miss block edges too."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.agreement import assert_close, assert_same_in_any_batch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.gated_spatial_conv import TOLERANCE, gated_spatial_conv

# Batch, frames, grid and hidden width; the kernel takes strips of 12 rows, 8 columns and 64 channels.
SHAPES = [(1, 1, (1, 1), 3), (1, 1, (13, 9), 66), (2, 1, (3, 8), 64), (1, 1, (2, 17), 16), (1, 1, (25, 1), 8)]
DTYPES = [torch.float32, torch.bfloat16]


def draw(batch: int, frames: int, grid: tuple[int, int], hidden: int, device: str = "cpu") -> list[Tensor]:
    """p, weight and bias."""
    shapes = [(batch, frames, grid[0] * grid[1], 2 * hidden), (2 * hidden, 1, 3, 3), (2 * hidden,)]
    return [torch.randn(shape, device=device) for shape in shapes]


def compare(device: str, shape: tuple[int, int, tuple[int, int], int], dtype: torch.dtype) -> None:
    given = [x.to(dtype) for x in draw(*shape, device=device)]
    wanted = gated_spatial_conv(*(x.float() for x in given), shape[2], backend="reference")
    assert_close(gated_spatial_conv(*given, shape[2], backend="fused"), wanted, dtype, TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_equals_reference(
    shape: tuple[int, int, tuple[int, int], int], dtype: torch.dtype, nan_scratch: None
) -> None:
    compare("cpu", shape, dtype)


def test_the_reference_is_the_formula() -> None:
    """One token in the middle of a row at the lower edge: six neighbours inside, three zeros beyond."""
    p, weight, bias = draw(1, 1, (3, 4), 2)
    active = (p * p.sigmoid()).view(3, 4, 4)
    y = bias.clone()
    for row in range(2):
        for column in range(3):
            y += weight[:, 0, row, column] * active[1 + row, 1 + column]
    wanted = y[:2] * y[2:] * y[2:].sigmoid()
    got = gated_spatial_conv(p, weight, bias, (3, 4))[0, 0, 2 * 4 + 2]
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_fused_reads_any_layout() -> None:
    p, weight, bias = draw(1, 2, (3, 4), 6)
    wanted = gated_spatial_conv(p, weight, bias, (3, 4), backend="fused")
    inner = torch.cat([p, p], dim=-1).chunk(2, dim=-1)[1]
    across = p.transpose(2, 3).contiguous().transpose(2, 3)
    last = weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    assert torch.equal(gated_spatial_conv(inner, last, bias, (3, 4), backend="fused"), wanted)
    assert torch.equal(gated_spatial_conv(across, weight, bias, (3, 4), backend="fused"), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    p, weight, bias = (x.to(dtype) for x in draw(2, 1, (3, 5), 10))
    assert_same_in_any_batch(lambda x: gated_spatial_conv(x, weight, bias, (3, 5), backend="fused"), p)


def test_fused_has_no_gradients() -> None:
    p, weight, bias = (x.requires_grad_() for x in draw(1, 1, (2, 2), 4))
    with pytest.raises(BackendError, match="no gradients"):
        gated_spatial_conv(p, weight, bias, (2, 2), backend="fused")
    assert gated_spatial_conv(p, weight, bias, (2, 2)).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for shape in (*SHAPES, (1, 3, (22, 40), 6720), (2, 3, (16, 20), 960)):
        compare("cuda", shape, dtype)
    p, weight, bias = (x.to(dtype) for x in draw(5, 3, (16, 20), 960, device="cuda"))
    assert_same_in_any_batch(lambda x: gated_spatial_conv(x, weight, bias, (16, 20)), p)
