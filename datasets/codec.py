"""Zarr codec "sanawm.jpeg": a chunk of one RGB picture is stored as one JPEG file.

Registered as an entry point, so that any Zarr v3 reader finds it once this package is installed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, Self

import imagecodecs
import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration

from sanawm_env.errors import StorageError

NAME = "sanawm.jpeg"


@dataclasses.dataclass(frozen=True)
class Jpeg(ArrayBytesCodec):
    """Chunks [1, H, W, 3] uint8 as JPEG; colour is kept at full resolution because small coloured objects matter."""

    quality: int = 95
    is_fixed_size = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise StorageError(f"JPEG quality is {self.quality}, expected 1 to 100; 95 is the default")

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        _, configuration = parse_named_configuration(data, NAME, require_configuration=False)
        return cls(**(configuration or {}))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, JSON]:
        return {"name": NAME, "configuration": {"quality": self.quality}}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        if len(shape) != 4 or shape[-1] != 3 or dtype.to_native_dtype() != np.uint8:
            raise StorageError(f"{NAME} stores uint8 pictures [time, height, width, 3], not {dtype} {shape}")

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        pictures = np.ascontiguousarray(chunk_data.as_numpy_array())
        if pictures.shape[0] != 1:
            raise StorageError(f"{NAME} takes chunks of 1 picture, not {pictures.shape[0]}; set chunks=(1, H, W, 3)")
        encoded = await asyncio.to_thread(encode, pictures[0], self.quality)
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        picture = await asyncio.to_thread(imagecodecs.jpeg8_decode, chunk_data.to_bytes())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(picture.reshape(chunk_spec.shape))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        # Zarr asks for this name where a size cannot be told before encoding; its shards then keep an index instead.
        raise NotImplementedError("the size of a JPEG picture depends on what it shows")


def encode(picture: np.ndarray, quality: int = 95) -> bytes:
    """JPEG file of an RGB picture [H, W, 3] uint8, colour at full resolution."""
    return bytes(imagecodecs.jpeg8_encode(picture, level=quality, subsampling="444"))
