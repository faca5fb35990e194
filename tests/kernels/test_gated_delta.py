"""The matrix form of the frame-wise gated delta rule against its definition, and its state across calls."""

from typing import Any

import pytest
import torch

from sanawm_env.kernels.gated_delta import delta_scan, gated_delta, normalised_gated_delta
from sanawm_env.kernels.gated_delta.reference import token_recurrence
from sanawm_env.kernels.gated_delta.scan import scan

TOLERANCE = 1e-5  # relative, fp32


def inputs(frames: int, tokens: int = 7, heads: int = 3, width: int = 8, batch: int = 2) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(frames)
    q, k, v = (torch.randn(batch, frames, tokens, heads, width, generator=draw) for _ in range(3))
    scale = (tokens * width) ** -0.5
    return {
        "q": q.relu(),
        "k": k.relu() * scale,
        "v": v,
        "beta": torch.rand(batch, frames, tokens, heads, generator=draw),
        "decay": torch.rand(batch, frames, heads, generator=draw),
        "state": torch.randn(batch, heads, width, width, generator=draw),
    }


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("chunks", [(1,), (3,), (3, 2, 2), (5, 1, 4), (2,) * 6])
def test_matrix_form_equals_the_recurrence(chunks: tuple[int, ...]) -> None:
    given = inputs(sum(chunks))
    got, after = gated_delta(**given, chunks=chunks)
    want, want_after = token_recurrence(**given, chunks=chunks)
    assert relative(got, want) < TOLERANCE
    assert relative(after, want_after) < TOLERANCE


def test_chunks_one_at_a_time_equal_one_call() -> None:
    chunks = (3, 2, 2, 4)
    given = inputs(sum(chunks))
    whole, after = gated_delta(**given, chunks=chunks)
    state, start = given["state"], 0
    for index, length in enumerate(chunks):
        part = {name: x[:, start : start + length] for name, x in given.items() if name != "state"}
        out, ends = gated_delta(**part, state=state, chunks=(length,))
        assert relative(out, whole[:, start : start + length]) < TOLERANCE
        assert relative(ends[:, 0], after[:, index]) < TOLERANCE
        state, start = ends[:, 0], start + length


def test_normaliser_is_the_rule_with_target_one() -> None:
    given = inputs(5)
    rotated = {"q_rotated": torch.randn_like(given["q"]), "k_rotated": torch.randn_like(given["k"]) * 0.1}
    z = torch.rand_like(given["state"][..., 0])
    out, state, normaliser = normalised_gated_delta(**given, **rotated, normaliser=z, chunks=(3, 2))
    ones = torch.ones_like(given["v"][..., :1])
    plain = {"beta": given["beta"], "decay": given["decay"], "chunks": (3, 2)}
    top, want_state = token_recurrence(
        rotated["q_rotated"], rotated["k_rotated"], given["v"], state=given["state"], **plain
    )
    bottom, want_z = token_recurrence(given["q"], given["k"], ones, state=z[..., None], **plain)
    assert relative(out, top / (bottom + 1e-8)) < TOLERANCE
    assert relative(state, want_state) < TOLERANCE
    assert relative(normaliser, want_z[..., 0]) < TOLERANCE


def test_later_frames_of_other_chunks_change_nothing() -> None:
    given = inputs(7)
    before, _ = gated_delta(**given, chunks=(3, 2, 2))
    changed = {name: x.clone() for name, x in given.items()}
    changed["v"][:, 3:] += 1.0
    after, _ = gated_delta(**changed, chunks=(3, 2, 2))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])


def test_bf16_operands_are_computed_in_fp32_under_autocast() -> None:
    given = inputs(4)
    want, _ = gated_delta(**given, chunks=(4,))
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = gated_delta(**given, chunks=(4,))
    assert torch.equal(got, want)


@pytest.mark.parametrize("chunks", [(1,), (3,), (3, 2, 2), (5, 1, 4)])
def test_the_adjoint_is_that_of_the_recurrence(chunks: tuple[int, ...]) -> None:
    """Gradients of every input, against autograd through the definition; in double precision."""
    given = {name: x.double().requires_grad_() for name, x in inputs(sum(chunks)).items()}
    results = []
    for rule in (scan_of_double, token_recurrence):
        out, after = rule(**given, chunks=chunks)
        weights = torch.Generator().manual_seed(0)
        loss = sum(
            (x * torch.randn(x.shape, generator=weights, dtype=torch.float64)).sum() for x in (out, after, after**2)
        )
        results.append(torch.autograd.grad(loss, list(given.values())))
    for name, got, want in zip(given, *results, strict=True):
        assert relative(got, want) < 1e-10, name


def scan_of_double(**given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`gated_delta` without its rounding to fp32."""
    q, k, v, beta = (given[name].transpose(2, 3) for name in ("q", "k", "v", "beta"))
    weighted = (k * beta[..., None]).transpose(-1, -2)
    read, after = delta_scan(weighted @ k, weighted @ v, given["decay"], given["state"], given["chunks"])
    return (q @ read).transpose(2, 3), after


def test_the_operator_keeps_the_rules_of_operators() -> None:
    """Its shapes without data, and its adjoint under a compiler's tracing."""
    given = {name: x.requires_grad_() for name, x in inputs(5, width=4, batch=1, tokens=3, heads=2).items()}
    k = given["k"].transpose(2, 3)
    gram = (k.transpose(-1, -2) @ k).detach().requires_grad_()
    write = torch.randn_like(gram).requires_grad_()
    torch.library.opcheck(scan, (gram, write, given["decay"], given["state"], [3, 2]))
