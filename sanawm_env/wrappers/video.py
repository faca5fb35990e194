"""Pictures to video: an MP4 file to look at, and AV1 packets for a Rerun recording."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from sanawm_env.datasets.atomic import appearing
from sanawm_env.datasets.video import CLOCK, Mp4Writer, video_frame
from sanawm_env.errors import SceneError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packet:
    """One compressed frame. index: which frame of the input it shows. keyframe: whether decoding can start here."""

    index: int
    data: bytes
    keyframe: bool


def write_mp4(path: Path | str, frames: np.ndarray, fps: float, *, scale: int = 1) -> None:
    """H.264 file of frames uint8 [T, H, W, 3], each pixel `scale` wide and high. StorageError on a full disk."""
    path = Path(path)
    _check(frames)
    # Players want even sides; the last row or column is left out otherwise.
    height, width = (side * scale // 2 * 2 for side in frames.shape[1:3])
    with appearing(path) as draft, Mp4Writer(draft, fps, (height, width)) as video:
        for picture in frames:
            video.add(picture.repeat(scale, axis=0).repeat(scale, axis=1)[:height, :width])


def encode_av1(frames: np.ndarray, fps: float, *, keyframe_every: int = 32, quality: int = 26) -> list[Packet]:
    """AV1 packets of frames uint8 [T, H, W, 3], one a frame, in order and without reordering; quality 1 (best) to 63.

    Decoding can start at every `keyframe_every`-th frame, the first one included, so packets of several calls follow
    each other in one stream. The Rerun viewer decodes AV1 by itself, H.264 only with an FFmpeg beside it.
    """
    _check(frames)
    os.environ.setdefault("SVT_LOG", "1")  # errors only; the encoder prints its settings otherwise
    context = av.CodecContext.create("libsvtav1", "w")
    context.width, context.height, context.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
    context.framerate = Fraction(fps).limit_denominator(1000)
    # pred-struct=1: low delay, so that packets come in the order of the frames.
    # preset 10: half the time of 8 at 128x160 for a fifth more bytes.
    told = f"pred-struct=1:keyint={keyframe_every}:lp=1"
    context.options = {"preset": "10", "crf": str(quality), "svtav1-params": told}
    return [
        Packet(index=round(packet.pts * fps / CLOCK), data=bytes(packet), keyframe=bool(packet.is_keyframe))
        for packet in _encoded(context, frames, fps)
    ]


def _encoded(encoder: Any, frames: np.ndarray, fps: float) -> Iterator[Any]:
    encoder.time_base = Fraction(1, CLOCK)
    for index, picture in enumerate(frames):
        yield from encoder.encode(video_frame(picture, index, fps))
    yield from encoder.encode(None)


def _check(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise SceneError(f"video of {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3] with T of 1 or more")
