"""A recording in Rerun: where cameras were, what they saw and the numbers beside it, on one time line.

`Recording` takes rollouts piece by piece, from a wrapper while a world runs or from a finished episode all at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import imagecodecs
import numpy as np
import rerun as rr

from sanawm_env.datasets.codec import encode
from sanawm_env.errors import SceneError
from sanawm_env.wrappers.rerun_layout import TIMELINE, Contents, camera, layout, plot, video
from sanawm_env.wrappers.rerun_sink import Sink
from sanawm_env.wrappers.video import encode_av1

# Rooms and every pose of the package are OpenCV-like: x right, y down, z forward.
AXES = rr.ViewCoordinates.RDF
COLOURS = ((66, 133, 244), (244, 160, 0), (15, 157, 88), (219, 68, 55), (170, 90, 220), (0, 172, 193), (130, 130, 130))
PATH_POINTS = 256  # of a path, which is drawn anew with every piece
COMMANDED = (219, 68, 55)
NOWHERE = np.zeros((0, 3))
MILLIMETRES = 1000
FRAME = "frame"
CODECS = ("av1", "jpeg")
INFO, WARN = str(rr.TextLogLevel.INFO), str(rr.TextLogLevel.WARN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something worth a line of text. row: of the rollout. level: as of `rr.TextLogLevel`."""

    row: int
    text: str
    level: str = INFO


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """Frames of one world in a row, a whole episode or a piece of it; T rows.

    poses: [T, 4, 4] camera to world, metres, where the camera was. commanded: the same where the actions as given would
    have led it, or None. intrinsics: [4], fx fy cx cy in pixels. frames: uint8 [T, H, W, 3]. depth: float32 [T, H, W]
    metres along the optical axis, or None. videos: uint8 [T, H, W, 3] by name, what else is to be seen beside the
    frames from the first row on. plots: values by plot and series, of the last rows, as many as there are. events: in
    any order.
    """

    poses: np.ndarray
    intrinsics: np.ndarray
    frames: np.ndarray
    depth: np.ndarray | None = None
    commanded: np.ndarray | None = None
    videos: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    plots: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    events: Sequence[Event] = ()

    def __len__(self) -> int:
        return len(self.poses)


