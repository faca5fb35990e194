"""Gates of a recurrent block: both backends agree, shapes that miss block edges included, and no world sees another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.frame_gates import TOLERANCE, frame_gates

SHAPES = [(1, 1, 1, 16, 1), (2, 3, 65, 70, 5), (1, 2, 128, 64, 20)]


def draw(batch: int, frames: int, tokens: int, width: int, heads: int, device: str = "cpu") -> list[Tensor]:
    """u, then the weights in the order of the arguments."""
    shapes = [(batch, frames, tokens, width), (heads, width), (heads,), (heads, width), (heads,), (heads,), (heads,)]
    return [torch.randn(shape, device=device) * (0.5 if len(shape) == 2 else 1.0) for shape in shapes]


def compare(device: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, bound: float = TOLERANCE) -> None:
    given = [x.to(dtype) for x in draw(*shape, device=device)]
    wanted = frame_gates(*(x.float() for x in given), backend="reference")
    for fused, reference in zip(frame_gates(*given, backend="fused"), wanted, strict=True):
        assert fused.dtype == torch.float32 and fused.shape == reference.shape
        assert (fused - reference).abs().max() <= bound


@pytest.mark.parametrize("shape", SHAPES)
def test_fused_equals_reference(shape: tuple[int, ...], nan_scratch: None) -> None:
    compare("cpu", shape)


def test_the_reference_is_the_formula() -> None:
    u, beta_weight, beta_bias, gate_weight, gate_bias, a_log, dt_bias = given = draw(1, 2, 3, 4, 2)
    beta, decay = frame_gates(*given)
    token = u[0, 1, 2] @ beta_weight[1] + beta_bias[1]
    gate = sum(u[0, 1, s] for s in range(3)) / 3 @ gate_weight[1] + gate_bias[1] + dt_bias[1]
    assert beta[0, 1, 2, 1].item() == pytest.approx((1 / (1 + (-token).exp())).item(), rel=1e-5)
    assert decay[0, 1, 1].item() == pytest.approx((-a_log[1].exp() * (1 + gate.exp()).log()).exp().item(), rel=1e-5)


def test_fused_is_the_same_in_any_batch() -> None:
    u, *weights = draw(3, 2, 70, 48, 5)
    together = frame_gates(u, *weights, backend="fused")
    for world in range(3):
        alone = frame_gates(u[world : world + 1], *weights, backend="fused")
        assert all(torch.equal(x[world], y[0]) for x, y in zip(together, alone, strict=True))


def test_fused_has_no_gradients() -> None:
    given = [x.requires_grad_() for x in draw(1, 1, 4, 16, 2)]
    with pytest.raises(BackendError, match="no gradients"):
        frame_gates(*given, backend="fused")
    assert frame_gates(*given)[0].requires_grad


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    for shape in (*SHAPES, (2, 3, 880, 2240, 20)):
        compare("cuda", shape, bound=1e-4)
        compare("cuda", shape, torch.bfloat16, bound=1e-4)
    u, *weights = [x.bfloat16() for x in draw(8, 3, 320, 320, 5, device="cuda")]
    together = frame_gates(u, *weights)
    alone = frame_gates(u[5:6], *weights)
    assert all(torch.equal(x[5], y[0]) for x, y in zip(together, alone, strict=True))
