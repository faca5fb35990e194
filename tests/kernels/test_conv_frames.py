"""Input of a causal convolution: both backends agree at the start of a stream, inside it, and on either side of it."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.agreement import assert_close, assert_same_in_any_batch
from torch import Tensor
from torch.nn import functional

from sanawm_env.errors import BackendError
from sanawm_env.kernels.conv_frames import TOLERANCE, conv_frames

# Batch, frames, rows, columns, channels; the kernel takes 2048 channels' worth of pixels at a time.
SHAPES = [(1, 1, 2, 2, 3), (2, 3, 4, 5, 70), (1, 2, 3, 2, 1024)]
DTYPES = [torch.float32, torch.bfloat16]


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """x, and two frames before it."""
    batch, _, *frame = shape
    given = torch.randn(shape, device=device) * 2, torch.randn(batch, 2, *frame, device=device)
    return given[0].to(dtype), given[1].to(dtype)


def compare(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, before = draw(shape, dtype, device)
    for epsilon in (None, 1e-8):
        for cached, ahead, border in ((before, 0, (1, 1)), (before, 0, (0, 0)), (None, 0, (1, 0)), (None, 1, (0, 1))):
            old = None if cached is None else cached.float()
            wanted = conv_frames(x.float(), old, 2, ahead=ahead, border=border, epsilon=epsilon, backend="reference")
            made = conv_frames(x, cached, 2, ahead=ahead, border=border, epsilon=epsilon, backend="fused")
            assert_close(made, wanted, dtype, TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_equals_reference(shape: tuple[int, ...], dtype: torch.dtype, nan_scratch: None) -> None:
    compare("cpu", shape, dtype)


def test_the_reference_is_the_formula() -> None:
    x, before = draw((1, 2, 3, 4, 5), torch.float32)
    active = functional.silu(x / (x.square().mean(-1, keepdim=True) + 1e-8).sqrt())
    joined = torch.cat([before, active], dim=1)[0].permute(3, 0, 1, 2)
    wanted = functional.pad(joined, (2, 2, 1, 1, 0, 0), mode="reflect").permute(1, 2, 3, 0)
    torch.testing.assert_close(conv_frames(x, before, 2, border=(1, 2), epsilon=1e-8)[0], wanted)


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_borders_and_repeated_frames(backend: str) -> None:
    x = torch.arange(2 * 3 * 4.0).view(1, 2, 3, 4, 1)
    made = conv_frames(x, None, 2, ahead=1, border=(2, 1), backend=backend)[0, ..., 0]
    assert made.shape == (4, 7, 6)
    assert torch.equal(made[0], made[1]) and torch.equal(made[2], made[3])
    assert made[1, :, 0].tolist() == [9, 5, 1, 5, 9, 5, 1]
    assert made[2, 2].tolist() == [13, 12, 13, 14, 15, 14]


def test_fused_reads_any_layout() -> None:
    x, before = draw((2, 3, 4, 5, 8), torch.float32)
    wanted = conv_frames(x, before, 2, border=(1, 1), epsilon=1e-8, backend="fused")
    channels_first = x.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    later = torch.cat([x, x], dim=1)[:, 3:]
    inner = torch.cat([before, before], dim=-1)[..., 8:]
    for given in (channels_first, later):
        made = conv_frames(given, inner, 2, border=(1, 1), epsilon=1e-8, backend="fused")
        assert torch.equal(made, wanted)


def test_a_cache_of_another_dtype_is_read_in_that_of_the_frames() -> None:
    x, before = draw((1, 2, 3, 4, 8), torch.float32)
    made = conv_frames(x, before.bfloat16(), 2, backend="fused")
    assert made.dtype == torch.float32 and torch.equal(made[:, :2], before.bfloat16().float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    given = draw((3, 2, 3, 4, 24), dtype)
    assert_same_in_any_batch(lambda *x: conv_frames(*x, 2, border=(1, 1), epsilon=1e-8, backend="fused"), *given)


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_a_border_larger_than_the_picture_is_refused(backend: str) -> None:
    with pytest.raises(BackendError, match="border of 1 rows and 1 columns cannot be mirrored from frames of 1x4"):
        conv_frames(torch.zeros(1, 2, 1, 4, 8), None, 2, border=(1, 1), backend=backend)


def test_fused_has_no_gradients() -> None:
    x, before = draw((1, 2, 3, 4, 8), torch.float32)
    x.requires_grad_()
    with pytest.raises(BackendError, match="no gradients"):
        conv_frames(x, before, 2, backend="fused")
    assert conv_frames(x, before, 2).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    for shape in (*SHAPES, (1, 3, 22, 40, 1024), (1, 24, 176, 320, 128), (2, 8, 32, 40, 64)):
        compare("cuda", shape, dtype)
    given = draw((5, 8, 32, 40, 64), dtype, "cuda")
    assert_same_in_any_batch(lambda *x: conv_frames(*x, 2, border=(1, 1), epsilon=1e-8), *given)
