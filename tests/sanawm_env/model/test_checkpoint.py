"""Sharded weights of few bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sanawm_env.errors import BundleError
from sanawm_env.model.checkpoint import (
    as_stored,
    deflated,
    dequantise,
    inflated,
    quantise,
    read_weights,
    write_weights,
)

WEIGHTS = {
    "matrix": torch.randn(64, 80, generator=torch.Generator().manual_seed(0)),
    "convolution": torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(1)),
    "small": torch.randn(8, 8, generator=torch.Generator().manual_seed(2)),
    "vector": torch.randn(5000, generator=torch.Generator().manual_seed(3)),
    "count": torch.tensor(7),
}


def round_trip(folder: Path, bits: int, shard_bytes: int = 2**24) -> dict[str, torch.Tensor]:
    names = write_weights(folder, "part", WEIGHTS, bits=bits, shard_bytes=shard_bytes)
    return read_weights(folder / name for name in names)


def test_32_bits_are_exact_and_shards_are_bounded(tmp_path: Path) -> None:
    read = round_trip(tmp_path, 32, shard_bytes=24_000)
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], x) for name, x in WEIGHTS.items())
    assert len(list(tmp_path.iterdir())) == 3
    assert all(path.stat().st_size < 26_000 for path in tmp_path.iterdir())


def test_16_bits_touch_matrices_only(tmp_path: Path) -> None:
    read = round_trip(tmp_path, 16)
    assert torch.equal(read["matrix"], WEIGHTS["matrix"].half().float())
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in ("small", "vector", "count"))


def test_16_bits_keep_bf16_as_it_is(tmp_path: Path) -> None:
    tiny = {"matrix": torch.full((64, 80), 1e-9, dtype=torch.bfloat16)}
    write_weights(tmp_path, "half", tiny, bits=16)
    assert torch.equal(read_weights(tmp_path.iterdir())["matrix"], tiny["matrix"])


def test_8_bits_are_read_as_quantised_and_close(tmp_path: Path) -> None:
    read = round_trip(tmp_path, 8)
    for name in ("matrix", "convolution"):
        assert torch.equal(read[name], dequantise(*quantise(WEIGHTS[name])))
        rows, error = WEIGHTS[name].flatten(1), (read[name] - WEIGHTS[name]).flatten(1)
        assert (error.abs().amax(1) <= rows.abs().amax(1) / 254 * 1.001).all()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in ("small", "vector", "count"))


@pytest.mark.parametrize("bits", [2, 4, 8, 16, 32])
def test_as_stored_is_what_is_read(tmp_path: Path, bits: int) -> None:
    read, told = round_trip(tmp_path, bits), as_stored(WEIGHTS, bits)
    assert read.keys() == told.keys()
    assert all(torch.equal(read[name], x) for name, x in told.items())


@pytest.mark.parametrize(("bits", "share"), [(2, 0.2), (4, 0.46), (6, 0.76)])
def test_few_bits_take_less_than_their_share_and_are_close(tmp_path: Path, bits: int, share: float) -> None:
    read = round_trip(tmp_path, bits)
    for name in ("matrix", "convolution"):
        step = WEIGHTS[name].flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
        error = (read[name] - WEIGHTS[name]).flatten(1).abs()
        assert read[name].shape == WEIGHTS[name].shape and bool((error <= 0.501 * step[:, None]).all())
    sizes = {bits: sum(x.stat().st_size for x in write(tmp_path / str(bits), bits)) for bits in (bits, 8)}
    assert sizes[bits] < share * sizes[8]


def test_levels_are_inflated_to_what_they_were_or_refused() -> None:
    levels = torch.arange(-31, 32).repeat(3)[:187].to(torch.int8).reshape(11, 17)
    assert torch.equal(inflated(deflated(levels), (11, 17)), levels)
    with pytest.raises(BundleError, match=r"shape \(11, 18\) cannot be unpacked"):
        inflated(deflated(levels), (11, 18))
    with pytest.raises(BundleError, match="cannot be unpacked"):
        inflated(deflated(levels)[:-9], (11, 17))


def write(folder: Path, bits: int) -> list[Path]:
    folder.mkdir()
    return [folder / name for name in write_weights(folder, "w", {"m": torch.randn(256, 256)}, bits=bits)]


def test_quantising_twice_changes_nothing_more() -> None:
    once = dequantise(*quantise(WEIGHTS["matrix"]))
    torch.testing.assert_close(dequantise(*quantise(once)), once, atol=0, rtol=1e-6)


def test_a_row_of_zeros_stays_zero() -> None:
    weight = WEIGHTS["matrix"].clone()
    weight[3] = 0
    assert torch.equal(dequantise(*quantise(weight))[3], torch.zeros(80))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "part-00001.safetensors").write_bytes(b"nothing of the sort")
    with pytest.raises(BundleError, match=r"part-00001\.safetensors cannot be read"):
        read_weights([tmp_path / "part-00001.safetensors"])
    with pytest.raises(BundleError, match="9 bits, allowed are 2 to 8, 16 and 32"):
        write_weights(tmp_path, "part", WEIGHTS, bits=9)
