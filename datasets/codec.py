"""Zarr codecs of RGB pictures: "sanawm.jpeg", "sanawm.webp" and "sanawm.jpegxl" store a chunk of one picture as one
file, "sanawm.av1" a chunk of any number as one block.

Registered as entry points, so that any Zarr v3 reader finds them once this package is installed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import imagecodecs
import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration
from zarr.registry import register_codec

from sanawm_env.errors import StorageError

AV1_REMEDY = "install its wheel (pip install --force-reinstall imagecodecs), or choose another picture_codec"
SPEED = 8  # of the AV1 encoder, 0 (slowest) to 10
DATED = (b"mvhd\1", b"tkhd\1", b"mdhd\1")  # boxes of an AVIF file in which two times of 8 bytes follow after 3 bytes


@dataclasses.dataclass(frozen=True)
class PictureCodec(ArrayBytesCodec):
    """Chunks [n, H, W, 3] uint8, each as a file of its own."""

    name: ClassVar[str]
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        _, configuration = parse_named_configuration(data, cls.name, require_configuration=False)
        return cls(**(configuration or {}))

    def to_dict(self) -> dict[str, JSON]:
        return {"name": self.name, "configuration": dataclasses.asdict(self)}

    @abstractmethod
    def rows_per_chunk(self, rows_per_file: int) -> int:
        """How many of the pictures of a store's file are encoded together."""

    @abstractmethod
    def encode_pictures(self, pictures: np.ndarray) -> bytes:
        """File of pictures [n, H, W, 3]."""

    @abstractmethod
    def decode_pictures(self, content: bytes, out: np.ndarray) -> None:
        """Puts the pictures of a file into `out` [n, H, W, 3]. ValueError or RuntimeError if it does not hold them."""

    def coded(self, pictures: np.ndarray) -> np.ndarray:
        """What is read where pictures [n, H, W, 3] were written as a chunk."""
        out = np.empty(pictures.shape, np.uint8)
        self.decode_pictures(self.encode_pictures(pictures), out)
        return out

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        if len(shape) != 4 or shape[-1] != 3 or dtype.to_native_dtype() != np.uint8:
            raise StorageError(f"{self.name} stores uint8 pictures [time, height, width, 3], not {dtype} {shape}")

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        pictures = np.ascontiguousarray(chunk_data.as_numpy_array())
        encoded = await asyncio.to_thread(self.encode_pictures, pictures)
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pictures = np.empty(chunk_spec.shape, np.uint8)
        await asyncio.to_thread(self.decode_pictures, chunk_data.to_bytes(), pictures)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pictures)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        # Zarr asks for this name where a size cannot be told before encoding; its shards then keep an index instead.
        raise NotImplementedError("the size of a picture file depends on what it shows")


@dataclasses.dataclass(frozen=True)
class SinglePicture(PictureCodec):
    """Chunks of one picture, so that each can be read alone."""

    def rows_per_chunk(self, rows_per_file: int) -> int:
        return 1

    @abstractmethod
    def encode_picture(self, picture: np.ndarray) -> bytes:
        """File of a picture [H, W, 3]."""

    @abstractmethod
    def decode_picture(self, content: bytes, out: np.ndarray) -> None:
        """Puts the picture of a file into `out` [H, W, 3]. ValueError or RuntimeError if it is none."""

    def encode_pictures(self, pictures: np.ndarray) -> bytes:
        if len(pictures) != 1:
            raise StorageError(f"{self.name} takes chunks of 1 picture, not {len(pictures)}; set chunks=(1, H, W, 3)")
        return self.encode_picture(pictures[0])

    def decode_pictures(self, content: bytes, out: np.ndarray) -> None:
        self.decode_picture(content, out.reshape(out.shape[1:]))


@dataclasses.dataclass(frozen=True)
class Jpeg(SinglePicture):
    """Colour is kept at full resolution because small coloured objects matter."""

    name: ClassVar[str] = "sanawm.jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise StorageError(f"JPEG quality is {self.quality}, expected 1 to 100; 95 is the default")

    def encode_picture(self, picture: np.ndarray) -> bytes:
        return encode(picture, self.quality)

    def decode_picture(self, content: bytes, out: np.ndarray) -> None:
        imagecodecs.jpeg8_decode(content, out=out)


