"""Channels to time and space: both backends agree to the bit, with and without the enlarged input."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.agreement import assert_same_in_any_batch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.channels_to_space import channels_to_space

# Shape of y, channels of x, stride, frames to drop.
CASES = [
    ((1, 1, 1, 1, 8), 8, (2, 2, 2), 1),
    ((2, 3, 2, 5, 48), 16, (2, 2, 2), 0),
    ((1, 2, 3, 2, 24), 8, (1, 2, 2), 0),
    ((2, 2, 2, 1, 12), 4, (2, 1, 1), 1),
]
DTYPES = [torch.float32, torch.bfloat16]
Case = tuple[tuple[int, ...], int, tuple[int, int, int], int]


def draw(case: Case, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """y and x; whole numbers, whose sums need no rounding (Triton's interpreter cuts bf16 off where a GPU rounds)."""
    shape, channels = case[:2]
    y, x = (torch.randint(-64, 64, (*shape[:4], count), device=device) for count in (shape[4], channels))
    return y.to(dtype), x.to(dtype)


def compare(device: str, case: Case, dtype: torch.dtype) -> None:
    y, x = draw(case, dtype, device)
    for given in (x, None):
        fused = channels_to_space(y, given, *case[2:], backend="fused")
        assert fused.dtype == dtype
        assert torch.equal(fused, channels_to_space(y, given, *case[2:], backend="reference"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fused_equals_reference(case: Case, dtype: torch.dtype, nan_scratch: None) -> None:
    compare("cpu", case, dtype)


def test_the_reference_is_the_formula() -> None:
    y, x = draw(CASES[1], torch.float32)
    made = channels_to_space(y, x, (2, 2, 2), 1)
    assert made.shape == (2, 5, 4, 10, 6)
    # Frame 4 of 0 .. 5 before the drop, row 3, column 8, channel 5: offset (0, 1, 0) of pixel (2, 1, 4).
    wanted = y[1, 2, 1, 4, 5 * 8 + 2] + x[1, 2, 1, 4, 5 % 2 * 8 + 2]
    assert made[1, 3, 3, 8, 5] == wanted


def test_fused_reads_any_layout() -> None:
    y, x = draw(CASES[1], torch.float32)
    wanted = channels_to_space(y, x, (2, 2, 2), backend="fused")
    y, x = (z.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1) for z in (y, x))
    assert torch.equal(channels_to_space(y, x, (2, 2, 2), backend="fused"), wanted)


def test_fused_is_the_same_in_any_batch() -> None:
    given = draw(((3, 2, 2, 3, 16), 8, (2, 2, 2), 0), torch.float32)
    assert_same_in_any_batch(lambda y, x: channels_to_space(y, x, (2, 2, 2), backend="fused"), *given)


def test_fused_has_no_gradients() -> None:
    y, x = draw(CASES[0], torch.float32)
    y.requires_grad_()
    with pytest.raises(BackendError, match="no gradients"):
        channels_to_space(y, x, (2, 2, 2), backend="fused")
    assert channels_to_space(y, x, (2, 2, 2)).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    full = ((1, 3, 22, 40, 4096), 1024, (2, 2, 2), 0), ((1, 12, 88, 160, 1024), 256, (2, 2, 2), 0)
    for case in (*CASES, *full, ((2, 4, 16, 20, 256), 128, (2, 2, 2), 1)):
        compare("cuda", case, dtype)
    given = draw(((5, 4, 16, 20, 256), 128, (2, 2, 2), 0), dtype, "cuda")
    assert_same_in_any_batch(lambda y, x: channels_to_space(y, x, (2, 2, 2)), *given)
