"""Weights on disk: sharded safetensors, large matrices in 2 to 8 bits with one scale an output row where asked.

A matrix of few bits is stored as the zlib stream of int8 [rows, ...] under its own name, which takes less than its
bits, fp32 [rows] under its name + ".row_scale" and its shape under its name + ".shape".
Foreign checkpoints are opened, checked and read one tensor at a time (`StoredWeights`, `differences`, `fill`).
"""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sanawm_env.errors import BundleError

Shape = tuple[int, ...]
SHARD_BYTES = 15 * 2**20
LISTED = 10
DAMAGED = "it is truncated or damaged: copy or download it again."
SMALLEST_MATRIX = 4096
SCALE, SHAPE = ".row_scale", ".shape"


def quantise(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """(int8 like weight, fp32 scale [rows]): each row symmetric about zero, its largest value at 127, or at 7 with 4
    bits.
    """
    largest = 2 ** (bits - 1) - 1
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(1) / largest
    # A row of zeros keeps scale 1, so that it divides and multiplies back to zeros.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    levels = (rows / scale[:, None]).round().clamp(-largest, largest).to(torch.int8)
    return levels.reshape(weight.shape), scale


def deflated(levels: Tensor) -> Tensor:
    """uint8 [bytes] of int8 levels: most are small, which few bits tell, and nothing repeats, so that zlib looks for
    no repetitions.
    """
    packer = zlib.compressobj(level=9, strategy=zlib.Z_HUFFMAN_ONLY)
    stream = packer.compress(levels.contiguous().numpy().tobytes()) + packer.flush()
    return torch.frombuffer(bytearray(stream), dtype=torch.uint8)


def inflated(stored: Tensor, shape: Shape) -> Tensor:
    """The int8 levels of `deflated`. BundleError: it is none, or of another shape."""
    try:
        levels = torch.frombuffer(bytearray(zlib.decompress(stored.numpy().tobytes())), dtype=torch.int8)
        return levels.reshape(shape)
    except (zlib.error, RuntimeError, ValueError) as error:
        raise BundleError(f"a matrix of shape {shape} cannot be unpacked ({error}); {DAMAGED}") from error


def dequantise(levels: Tensor, scale: Tensor) -> Tensor:
    """fp32 weights of `quantise`'s result."""
    return (levels.float().flatten(1) * scale[:, None]).reshape(levels.shape)


def write_weights(
    folder: Path, stem: str, weights: Mapping[str, Tensor], *, bits: int = 32, shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Writes `stem`-00001.safetensors and so on below `folder`; returns the file names.

    bits: of what `is_matrix`: 32 (as they are), 16 (fp32 as fp16; bf16 as it is), or 2 to 8. All others stay as they
    are.
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
    return _all_decoded(dict(_encoded(weights, bits)))


@dataclass(frozen=True)
class StoredWeights:
    """Tensors in files: their shapes by name, and `read(name)`, which maps one of them from disk on the CPU."""

    shapes: dict[str, Shape]
    read: Callable[[str], Tensor]

    def renamed(self, stored: Mapping[str, str]) -> StoredWeights:
        """The tensors of `stored`, which maps the new name of each to its name here."""
        return StoredWeights(
            {new: self.shapes[old] for new, old in stored.items()}, lambda name: self.read(stored[name])
        )


def open_safetensors(paths: Iterable[Path]) -> StoredWeights:
    """All tensors of some files; only headers are read. BundleError names a file that cannot be read, or two files that
    hold one tensor.
    """
    home: dict[str, Any] = {}
    where: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    for path in paths:
        try:
            file = safe_open(path, framework="pt")
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise BundleError(f"weight file {path} cannot be read ({error}); {DAMAGED}") from error
        for name in found:
            if name in home:
                raise BundleError(f"tensor {name} is both in {where[name]} and in {path}; keep one of the two files.")
            home[name], where[name] = file, path
        shapes |= found
    return StoredWeights(shapes, lambda name: home[name].get_tensor(name))


def open_pickled(path: Path, entry: str) -> StoredWeights:
    """The tensors of a file of `torch.save`: of its group `entry` where there is one, else of its top level.

    No pickled object but tensors and plain containers is ever built. BundleError: any other object, a file that cannot
    be read, or one without tensors.
    """
    try:
        # Only the zip format of torch.save can be mapped; older files are read whole.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a pickle stream that is cut or forged raises whatever its next byte leads to
        reason = " ".join(str(error).split())
        refused = re.search(r"GLOBAL (\S+)", reason) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise BundleError(
                f"weight file {path} holds a pickled object that is not a tensor ({refused[1]}), which could run code; "
                "allowed are tensors in plain containers: take the file from the original repository."
            ) from error
        raise BundleError(f"weight file {path} cannot be read ({reason:.120}); {DAMAGED}") from error
    group = loaded.get(entry, loaded) if isinstance(loaded, Mapping) else {}
    tensors = {name: x for name, x in group.items() if isinstance(x, Tensor)} if isinstance(group, Mapping) else {}
    if not tensors:
        raise BundleError(f"weight file {path} holds no tensors, neither under {entry!r} nor at its top; {DAMAGED}")
    return StoredWeights({name: tuple(x.shape) for name, x in tensors.items()}, tensors.__getitem__)


def shapes_of(module: nn.Module) -> dict[str, Shape]:
    """Shape of every tensor that a module's weights hold."""
    return {name: tuple(x.shape) for name, x in module.state_dict().items()}


def bytes_of(module: nn.Module) -> int:
    """Bytes that a module's weights take in memory."""
    return sum(x.nbytes for x in module.state_dict().values())


def differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """What keeps weights from fitting: missing, unexpected and wrong-shaped tensors, how many and the first 10 of each;
    empty where they fit.
    """
    wrong = [
        f"{name} has {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "wrong shape": wrong,
    }
    return "; ".join(f"{kind} ({len(names)}): {listed(names)}" for kind, names in kinds.items() if names)


def listed(names: list[str]) -> str:
    """The first 10 names, and a sign that there are more."""
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def fill(
    module: nn.Module,
    read: Callable[[str], Tensor],
    device: torch.device,
    dtype: torch.dtype,
    *,
    exact: Collection[str] = (),
) -> None:
    """Gives a module of the meta device the weights `read` returns by name, one at a time, as `dtype` on `device`.

    Beside the module itself never more than one tensor is in memory. exact: names of tensors that keep the module's own
    format; BundleError when one of them is read in another.
    """
    weights = {}
    for name, empty in module.state_dict().items():
        kept = name in exact or not empty.is_floating_point()
        x = read(name)
        if name in exact and x.dtype != empty.dtype:
            found, expected = (str(kind).removeprefix("torch.") for kind in (x.dtype, empty.dtype))
            raise BundleError(f"tensor {name} holds {found}, expected {expected}; make or download the bundle again.")
        weights[name] = x.to(device, empty.dtype if kept else dtype, copy=True)
    module.load_state_dict(weights, assign=True)


def _all_decoded(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _decoded(name, x, stored) for name, x in stored.items() if not name.endswith((SCALE, SHAPE))}


def _decoded(name: str, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    if name + SCALE in stored:
        shape = tuple(stored[name + SHAPE].tolist()) if name + SHAPE in stored else tuple(x.shape)
        # Bundles of earlier versions hold 8 bits as they are.
        levels = x if x.dtype == torch.int8 else inflated(x, shape)
        return dequantise(levels, stored[name + SCALE])
    return x.float() if x.dtype == torch.float16 else x


def is_matrix(weight: Tensor) -> bool:
    """Whether a tensor is stored in fewer bits where asked: two dimensions and 4,096 elements or more, and wider than
    what is quantised for the run already.
    """
    wide = weight.is_floating_point() and weight.itemsize > 1
    return weight.ndim >= 2 and weight.numel() >= SMALLEST_MATRIX and wide


def _encoded(weights: Mapping[str, Tensor], bits: int) -> Iterator[tuple[str, Tensor]]:
    if bits not in (*range(2, 9), 16, 32):
        raise BundleError(f"weights asked for in {bits} bits, allowed are 2 to 8, 16 and 32.")
    for name, weight in weights.items():
        weight = weight.detach().to("cpu").contiguous()
        if is_matrix(weight) and bits <= 8:
            levels, scale = quantise(weight, bits)
            yield name, deflated(levels)
            yield name + SCALE, scale
            yield name + SHAPE, torch.tensor(weight.shape)
        else:
            narrow = is_matrix(weight) and bits == 16 and weight.dtype != torch.bfloat16
            yield name, weight.half() if narrow else weight.clone()


def _shards(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    """Consecutive tensors of up to `limit` bytes together, made only when they are asked for."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    if shard:
        yield shard
