"""Weights on disk: sharded safetensors, large matrices in 8 bits with one scale an output row where asked.

A matrix of 8 bits is stored as int8 [rows, ...] under its own name and fp32 [rows] under its name + ".row_scale".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sanawm_env.errors import BundleError

SHARD_BYTES = 15 * 2**20
SMALLEST_MATRIX = 4096
SCALE = ".row_scale"


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 like weight, fp32 scale [rows]): each row symmetric about zero, its largest value at 127."""
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(1) / 127
    # A row of zeros keeps scale 1, so that it divides and multiplies back to zeros.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    levels = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return levels.reshape(weight.shape), scale


def dequantise(levels: Tensor, scale: Tensor) -> Tensor:
    """fp32 weights of `quantise`'s result."""
    return (levels.float().flatten(1) * scale[:, None]).reshape(levels.shape)


def write_weights(
    folder: Path, stem: str, weights: Mapping[str, Tensor], *, bits: int = 32, shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Writes `stem`-00001.safetensors and so on below `folder`; returns the file names.

    bits: of tensors with at least two dimensions and 4,096 elements: 32 (as they are), 16 (fp16) or 8. All others stay
    as they are.
    """
    names: list[str] = []
    for shard in _shards(_encoded(weights, bits), shard_bytes):
        names.append(f"{stem}-{len(names) + 1:05d}.safetensors")
        save_file(shard, folder / names[-1])
        (folder / names[-1]).chmod(0o644)  # safetensors writes files that only their owner can read
    return names


def read_weights(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Tensors of all shards on the CPU, 8-bit and fp16 ones as fp32. BundleError names a file that cannot be read."""
    stored: dict[str, Tensor] = {}
    for path in paths:
        try:
            stored.update(load_file(path))
        except (SafetensorError, OSError) as error:
            remedy = "install or download the bundle again."
            raise BundleError(f"weight file {path} cannot be read ({error}); {remedy}") from error
    return _all_decoded(stored)


def as_stored(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """What reading gives after writing with `bits`, without the files: on the CPU, to measure what the bits cost."""
    return _all_decoded(_encoded(weights, bits))


def _all_decoded(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _decoded(name, x, stored) for name, x in stored.items() if not name.endswith(SCALE)}


def _decoded(name: str, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    if x.dtype == torch.int8 and name + SCALE in stored:
        return dequantise(x, stored[name + SCALE])
    return x.float() if x.dtype == torch.float16 else x


def _encoded(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    if bits not in (8, 16, 32):
        raise BundleError(f"weights asked for in {bits} bits, allowed are 8, 16 and 32.")
    encoded: dict[str, Tensor] = {}
    for name, weight in weights.items():
        weight = weight.detach().to("cpu").contiguous()
        is_matrix = weight.ndim >= 2 and weight.numel() >= SMALLEST_MATRIX and weight.is_floating_point()
        if is_matrix and bits == 8:
            encoded[name], encoded[name + SCALE] = quantise(weight)
        else:
            encoded[name] = weight.half() if is_matrix and bits == 16 else weight.clone()
    return encoded


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
