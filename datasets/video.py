"""MP4 files frame by frame: written and read without more than a few frames in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np

from sanawm_env.errors import StorageError

# A player shows a time base of 1/90000 s exactly for every usual frame rate.
CLOCK = 90_000
QUALITY = {"crf": "16", "preset": "veryfast"}


class Mp4Writer:
    """An H.264 file of frames uint8 [H, W, 3] at a constant rate; complete when its `with` block ends without an error.

    size: height, width. Chroma has half the resolution, as players expect, unless a side is odd. options: of the
    encoder, beside `QUALITY`. StorageError: a frame of another size or dtype, or an encoder that fails.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int], options: Mapping[str, str] | None = None) -> None:
        self.fps, self.size = fps, size
        self.frames = self.bytes = 0
        with storage_errors():
            self._container = av.open(str(path), "w", format="mp4")
        stream: Any = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        stream.options = {**QUALITY, **(options or {})}
        stream.time_base = Fraction(1, CLOCK)
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with storage_errors() if error is None else contextlib.suppress(av.error.FFmpegError), self._container:
            if error is None and self.frames:
                self._mux(self._stream.encode(None))

    def add(self, picture: np.ndarray, *, keyframe: bool = False) -> None:
        """The next frame. keyframe: decoding can start at it."""
        if picture.dtype != np.uint8 or picture.shape != (*self.size, 3):
            raise StorageError(f"frame is {picture.dtype} {picture.shape}, expected uint8 {(*self.size, 3)}")
        frame = video_frame(picture, self.frames, self.fps)
        if keyframe:
            frame.pict_type = av.video.frame.PictureType.I
        with storage_errors():
            self._mux(self._stream.encode(frame))
        self.frames += 1

    def _mux(self, packets: list[Any]) -> None:
        self._container.mux(packets)
        self.bytes += sum(packet.size for packet in packets)


def video_frame(picture: np.ndarray, index: int, fps: float) -> Any:
    """Picture number `index` of a video, uint8 [H, W, 3], as an encoder takes it."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame.pts, frame.time_base = round(index * CLOCK / fps), Fraction(1, CLOCK)
    return frame


def read_frames(path: Path, start: float = 0.0) -> Iterator[np.ndarray]:
    """The frames uint8 [H, W, 3] of a video from `start` seconds on, one after the other.

    StorageError where the file is missing or cannot be decoded.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            first = round(start / float(stream.time_base or 1)) + (stream.start_time or 0)
            if start:
                container.seek(first, stream=stream)  # to the keyframe at or before it
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts >= first:
                    yield frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise StorageError(f"{path} cannot be read as a video ({error}); restore it from a copy") from error


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """PyAV reports some write errors by classes of its own; all of them become OSErrors, as of a full disk."""
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise StorageError(f"the video encoder failed: {error}; nothing was written") from error
