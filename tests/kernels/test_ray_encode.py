"""Ray encoding: both backends agree for queries, keys and outputs, with and without downscale."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.kernels.agreement import assert_close, assert_same_in_any_batch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.ray_encode import TOLERANCE, ray_encode

# Batch, frames, tokens, heads, lanes of a head; the kernel takes 16 heads at a time.
SHAPES = [(1, 1, 1, 1, 8), (2, 2, 3, 5, 24), (1, 1, 2, 20, 112)]
DTYPES = [torch.float32, torch.bfloat16]


def draw(batch: int, frames: int, tokens: int, heads: int, lanes: int, device: str = "cpu") -> list[Tensor]:
    """x, ray transforms, cosines and sines."""
    x = torch.randn(batch, frames, tokens, heads, lanes, device=device)
    matrix = torch.randn(batch, frames, tokens, 4, 4, device=device)
    angle = torch.randn(batch, frames, tokens, 1, lanes // 4, device=device) * 9
    return [x, matrix, angle.cos(), angle.sin()]


def compare(device: str, shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    x, matrix, *angles = draw(*shape, device=device)
    x = x.to(dtype)
    for transform, inverse, shrink in itertools.product(
        (matrix, matrix.transpose(-1, -2)), (False, True), (False, True)
    ):
        wanted = ray_encode(x.float(), transform, *angles, inverse=inverse, shrink=shrink, backend="reference")
        fused = ray_encode(x, transform, *angles, inverse=inverse, shrink=shrink, backend="fused")
        assert_close(fused, wanted, dtype, TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_equals_reference(shape: tuple[int, int, int, int, int], dtype: torch.dtype, nan_scratch: None) -> None:
    compare("cpu", shape, dtype)


def test_the_reference_is_the_formula() -> None:
    x, matrix, cos, sin = draw(1, 1, 2, 2, 16)
    head, c, s = x[0, 0, 1, 1], cos[0, 0, 1, 0], sin[0, 0, 1, 0]
    made = ray_encode(x, matrix, cos, sin)[0, 0, 1, 1]
    torch.testing.assert_close(made[4:8], matrix[0, 0, 1] @ head[4:8])
    turned = torch.stack([head[10] * c[1] - head[11] * s[1], head[10] * s[1] + head[11] * c[1]])
    torch.testing.assert_close(made[10:12], turned)
    shrunk = ray_encode(x, matrix, cos, sin, shrink=True)[0, 0, 1, 1]
    ratio = ((head.square().mean() + 1e-6) / (made.square().mean() + 1e-6)).sqrt()
    torch.testing.assert_close(shrunk, made * ratio.clamp_max(1.0))


def test_inverse_undoes_the_rotation() -> None:
    x, matrix, *angles = draw(1, 2, 3, 2, 16)
    back = ray_encode(ray_encode(x, matrix, *angles), torch.linalg.inv(matrix), *angles, inverse=True)
    torch.testing.assert_close(back, x, atol=1e-3, rtol=1e-3)


def test_fused_reads_any_layout() -> None:
    x, *rays = draw(2, 2, 3, 4, 8)
    wanted = ray_encode(x, *rays, backend="fused")
    inner = torch.cat([x, x], dim=-1).chunk(2, dim=-1)[1]
    heads_first = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(ray_encode(inner, *rays, backend="fused"), wanted)
    assert torch.equal(ray_encode(heads_first, *rays, backend="fused"), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    x, *rays = draw(3, 2, 5, 3, 16)
    assert_same_in_any_batch(lambda *given: ray_encode(*given, shrink=True, backend="fused"), x.to(dtype), *rays)


def test_fused_has_no_gradients() -> None:
    x, *rays = draw(1, 1, 2, 2, 8)
    x.requires_grad_()
    with pytest.raises(BackendError, match="no gradients"):
        ray_encode(x, *rays, backend="fused")
    assert ray_encode(x, *rays).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    for shape in (*SHAPES, (1, 3, 880, 20, 112), (2, 3, 320, 5, 64)):
        compare("cuda", shape, dtype)
    x, *rays = draw(5, 3, 320, 5, 64, device="cuda")
    assert_same_in_any_batch(lambda *given: ray_encode(*given, shrink=True), x.to(dtype), *rays)
