"""Temporal taps: both backends move the same values, and nothing passes from one chunk back into another."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.agreement import assert_same_in_any_batch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.temporal_taps import temporal_taps

CASES = [((1, 1, 1, 3), (1,)), ((2, 3, 5, 70), (3,)), ((2, 5, 4, 16), (3, 2)), ((1, 4, 7, 33), (2, 1, 1))]


def draw(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """f, half of a wider tensor as it may come, and a tail."""
    f = torch.randn(*shape[:3], 2 * shape[3], device=device).to(dtype).chunk(2, dim=-1)[1]
    return f, torch.randn(shape[0], 1, *shape[2:], device=device).to(dtype)


def compare(device: str, dtype: torch.dtype) -> None:
    for shape, lengths in CASES:
        f, tail = draw(shape, dtype, device)
        fused, reference = (temporal_taps(f, tail, lengths, backend=backend) for backend in ("fused", "reference"))
        assert fused.dtype == dtype and torch.equal(fused, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_equals_reference(dtype: torch.dtype, nan_scratch: None) -> None:
    compare("cpu", dtype)


def test_the_reference_reads_the_frame_before_and_after_in_its_chunk() -> None:
    f, tail = draw((1, 4, 2, 3), torch.float32)
    taps = temporal_taps(f, tail, (3, 1)).unflatten(-1, (3, 3))
    assert torch.equal(taps[:, 0, :, 0], tail[:, 0]) and torch.equal(taps[:, 1:, :, 0], f[:, :-1])
    assert torch.equal(taps[..., 1, :], f)
    assert torch.equal(taps[:, :2, :, 2], f[:, 1:3]) and not taps[:, 2:, :, 2].any()


def test_fused_is_the_same_in_any_batch() -> None:
    given = draw((3, 3, 5, 7), torch.float32)
    assert_same_in_any_batch(lambda *x: temporal_taps(*x, (3,), backend="fused"), *given)


def test_fused_has_no_gradients() -> None:
    f, tail = (x.clone().requires_grad_() for x in draw((1, 2, 2, 4), torch.float32))
    with pytest.raises(BackendError, match="no gradients"):
        temporal_taps(f, tail, (2,), backend="fused")
    assert temporal_taps(f, tail, (2,)).requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="runs the compiled kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    compare("cuda", dtype)
