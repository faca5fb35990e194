"""A video at a constant rate and one size, its frames numbered from 0, and what FFmpeg's filters measure on them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from sanawm_env.errors import ConfigError, StorageError

# FFmpeg's filters in order, and where each leaves its figure. SATAVG goes from 0 to 180.
METERS = ("scdet=threshold=100", "vmafmotion", "signalstats", "blurdetect")
FIGURES = {
    "cut": "lavfi.scd.score",
    "motion": "lavfi.vmafmotion.score",
    "saturation": "lavfi.signalstats.SATAVG",
    "blur": "lavfi.blur",
}


@dataclass(frozen=True, kw_only=True)
class Footage:
    """A video file. fps: frames a second of world time. size: height and width that its frames are scaled to."""

    path: Path
    fps: float
    size: tuple[int, int]

    @classmethod
    def open(cls, path: Path, fps: float | None = None, height: int | None = None) -> Footage:
        """The footage of a file; its own rate and size where None. The width follows the height, and is even.

        StorageError: no video, one that has to be turned before it is shown. ConfigError: a rate above its own.
        """
        with _reading(path), av.open(str(path)) as container:
            stream = container.streams.video[0]
            own, first = float(stream.average_rate or 0), next(container.decode(stream))
        if first.rotation:
            raise StorageError(
                f"{path} is to be turned by {first.rotation} degrees; write it upright with ffmpeg first"
            )
        if not own and fps is None:
            raise ConfigError(f"{path} does not say how many frames a second it has; pass fps")
        if fps is not None and not 0 < fps <= (own or fps) + 0.01:
            raise ConfigError(f"fps is {fps}, {path} has {own:g}; give a rate above 0 and up to that")
        if height is not None and not 0 < height <= first.height:
            raise ConfigError(f"height is {height}, {path} has {first.height} rows; give up to that")
        width = first.width if height is None else 2 * round(first.width * height / first.height / 2)
        return cls(path=path, fps=fps or own, size=(height or first.height, width))

    def frames(self, first: int = 0, count: int | None = None) -> Iterator[np.ndarray]:
        """Frames uint8 [H, W, 3], from number `first` on, to the end or `count` of them."""
        last = None if count is None else first + count
        for number, frame in enumerate(self._filtered("format=rgb24")):
            if number == last:
                return
            if number >= first:
                yield frame.to_ndarray()

    def measure(self) -> Iterator[dict[str, float]]:
        """The figures of every frame. cut: how abruptly it follows the one before, 0 to 100. motion: mean change of the
        blurred grey levels, as VMAF has it. saturation: 0 to 180. blur: width of edges, pixels."""
        for frame in self._filtered(*METERS):
            told = frame.metadata
            yield {name: float(told.get(key, "nan")) for name, key in FIGURES.items()}

    def sha256(self) -> str:
        """Of the file."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _filtered(self, *filters: str) -> Iterator[Any]:
        rate = Fraction(self.fps).limit_denominator(1001)
        height, width = self.size
        chain = (f"fps=fps={rate.numerator}/{rate.denominator}", f"scale=w={width}:h={height}:flags=area", *filters)
        with _reading(self.path), av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            graph = _graph(stream, chain)
            for frame in container.decode(stream):
                graph.push(frame)
                yield from _pulled(graph)
            graph.push(None)
            yield from _pulled(graph)


class _reading:
    """What PyAV raises becomes one StorageError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (av.error.FFmpegError, IndexError, StopIteration)) or type(error) is OSError:
            raise StorageError(f"{self.path} cannot be read as a video ({error}); give another file") from error


def _graph(stream: Any, chain: tuple[str, ...]) -> Any:
    graph = av.filter.Graph()
    nodes = [graph.add_buffer(template=stream)]
    for text in chain:
        name, _, options = text.partition("=")
        nodes.append(graph.add(name, options or None))
    nodes.append(graph.add("buffersink"))
    for before, after in itertools.pairwise(nodes):
        before.link_to(after)
    graph.configure()
    return graph


def _pulled(graph: Any) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
