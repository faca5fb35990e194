"""Output gate: both backends agree, in every mixture of dtypes that a block has."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.agreement import assert_close, assert_same_in_any_batch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.output_gate import TOLERANCE, output_gate

SHAPES = [(1, 1, 1, 3), (2, 3, 5, 70)]
# Dtypes of the main branch and of everything else.
DTYPES = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]


def draw(shape: tuple[int, ...], main: torch.dtype, other: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """main, camera and gate."""
    return [(torch.randn(shape, device=device) * 3).to(dtype) for dtype in (main, other, other)]


def compare(device: str, shape: tuple[int, ...], main: torch.dtype, other: torch.dtype) -> None:
    given = draw(shape, main, other, device)
    wanted = output_gate(*(x.float() for x in given), torch.float32, backend="reference")
    assert_close(output_gate(*given, other, backend="fused"), wanted, other, TOLERANCE)


@pytest.mark.parametrize(("main", "other"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_equals_reference(
    shape: tuple[int, ...], main: torch.dtype, other: torch.dtype, nan_scratch: None
) -> None:
    compare("cpu", shape, main, other)


def test_the_reference_is_the_formula() -> None:
    main, camera, gate = draw((1, 1, 2, 4), torch.float32, torch.float32)
    wanted = (main + camera) * gate / (1 + (-gate).exp())
    torch.testing.assert_close(output_gate(main, camera, gate, torch.float32), wanted)


def test_fused_reads_any_layout() -> None:
    main, camera, gate = draw((2, 3, 4, 6), torch.float32, torch.float32)
    wanted = output_gate(main, camera, gate, torch.float32, backend="fused")
    across = main.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(output_gate(across, camera, gate, torch.float32, backend="fused"), wanted)


@pytest.mark.parametrize(("main", "other"), DTYPES)
def test_fused_is_the_same_in_any_batch(main: torch.dtype, other: torch.dtype) -> None:
    assert_same_in_any_batch(lambda *x: output_gate(*x, other, backend="fused"), *draw((3, 1, 5, 7), main, other))


def test_fused_has_no_gradients() -> None:
    given = [x.requires_grad_() for x in draw((1, 1, 2, 4), torch.float32, torch.float32)]
    with pytest.raises(BackendError, match="no gradients"):
        output_gate(*given, torch.float32, backend="fused")
    assert output_gate(*given, torch.float32).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize(("main", "other"), DTYPES)
def test_on_a_gpu(main: torch.dtype, other: torch.dtype) -> None:
    for shape in (*SHAPES, (1, 3, 880, 2240), (2, 3, 320, 320)):
        compare("cuda", shape, main, other)
    assert_same_in_any_batch(lambda *x: output_gate(*x, other), *draw((5, 3, 320, 320), main, other, "cuda"))