class Recording:
    """An open recording. SceneError for an unknown codec.

    sink: where it goes. contents: what it will show, for its layout. fps: frames a second of world time.
    frames_per_chunk: a video can be decoded from every such frame on. codec: "av1", small files, or "jpeg", each
    picture by itself.
    """

    def __init__(
        self,
        sink: Sink,
        contents: Contents,
        *,
        fps: float,
        frames_per_chunk: int,
        codec: str = "av1",
    ) -> None:
        if codec not in CODECS:
            raise SceneError(f"codec of a recording is {codec!r}, allowed is one of {', '.join(CODECS)}; change it.")
        self.fps, self.frames_per_chunk, self.codec = fps, frames_per_chunk, codec
        self._sink, self._stream, self._contents = sink, sink.stream, contents
        self._next: dict[str, int] = {}
        self._paths: dict[str, np.ndarray] = {}
        self._met: set[str] = set()
        self._stream.send_blueprint(layout(contents), make_active=True, make_default=True)
        self._stream.log("world", AXES, static=True, strict=True)
        if contents.text:
            notes = rr.TextDocument(contents.text, media_type="text/markdown")
            self._stream.log("notes", notes, static=True, strict=True)

    def append(self, rollout: Rollout, track: str = "world", *, fresh: bool = False) -> None:
        """The next frames of a track. fresh: an episode begins with them, whose path is drawn by itself."""
        rows = np.arange(len(rollout)) + self._next.get(track, 0)
        self._camera(track, rollout, rows, fresh=fresh)
        for name, poses in (("path", rollout.poses), ("commanded", rollout.commanded)):
            if poses is not None:
                self._path(track, name, poses, rows, fresh=fresh)
        self._pictures(f"{camera(track)}/image", rollout.frames, rows)
        for name, frames in rollout.videos.items():
            self._pictures(video(name), frames, rows[: len(frames)])
        if rollout.depth is not None:
            self._depth(f"{camera(track)}/depth", rollout.depth, rows)
        for group, series in rollout.plots.items():
            self._plot(track, group, series, rows)
        for event in rollout.events:
            self._log(rows[event.row], f"events/{track}", rr.TextLog(event.text, level=event.level))
        self._next[track] = int(rows[-1]) + 1

    def points(self, name: str, positions: np.ndarray, colours: np.ndarray) -> None:
        """Points of the world that are there all the time. positions: [N, 3] metres. colours: uint8 [N, 3]."""
        cloud = rr.Points3D(positions, colors=colours, radii=0.012)
        self._stream.log(rr.new_entity_path(["world", name]), cloud, static=True, strict=True)

    def flush(self) -> None:
        """Hands over what has been appended. StorageError where a file cannot be written."""
        self._sink.flush()

    def close(self) -> None:
        """Hands over the rest; may be called again."""
        self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, entity: str, rows: np.ndarray, columns: Any) -> None:
        times = [rr.TimeColumn(TIMELINE, duration=rows / self.fps), rr.TimeColumn(FRAME, sequence=rows)]
        self._stream.send_columns(entity, times, columns, strict=True)

    def _log(self, row: int, entity: str, shown: Any) -> None:
        self._stream.set_time(TIMELINE, duration=float(row / self.fps))
        self._stream.set_time(FRAME, sequence=int(row))
        self._stream.log(entity, shown, strict=True)

    def _camera(self, track: str, rollout: Rollout, rows: np.ndarray, *, fresh: bool) -> None:
        moved = rr.Transform3D.columns(translation=rollout.poses[:, :3, 3], mat3x3=rollout.poses[:, :3, :3])
        self._send(camera(track), rows, moved)
        if fresh or rows[0] == 0:
            self._log(rows[0], camera(track), _pinhole(rollout.intrinsics, rollout.frames.shape[1:3]))

    def _path(self, track: str, name: str, poses: np.ndarray, rows: np.ndarray, *, fresh: bool) -> None:
        entity = rr.new_entity_path(["world", track, name])
        before = self._paths.get(entity, NOWHERE)
        line = np.concatenate([NOWHERE if fresh else before, poses[:, :3, 3]])
        while len(line) > PATH_POINTS:
            line = np.concatenate([line[:-1:2], line[-1:]])
        self._paths[entity] = line
        integrated = name == "path"
        colour = COLOURS[self._number(track)] if integrated else COMMANDED
        # The commanded path is drawn thinner, so that it is seen where it leaves the other.
        self._log(rows[0], entity, rr.LineStrips3D([line], colors=[colour], radii=0.012 if integrated else 0.008))

    def _pictures(self, entity: str, frames: np.ndarray, rows: np.ndarray) -> None:
        if self.codec == "jpeg":
            shown = rr.EncodedImage.columns(
                blob=[encode(frame) for frame in frames], media_type=["image/jpeg"] * len(frames)
            )
            self._send(entity, rows, shown)
            return
        if self._first(entity):
            self._stream.log(entity, rr.VideoStream(codec=rr.VideoCodec.AV1), static=True, strict=True)
        # The picture of the first reset belongs to no chunk; after it, decoding can start at each.
        for part in (slice(0, 1), slice(1, None)) if rows[0] == 0 else (slice(None),):
            if len(rows[part]):
                packets = encode_av1(frames[part], self.fps, keyframe_every=self.frames_per_chunk)
                samples = rr.VideoStream.columns(
                    sample=[packet.data for packet in packets], is_keyframe=[packet.keyframe for packet in packets]
                )
                self._send(entity, rows[part], samples)

    def _depth(self, entity: str, depth: np.ndarray, rows: np.ndarray) -> None:
        known = np.where(np.isfinite(depth), depth * MILLIMETRES, 0)
        planes = known.clip(0, np.iinfo(np.uint16).max).astype(np.uint16)
        shown = rr.EncodedDepthImage.columns(
            blob=[bytes(imagecodecs.png_encode(plane, level=1)) for plane in planes],
            media_type=["image/png"] * len(planes),
            meter=[MILLIMETRES] * len(planes),
        )
        self._send(entity, rows, shown)

    def _plot(self, track: str, group: str, series: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        entity, names = plot(group, track), list(series)
        if self._first(entity):
            several = len(self._contents.tracks) > 1
            colours = np.arange(len(names)) + self._number(track) * len(names)
            style = rr.SeriesLines(
                colors=[COLOURS[colour % len(COLOURS)] for colour in colours],
                names=[f"{name}, {track}" if several else name for name in names],
            )
            self._stream.log(entity, style, static=True, strict=True)
        values = np.stack([np.asarray(series[name], np.float64) for name in names], axis=-1)
        columns = rr.Scalars.columns(scalars=values.ravel()).partition([len(names)] * len(values))
        self._send(entity, rows[-len(values) :], columns)

    def _first(self, entity: str) -> bool:
        """Whether this entity is met for the first time."""
        met = entity in self._met
        self._met.add(entity)
        return not met

    def _number(self, track: str) -> int:
        return self._contents.tracks.index(track) if track in self._contents.tracks else 0


def _pinhole(intrinsics: np.ndarray, size: tuple[int, ...]) -> rr.Pinhole:
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    # Rerun counts pixels from the corner of the first one, we from its centre.
    return rr.Pinhole(
        focal_length=[fx, fy],
        principal_point=[cx + 0.5, cy + 0.5],
        resolution=[size[1], size[0]],
        camera_xyz=AXES,
        image_plane_distance=0.4,
    )
