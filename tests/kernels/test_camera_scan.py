"""Camera branch of a recurrent block: both backends agree, chunk by chunk too, and no world sees another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.camera_scan import TOLERANCE, camera_scan

# Tokens a frame, heads, lanes, lengths of the chunks: sizes that miss the edges of tiles and parts.
Shape = tuple[int, int, int, tuple[int, ...]]
SHAPES: list[Shape] = [
    (5, 1, 16, (1,)),
    (33, 2, 24, (3,)),
    (65, 1, 64, (2,)),
    (5, 1, 16, (4, 3)),
    (5, 2, 24, (1, 2, 1)),
    (65, 1, 112, (2,)),
    (460, 1, 16, (1,)),
]
FULL: Shape = (880, 20, 112, (3,))
ROOMS: Shape = (320, 5, 64, (2,))
TAPS = 4
# Along time, and of the model's precision; gates, rays, angles and states are fp32 always.
FRAMES = ("q", "k", "v", "to_ray", "from_ray", "cos", "sin", "beta", "decay")
LOW = ("q", "k", "v", "k_tail", "q_weight", "k_weight", "conv_weight")
SHARED = ("q_weight", "k_weight", "conv_weight", "lengths", "crossing", "downscaled")


def draw(
    shape: Shape, batch: int = 1, device: str = "cpu", *, crossing: bool = True, downscaled: bool = False
) -> dict[str, Any]:
    tokens, heads, width, lengths = shape
    frames, channels = sum(lengths), heads * width
    angle = 6 * torch.rand(batch, frames, tokens, 1, width // 4, device=device)
    to_ray = torch.eye(4, device=device) + 0.2 * torch.randn(batch, frames, tokens, 4, 4, device=device)
    return {
        **{name: torch.randn(batch, frames, tokens, channels, device=device) for name in ("q", "k", "v")},
        "k_tail": torch.randn(batch, TAPS - 1, tokens, channels, device=device),
        "q_weight": 1 + 0.1 * torch.randn(channels, device=device),
        "k_weight": 1 + 0.1 * torch.randn(channels, device=device),
        "conv_weight": 0.5 * torch.randn(channels, 1, TAPS, device=device),
        "to_ray": to_ray,
        "from_ray": to_ray.transpose(-1, -2) * 1.2,  # no inverse: none is needed, and one can be huge
        "cos": angle.cos(),
        "sin": angle.sin(),
        "beta": torch.rand(batch, frames, tokens, heads, device=device),
        "decay": 0.5 + 0.5 * torch.rand(batch, frames, heads, device=device),
        "state": 0.3 * torch.randn(batch, heads, width, width, device=device),
        "lengths": lengths,
        "crossing": crossing,
        "downscaled": downscaled,
    }


def cast(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: x.to(dtype) if name in LOW else x for name, x in given.items()}


def world(given: dict[str, Any], index: int) -> dict[str, Any]:
    return {name: x if name in SHARED else x[index : index + 1] for name, x in given.items()}


def relative(x: Tensor, wanted: Tensor) -> float:
    return float((x.float() - wanted).norm() / wanted.norm())


def compare(given: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    given = cast(given, dtype)
    wanted = camera_scan(**cast(given, torch.float32), backend="reference")
    made = camera_scan(**given, backend="fused")
    assert [x.dtype for x in made] == [dtype, torch.float32]
    for fused, reference in zip(made, wanted, strict=True):
        assert fused.shape == reference.shape
        assert relative(fused, reference) <= TOLERANCE[dtype]


@pytest.mark.parametrize("shape", SHAPES)
def test_fused_equals_reference(shape: Shape, nan_scratch: None) -> None:
    compare(draw(shape))


@pytest.mark.parametrize(("crossing", "downscaled"), [(False, False), (False, True), (True, True)])
def test_fused_equals_reference_by_every_switch(crossing: bool, downscaled: bool, nan_scratch: None) -> None:
    compare(draw((5, 1, 16, (2, 3)), crossing=crossing, downscaled=downscaled))


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("switch", ["crossing", "downscaled"])
def test_switches_change_the_result(backend: str, switch: str) -> None:
    given = draw((5, 1, 16, (2, 1)))
    changed = camera_scan(**{**given, switch: not given[switch]}, backend=backend)
    assert relative(changed[0], camera_scan(**given, backend=backend)[0]) > 1e-3


def test_frames_one_after_another_equal_one_call() -> None:
    """Chunks of one frame have no backward scan: each reads the state and tail of the one before."""
    given = draw((5, 1, 16, (1,) * 4), batch=2)
    out, states = camera_scan(**given, backend="fused")
    tail, state = given["k_tail"], given["state"]
    for t in range(4):
        frame = {name: given[name][:, t : t + 1] for name in FRAMES}
        memory = {"k_tail": tail, "state": state, "lengths": (1,)}
        one, after = camera_scan(**{**given, **frame, **memory}, backend="fused")
        tail, state = torch.cat([tail[:, 1:], frame["k"]], dim=1), after[:, 0]
        assert relative(one[:, 0], out[:, t]) <= 1e-6
        assert relative(state, states[:, t]) <= 1e-6


def test_chunks_one_after_another_equal_one_call() -> None:
    given = draw((5, 1, 16, (2, 3)))
    out, states = camera_scan(**given, backend="fused")
    first = {name: given[name][:, :2] for name in FRAMES}
    one, state = camera_scan(**{**given, **first, "lengths": (2,)}, backend="fused")
    later = {name: given[name][:, 2:] for name in FRAMES}
    memory = {"k_tail": torch.cat([given["k_tail"][:, 2:], first["k"]], dim=1), "state": state[:, 0]}
    two, last = camera_scan(**{**given, **later, **memory, "lengths": (3,)}, backend="fused")
    assert relative(torch.cat([one, two], dim=1), out) <= 1e-6
    assert relative(last[:, 0], states[:, 1]) <= 1e-6


def test_fused_is_the_same_in_any_batch() -> None:
    given = draw((33, 1, 24, (2,)), batch=3, downscaled=True)
    together = camera_scan(**given, backend="fused")
    for index in range(3):
        alone = camera_scan(**world(given, index), backend="fused")
        assert all(torch.equal(x[index], y[0]) for x, y in zip(together, alone, strict=True))


def test_memory_may_lie_in_any_order() -> None:
    given = draw((5, 2, 16, (2,)), batch=2)
    wanted = camera_scan(**given, backend="fused")
    scattered = {
        name: x.transpose(0, -1).contiguous().transpose(0, -1) if isinstance(x, Tensor) else x
        for name, x in given.items()
    }
    made = camera_scan(**scattered, backend="fused")
    assert all(torch.equal(x, y) for x, y in zip(made, wanted, strict=True))


def test_what_fused_cannot_do_is_an_error() -> None:
    given = draw((5, 1, 16, (1,)))
    given["v"].requires_grad_()
    with pytest.raises(BackendError, match="no gradients"):
        camera_scan(**given, backend="fused")
    assert camera_scan(**given)[0].requires_grad
    with pytest.raises(BackendError, match="a head has 136 lanes, the most is 128"):
        camera_scan(**draw((5, 1, 136, (1,))), backend="fused")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, FULL, ROOMS, (320, 5, 64, (3, 2, 2))])
def test_on_a_gpu(shape: Shape, dtype: torch.dtype, nan_scratch: None) -> None:
    compare(draw(shape, device="cuda"), dtype)
    compare(draw(shape, device="cuda", crossing=False, downscaled=True), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "batch"), [(FULL, 2), (ROOMS, 48)])
def test_on_a_gpu_no_world_sees_another(shape: Shape, batch: int) -> None:
    given = cast(draw(shape, batch, "cuda"), torch.bfloat16)
    together = camera_scan(**given)
    alone = camera_scan(**world(given, batch - 1))
    assert all(torch.equal(x[-1], y[0]) for x, y in zip(together, alone, strict=True))
