"""RMS norm with and without rotation: both backends agree, rows that miss block edges included."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.agreement import assert_close, assert_same_in_any_batch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.rms_norm import TOLERANCE, rms_norm

# Batch, frames, tokens, heads, lanes of a head.
SHAPES = [(1, 1, 1, 1, 8), (2, 3, 5, 5, 14), (1, 2, 3, 20, 112)]
DTYPES = [torch.float32, torch.bfloat16]


def draw(
    batch: int, frames: int, tokens: int, heads: int, lanes: int, device: str = "cpu"
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """x, weight, and cosine and sine of a rotation."""
    x = torch.randn(batch, frames, tokens, heads * lanes, device=device) * 2
    angle = torch.randn(batch, frames, tokens, 1, lanes // 2, device=device) * 9
    return x, torch.randn(heads * lanes, device=device), (angle.cos(), angle.sin())


def compare(device: str, shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    x, weight, angles = draw(*shape, device=device)
    x, weight = x.to(dtype), weight.to(dtype)
    own = torch.randn(*shape[:4], shape[4] // 2, device=device) * 9
    for rotation, split in ((None, False), (angles, False), (angles, True), ((own.cos(), own.sin()), True)):
        for weighed in (True, False):
            given, exact = (weight, weight.float()) if weighed else (None, None)
            wanted = rms_norm(x.float(), exact, 1e-5, rotation, split=split, backend="reference")
            assert_close(rms_norm(x, given, 1e-5, rotation, split=split, backend="fused"), wanted, dtype, TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_equals_reference(shape: tuple[int, int, int, int, int], dtype: torch.dtype, nan_scratch: None) -> None:
    compare("cpu", shape, dtype)


def test_the_reference_is_the_formula() -> None:
    x, weight, (cos, sin) = draw(1, 2, 3, 2, 4)
    row = x[0, 1, 2].double()
    normed = row / (row.square().mean() + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(rms_norm(x, weight, 1e-5)[0, 1, 2], normed.float())
    turned = rms_norm(x, weight, 1e-5, (cos, sin))[0, 1, 2, 6:]
    c, s = cos[0, 1, 2, 0, 1], sin[0, 1, 2, 0, 1]
    wanted = torch.stack([normed[6] * c - normed[7] * s, normed[6] * s + normed[7] * c])
    torch.testing.assert_close(turned, wanted.float())
    turned = rms_norm(x, weight, 1e-5, (cos, sin), split=True)[0, 1, 2, [5, 7]]
    wanted = torch.stack([normed[5] * c - normed[7] * s, normed[5] * s + normed[7] * c])
    torch.testing.assert_close(turned, wanted.float())
    bare = row / (row.square().mean() + 1e-5).sqrt()
    torch.testing.assert_close(rms_norm(x, None, 1e-5)[0, 1, 2], bare.float())


def test_fused_reads_any_layout() -> None:
    x, weight, rotation = draw(2, 2, 3, 3, 8)
    wanted = rms_norm(x, weight, 1e-5, rotation, backend="fused")
    inner = torch.cat([x, x, x], dim=-1).chunk(3, dim=-1)[1]
    across = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(rms_norm(inner, weight, 1e-5, rotation, backend="fused"), wanted)
    assert torch.equal(rms_norm(across, weight, 1e-5, rotation, backend="fused"), wanted)


def test_any_leading_axes() -> None:
    x, weight, _ = draw(2, 3, 4, 2, 8)
    wanted = rms_norm(x, weight, 1e-6, backend="fused")
    assert torch.equal(rms_norm(x.flatten(0, 2), weight, 1e-6, backend="fused"), wanted.flatten(0, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    x, weight, angles = draw(3, 2, 5, 3, 16)
    x = x.to(dtype)
    assert_same_in_any_batch(lambda x, c, s: rms_norm(x, weight, 1e-5, (c, s), backend="fused"), x, *angles)
    assert_same_in_any_batch(lambda x: rms_norm(x, weight, 1e-5, backend="fused"), x)


def test_fused_has_no_gradients() -> None:
    x, weight, rotation = draw(1, 1, 2, 2, 4)
    weight.requires_grad_()
    with pytest.raises(BackendError, match="no gradients"):
        rms_norm(x, weight, 1e-5, rotation, backend="fused")
    assert rms_norm(x, weight, 1e-5, rotation).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    for shape in (*SHAPES, (1, 3, 880, 20, 112), (2, 3, 320, 5, 64)):
        compare("cuda", shape, dtype)
    x, weight, angles = draw(5, 3, 320, 5, 64, device="cuda")
    x = x.to(dtype)
    assert_same_in_any_batch(lambda x, c, s: rms_norm(x, weight, 1e-5, (c, s)), x, *angles)
    assert_same_in_any_batch(lambda x: rms_norm(x, weight, 1e-5), x)
