"""Zarr codecs "sanawm.jpeg", "sanawm.webp", "sanawm.jpegxl": a chunk of one RGB picture is stored as one picture file.

Registered as entry points, so that any Zarr v3 reader finds them once this package is installed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, Self

import imagecodecs
import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration
from zarr.registry import register_codec

from sanawm_env.errors import StorageError


@dataclasses.dataclass(frozen=True)
class PictureCodec(ArrayBytesCodec):
    """Chunks [1, H, W, 3] uint8, each as a file of its own."""

    name: ClassVar[str]
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        _, configuration = parse_named_configuration(data, cls.name, require_configuration=False)
        return cls(**(configuration or {}))

    def to_dict(self) -> dict[str, JSON]:
        return {"name": self.name, "configuration": dataclasses.asdict(self)}

    @abstractmethod
    def encode_picture(self, picture: np.ndarray) -> bytes:
        """File of a picture [H, W, 3]."""

    @abstractmethod
    def decode_picture(self, content: bytes, out: np.ndarray | None = None) -> np.ndarray:
        """The picture [H, W, 3] of a file, in `out` if that is given. ValueError or RuntimeError if it is none."""

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        if len(shape) != 4 or shape[-1] != 3 or dtype.to_native_dtype() != np.uint8:
            raise StorageError(f"{self.name} stores uint8 pictures [time, height, width, 3], not {dtype} {shape}")

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        pictures = np.ascontiguousarray(chunk_data.as_numpy_array())
        if pictures.shape[0] != 1:
            raise StorageError(
                f"{self.name} takes chunks of 1 picture, not {pictures.shape[0]}; set chunks=(1, H, W, 3)"
            )
        encoded = await asyncio.to_thread(self.encode_picture, pictures[0])
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        picture = await asyncio.to_thread(self.decode_picture, chunk_data.to_bytes())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(picture.reshape(chunk_spec.shape))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        # Zarr asks for this name where a size cannot be told before encoding; its shards then keep an index instead.
        raise NotImplementedError("the size of a picture file depends on what it shows")


@dataclasses.dataclass(frozen=True)
class Jpeg(PictureCodec):
    """Colour is kept at full resolution because small coloured objects matter."""

    name: ClassVar[str] = "sanawm.jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise StorageError(f"JPEG quality is {self.quality}, expected 1 to 100; 95 is the default")

    def encode_picture(self, picture: np.ndarray) -> bytes:
        return encode(picture, self.quality)

    def decode_picture(self, content: bytes, out: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(imagecodecs.jpeg8_decode(content, out=out))


@dataclasses.dataclass(frozen=True)
class WebP(PictureCodec):
    """Smaller than JPEG and slower. quality 0 is lossless."""

    name: ClassVar[str] = "sanawm.webp"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= 100:
            raise StorageError(f"WebP quality is {self.quality}, expected 1 to 100, or 0 for lossless")

    def encode_picture(self, picture: np.ndarray) -> bytes:
        return bytes(imagecodecs.webp_encode(picture, level=self.quality or None, lossless=not self.quality))

    def decode_picture(self, content: bytes, out: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(imagecodecs.webp_decode(content, out=out))


@dataclasses.dataclass(frozen=True)
class JpegXl(PictureCodec):
    """Lossless."""

    name: ClassVar[str] = "sanawm.jpegxl"

    def encode_picture(self, picture: np.ndarray) -> bytes:
        return bytes(imagecodecs.jpegxl_encode(picture, lossless=True))

    def decode_picture(self, content: bytes, out: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(imagecodecs.jpegxl_decode(content, out=out))


def picture_codec(name: str, quality: int) -> PictureCodec:
    """The codec "jpeg", "webp" or "jpegxl"; the last one has no quality."""
    if name == "jpegxl":
        return JpegXl()
    return Jpeg(quality) if name == "jpeg" else WebP(quality)


def encode(picture: np.ndarray, quality: int = 95) -> bytes:
    """JPEG file of an RGB picture [H, W, 3] uint8, colour at full resolution."""
    return bytes(imagecodecs.jpeg8_encode(picture, level=quality, subsampling="444"))


for _codec in (Jpeg, WebP, JpegXl):  # also where the package runs without being installed
    register_codec(_codec.name, _codec)
