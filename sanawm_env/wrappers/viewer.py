"""Rollouts in Rerun: where the camera was, what it saw, and the numbers beside it, on one time line.

`write_recording` makes a file of a finished rollout; `RerunViewer` wraps an environment and logs while it steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from sanawm_env.datasets.atomic import appearing
from sanawm_env.datasets.codec import encode
from sanawm_env.errors import LifecycleError
from sanawm_env.wrappers.video import encode_av1

APPLICATION = "sanawm_env"
TIMELINE = "world_time"
# Rooms and every pose of the package are OpenCV-like: x right, y down, z forward.
AXES = rr.ViewCoordinates.RDF
COLOURS = ((66, 133, 244), (244, 160, 0), (15, 157, 88), (219, 68, 55), (170, 90, 220))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """What a recording shows, one row a frame.

    poses: [T, 4, 4] camera to world, metres. intrinsics: [4] or [T, 4], fx fy cx cy in pixels. videos: name to uint8
    [T, H, W, 3]; the first is what the camera in the 3D view carries. scalars: name to [T]. points: name to (positions
    [N, 3], colours uint8 [N, 3]), for example the ground truth's depth. text: Markdown shown beside it.
    """

    fps: float
    poses: np.ndarray
    intrinsics: np.ndarray
    videos: Mapping[str, np.ndarray]
    scalars: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    points: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    text: str = ""


def write_recording(path: Path | str, rollout: Rollout) -> None:
    """An .rrd file of a rollout with its own layout; open it with `rerun PATH`. StorageError on a full disk."""
    stream = rr.RecordingStream(APPLICATION)
    # Rerun's own file writer runs in a thread and only prints what fails there, so the bytes come to us first.
    recording = rr.binary_stream(stream)
    blueprint = layout(list(rollout.videos), list(rollout.scalars), text=bool(rollout.text), eye=_eye(rollout.poses))
    stream.send_blueprint(blueprint, make_active=True, make_default=True)
    log_rollout(stream, rollout)
    content = recording.read() or b""
    stream.disconnect()
    with appearing(Path(path)) as draft:
        draft.write_bytes(content)


def log_rollout(stream: rr.RecordingStream, rollout: Rollout) -> None:
    """Everything of a rollout into an open recording, videos as AV1."""
    times = np.arange(len(rollout.poses)) / rollout.fps
    _log_static(stream, rollout)
    _log_camera(stream, rollout, times)
    for name, frames in rollout.videos.items():
        _log_video(stream, _entity("video", name), frames, rollout.fps)
    first = next(iter(rollout.videos), None)
    if first is not None:
        _log_video(stream, "world/camera/image", rollout.videos[first], rollout.fps)
    for name, values in rollout.scalars.items():
        stream.send_columns(_entity("scalars", name), [_column(times)], rr.Scalars.columns(scalars=values), strict=True)


def layout(
    videos: list[str], scalars: list[str], *, text: bool = False, eye: rrb.EyeControls3D | None = None
) -> rrb.Blueprint:
    """The 3D view on the left, one picture view a video on the right, one plot for each scalar below them."""
    pictures = [rrb.Spatial2DView(origin=_entity("video", name), name=name) for name in videos]
    plots = [rrb.TimeSeriesView(origin=_entity("scalars", name), name=name) for name in scalars]
    world: Any = rrb.Spatial3DView(origin="world", name="camera path (y is down)", eye_controls=eye)
    left = rrb.Vertical(world, rrb.TextDocumentView(origin="notes", name="notes"), row_shares=[4, 1]) if text else world
    rows = [rrb.Horizontal(*pictures)] if pictures else []
    rows += [rrb.Horizontal(*plots)] if plots else []
    body = rrb.Horizontal(left, rrb.Vertical(*rows), column_shares=[2, 3]) if rows else left
    panels = (rrb.BlueprintPanel(state="collapsed"), rrb.SelectionPanel(state="collapsed"))
    return rrb.Blueprint(body, *panels, rrb.TimePanel(state="collapsed", timeline=TIMELINE))


class RerunViewer(gym.Wrapper):
    """Logs what an environment does to Rerun as it happens; observations, rewards and infos pass through unchanged.

    path: .rrd file to write; None starts the viewer. The environment must give `info["frames"]`, `info["poses"]` and,
    at a reset, `info["intrinsics"]` (one world of Rooms does). Every `reset` begins again at 0 s, as an episode of its
    own on the time line "episode".
    """

    def __init__(self, env: gym.Env, path: Path | str | None = None):
        super().__init__(env)
        self._stream = rr.RecordingStream(APPLICATION)
        blueprint = layout(["frames"], ["reward"])
        if path is None:
            self._stream.spawn(default_blueprint=blueprint)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._stream.save(path, default_blueprint=blueprint)
        self._episode = -1
        self._frame = 0
        self._path: list[np.ndarray] = []
        self._intrinsics = np.zeros(4)
        self._stream.log("world", AXES, static=True, strict=True)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        self._episode, self._frame, self._path = self._episode + 1, 0, []
        self._intrinsics = np.asarray(_needed(info, "intrinsics"))
        self._log(info, reward=0.0)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._log(info, reward=float(reward))
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        self._stream.flush()
        self._stream.disconnect()
        super().close()

    def _log(self, info: Mapping[str, Any], reward: float) -> None:
        fps = float(self.env.get_wrapper_attr("fps"))
        self._stream.set_time("episode", sequence=self._episode)
        for picture, pose in zip(_needed(info, "frames"), _needed(info, "poses")):
            self._stream.set_time(TIMELINE, duration=self._frame / fps)
            self._log_frame(np.asarray(picture), np.asarray(pose))
            self._frame += 1
        self._stream.log("scalars/reward", rr.Scalars(reward))

    def _log_frame(self, picture: np.ndarray, pose: np.ndarray) -> None:
        self._path.append(pose[:3, 3])
        encoded = rr.EncodedImage(contents=encode(picture), media_type="image/jpeg")
        self._stream.log("video/frames", encoded)
        self._stream.log("world/camera", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        self._stream.log("world/camera/image", _pinhole(self._intrinsics, picture.shape), encoded)
        self._stream.log("world/path", rr.LineStrips3D([np.array(self._path)], colors=[COLOURS[0]], radii=0.01))


def _needed(info: Mapping[str, Any], name: str) -> Any:
    if info.get(name) is None:
        raise LifecycleError(f'RerunViewer needs info["{name}"]; make the environment of one world with frames="all"')
    return info[name]


def _eye(poses: np.ndarray) -> rrb.EyeControls3D:
    """From behind and above the start of a path, so that path and what the camera sees are in view."""
    start, ahead = poses[0, :3, 3], poses[0, :3, 2]
    return rrb.EyeControls3D(
        position=start - 1.8 * ahead - [0, 1.8, 0], look_target=start + 1.2 * ahead, eye_up=[0, -1, 0]
    )


def _log_static(stream: rr.RecordingStream, rollout: Rollout) -> None:
    stream.log("world", AXES, static=True, strict=True)
    path = rollout.poses[:, :3, 3]
    stream.log("world/path", rr.LineStrips3D([path], colors=[COLOURS[0]], radii=0.01), static=True, strict=True)
    stream.log("world/start", rr.Points3D([path[0]], colors=[COLOURS[2]], radii=0.04), static=True, strict=True)
    for name, (positions, colours) in rollout.points.items():
        stream.log(
            _entity("world", name), rr.Points3D(positions, colors=colours, radii=0.012), static=True, strict=True
        )
    for index, name in enumerate(rollout.scalars):
        style = rr.SeriesLines(colors=[COLOURS[index % len(COLOURS)]], names=[name])
        stream.log(_entity("scalars", name), style, static=True, strict=True)
    if rollout.text:
        stream.log("notes", rr.TextDocument(rollout.text, media_type="text/markdown"), static=True, strict=True)


def _log_camera(stream: rr.RecordingStream, rollout: Rollout, times: np.ndarray) -> None:
    transforms = rr.Transform3D.columns(translation=rollout.poses[:, :3, 3], mat3x3=rollout.poses[:, :3, :3])
    stream.send_columns("world/camera", [_column(times)], transforms, strict=True)
    first = next(iter(rollout.videos.values()), None)
    if first is not None:
        intrinsics = np.atleast_2d(rollout.intrinsics)[0]
        stream.log("world/camera/image", _pinhole(intrinsics, first.shape[1:]), static=True, strict=True)


def _log_video(stream: rr.RecordingStream, entity: str, frames: np.ndarray, fps: float) -> None:
    packets = encode_av1(frames, fps)
    stream.log(entity, rr.VideoStream(codec=rr.VideoCodec.AV1), static=True, strict=True)
    times = np.array([packet.index / fps for packet in packets])
    samples = rr.VideoStream.columns(
        sample=[packet.data for packet in packets], is_keyframe=[packet.keyframe for packet in packets]
    )
    stream.send_columns(entity, [_column(times)], samples, strict=True)


def _pinhole(intrinsics: np.ndarray, shape: tuple[int, ...]) -> rr.Pinhole:
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    # Rerun counts pixels from the corner of the first one, we from its centre.
    return rr.Pinhole(
        focal_length=[fx, fy],
        principal_point=[cx + 0.5, cy + 0.5],
        resolution=[shape[1], shape[0]],
        camera_xyz=AXES,
        image_plane_distance=0.4,
    )


def _entity(kind: str, name: str) -> str:
    return rr.new_entity_path([kind, name])


def _column(times: np.ndarray) -> rr.TimeColumn:
    return rr.TimeColumn(TIMELINE, duration=times)
