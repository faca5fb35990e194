"""Philox: published vectors, equality of the backends, and what the noise of a world may depend on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanawm_env.errors import BackendError
from sanawm_env.kernels import philox
from sanawm_env.kernels.philox import reference

ROOT = Path(__file__).parents[2]
# Random123's known answers for philox4x32-10: counter, key, output.
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def signed(high: int, low: int) -> int:
    """The int64 with these two halves."""
    value = high << 32 | low
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    k0, k1 = (torch.tensor([word]) for word in key)
    assert tuple(int(word) for word in reference.philox((c0, c1, c2, c3), (k0, k1))) == expected


def test_layout_of_key_and_counter() -> None:
    """Seed and chunk of the pi vector, and block 2 of draw 9, land in key and counter as documented."""
    _, (k0, k1), _ = KNOWN[2]
    low, high = KNOWN[2][0][2:]
    seeds, chunk = torch.tensor([signed(k1, k0)]), torch.tensor([signed(high, low)])
    made = philox.words(seeds, chunk, 9, 3, backend="reference")[0, 2]
    counter = (torch.tensor([2]), torch.tensor([9]), torch.tensor([low]), torch.tensor([high]))
    assert made.tolist() == torch.cat(reference.philox(counter, (torch.tensor([k0]), torch.tensor([k1])))).tolist()
    zero = torch.zeros(1, dtype=torch.int64)
    assert tuple(philox.words(zero, zero, 0, 1, backend="reference")[0, 0].tolist()) == KNOWN[0][2]


def test_normals_follow_box_muller() -> None:
    made = philox.normal(torch.tensor([7]), torch.tensor([3]), 1, (5,), backend="reference")[0]
    w = philox.words(torch.tensor([7]), torch.tensor([3]), 1, 2, backend="reference").flatten().tolist()
    for pair in range(3):
        radius = math.sqrt(-2 * math.log((w[2 * pair] + 0.5) / 2**32))
        angle = 2 * math.pi * (w[2 * pair + 1] + 0.5) / 2**32
        expected = [radius * math.cos(angle), radius * math.sin(angle)][: 5 - 2 * pair]
        assert made[2 * pair : 2 * pair + 2].tolist() == pytest.approx(expected, rel=1e-6)


def test_moments_and_independence() -> None:
    seeds, chunk = torch.tensor([5, 6, -1, 2**40]), torch.tensor([0, 0, 1, 1])
    z = philox.normal(seeds, chunk, 0, (50_000,)).double()
    assert z.mean(1).abs().max() < 0.02
    assert (z.var(1) - 1).abs().max() < 0.03
    assert (z**3).mean(1).abs().max() < 0.06
    assert ((z**4).mean(1) - 3).abs().max() < 0.15
    correlation = torch.corrcoef(torch.cat([z, z.roll(1, 1)]))
    assert (correlation - torch.eye(8)).abs().max() < 0.025


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1,), (127,), (33, 3)])
def test_noise_does_not_depend_on_the_batch(shape: tuple[int, ...]) -> None:
    seeds, chunk = torch.arange(9) * 977 - 3, torch.arange(9) % 4
    batch = philox.normal(seeds, chunk, 2, shape)
    for world in range(9):
        alone = philox.normal(seeds[world : world + 1], chunk[world : world + 1], 2, shape)
        assert torch.equal(batch[world], alone[0])


def test_longer_draw_begins_with_the_shorter() -> None:
    seeds, chunk = torch.tensor([11]), torch.tensor([0])
    assert torch.equal(philox.normal(seeds, chunk, 0, (101,))[:, :37], philox.normal(seeds, chunk, 0, (37,)))


@pytest.mark.parametrize("change", ["seed", "high seed", "chunk", "draw"])
def test_each_coordinate_changes_the_noise(change: str) -> None:
    seeds, chunk, draw = torch.tensor([1]), torch.tensor([1]), 1
    before = philox.normal(seeds, chunk, draw, (64,))
    seeds = seeds + {"seed": 1, "high seed": 2**32}.get(change, 0)
    after = philox.normal(seeds, chunk + (change == "chunk"), draw + (change == "draw"), (64,))
    assert (before - after).abs().min() > 0


@pytest.mark.parametrize(
    ("seeds", "draw"), [(torch.tensor([1.0]), 0), (torch.tensor([1, 2]), 0), (torch.tensor([1]), -1)]
)
def test_bad_input_is_one_error(seeds: torch.Tensor, draw: int) -> None:
    with pytest.raises(BackendError, match="philox got"):
        philox.normal(seeds, torch.tensor([0]), draw, (4,))


def test_fused_in_the_interpreter_equals_reference() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, __file__], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_on_a_gpu_equals_reference_on_the_cpu() -> None:
    compare_backends("cuda", (2, 32, 16, 20))


def compare_backends(device: str, shape: tuple[int, ...]) -> None:
    """Equal integers, normals within the op's tolerance, for seeds and chunks that use all 64 bits."""
    seeds, chunk = torch.tensor([0, 1, -1, 2**40 + 5]), torch.tensor([0, 3, 2**33, 7])
    there = seeds.to(device), chunk.to(device)
    for draw, blocks in ((0, 1), (2**32 - 1, 259)):
        fused = philox.words(*there, draw, blocks, backend="fused")
        assert torch.equal(fused.cpu(), philox.words(seeds, chunk, draw, blocks, backend="reference"))
    fused = philox.normal(*there, 1, shape, backend="fused").cpu()
    assert (fused - philox.normal(seeds, chunk, 1, shape, backend="reference")).abs().max() <= philox.TOLERANCE


if __name__ == "__main__":
    compare_backends("cpu", (5, 257))