@dataclasses.dataclass(frozen=True)
class WebP(SinglePicture):
    """Smaller than JPEG and slower. quality 0 is lossless."""

    name: ClassVar[str] = "sanawm.webp"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= 100:
            raise StorageError(f"WebP quality is {self.quality}, expected 1 to 100, or 0 for lossless")

    def encode_picture(self, picture: np.ndarray) -> bytes:
        return bytes(imagecodecs.webp_encode(picture, level=self.quality or None, lossless=not self.quality))

    def decode_picture(self, content: bytes, out: np.ndarray) -> None:
        imagecodecs.webp_decode(content, out=out)


@dataclasses.dataclass(frozen=True)
class JpegXl(SinglePicture):
    """Lossless."""

    name: ClassVar[str] = "sanawm.jpegxl"

    def encode_picture(self, picture: np.ndarray) -> bytes:
        return bytes(imagecodecs.jpegxl_encode(picture, lossless=True))

    def decode_picture(self, content: bytes, out: np.ndarray) -> None:
        imagecodecs.jpegxl_decode(content, out=out)


@dataclasses.dataclass(frozen=True)
class Av1(PictureCodec):
    """A block of pictures as an AVIF file, of which each builds on others: small, and decoded as a whole.

    quality: 1 to 99, 0 is lossless. Colour is kept at full resolution, so that sides may be odd. Equal pictures give
    equal bytes on one machine.
    """

    name: ClassVar[str] = "sanawm.av1"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= 99:
            raise StorageError(f"AV1 quality is {self.quality}, expected 1 to 99, or 0 for lossless")
        if not imagecodecs.AVIF.available:
            raise StorageError(f"the imagecodecs that is installed has no AV1; {AV1_REMEDY}")

    def rows_per_chunk(self, rows_per_file: int) -> int:
        return rows_per_file

    def encode_pictures(self, pictures: np.ndarray) -> bytes:
        try:
            content = imagecodecs.avif_encode(
                pictures, self.quality or 100, speed=SPEED, pixelformat="444", codec="aom", numthreads=1
            )
        except RuntimeError as error:
            raise StorageError(f"AV1 cannot encode pictures {pictures.shape} ({error}); {AV1_REMEDY}") from error
        return _undated(bytes(content))

    def decode_pictures(self, content: bytes, out: np.ndarray) -> None:
        pictures = imagecodecs.avif_decode(content, numthreads=1)
        pictures = pictures.reshape(-1, *pictures.shape[-3:])  # a file of one has no axis of time
        if pictures.shape != out.shape:
            raise ValueError(f"it holds pictures {pictures.shape}, not {out.shape}")
        out[...] = pictures


def _undated(content: bytes) -> bytes:
    """The AVIF file without the time at which it was made, else equal pictures would differ in their bytes."""
    plain, data = bytearray(content), content.index(b"mdat")
    for name in DATED:
        place = content.find(name, 0, data)
        if place >= 0:  # a file of one picture has none
            start = place + len(name) + 3
            plain[start : start + 16] = bytes(16)
    return bytes(plain)


def picture_codec(name: str, quality: int) -> PictureCodec:
    """The codec "jpeg", "webp", "jpegxl" or "av1"; JPEG-XL has no quality. StorageError where the quality is none of
    its own, or what it needs is not installed."""
    if name == "jpegxl":
        return JpegXl()
    kinds: dict[str, Callable[[int], PictureCodec]] = {"jpeg": Jpeg, "webp": WebP, "av1": Av1}
    return kinds[name](quality)


def encode(picture: np.ndarray, quality: int = 95) -> bytes:
    """JPEG file of an RGB picture [H, W, 3] uint8, colour at full resolution."""
    return bytes(imagecodecs.jpeg8_encode(picture, level=quality, subsampling="444"))


for _codec in (Jpeg, WebP, JpegXl, Av1):  # also where the package runs without being installed
    register_codec(_codec.name, _codec)
