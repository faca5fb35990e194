"""Structure from motion of one shot by COLMAP: poses of its frames and one camera, up to scale."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.annotate.features import Features, Stage, load_pycolmap
from sanawm_env.annotate.shots import Rejected
from sanawm_env.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """How structure is found, and what it must reach.

    points: looked for in a frame, about. keyframe_move: of the picture's width. registered: least share of frames with
    a pose. error: largest mean reprojection error, pixels. inliers: fewest points that a frame may see on average.
    threads: -1 for all cores.
    """

    points: int = 2048
    keyframe_move: float = 0.03
    registered: float = 0.9
    error: float = 1.5
    inliers: float = 50.0
    threads: int = -1

    def __post_init__(self) -> None:
        if not (0 < self.keyframe_move < 1 and 0 < self.registered <= 1):
            raise ConfigError(
                f"keyframe_move is {self.keyframe_move}, registered {self.registered}; both are shares above 0, up to 1"
            )


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A run of successive frames with poses, in a scale of its own.

    first: number of its first frame within the shot. poses: float64 [N, 4, 4] camera to world, OpenCV axes; the first
    one is the identity. points: of each frame, [M, 3]: u, v in pixels of the picture as it was taken, and depth along
    z. camera: of COLMAP. flow: median displacement from each frame of the shot to the next, pixels. figures: quality,
    by name.
    """

    first: int
    poses: np.ndarray
    points: list[np.ndarray]
    camera: Any
    flow: np.ndarray
    figures: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def intrinsics(self) -> np.ndarray:
        """float32 [4]: fx, fy, cx, cy of rectified pictures, counted from the centre of the upper left pixel."""
        flat = self._rectified()
        return np.array(
            [flat.focal_length_x, flat.focal_length_y, flat.principal_point_x - 0.5, flat.principal_point_y - 0.5],
            np.float32,
        )

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """[M, 2]: x / z and y / z of the rays through pixels [M, 2] of pictures as they were taken."""
        return np.asarray(self.camera.cam_from_img(np.asarray(pixels, np.float64) + 0.5))

    def rectify(self, frame: np.ndarray) -> np.ndarray:
        """A picture uint8 [H, W, 3] without the lens's distortion, of the same size; black where nothing was seen."""
        if self.camera.is_undistorted():
            return frame
        pycolmap = load_pycolmap()
        picture = pycolmap.Bitmap.from_array(np.ascontiguousarray(frame))
        return np.asarray(pycolmap.undistort_image(_same_size(pycolmap), picture, self.camera)[0].to_array())

    def _rectified(self) -> Any:
        pycolmap = load_pycolmap()
        return pycolmap.undistort_camera(_same_size(pycolmap), self.camera)


def reconstruct(
    frames: Callable[[], Iterator[np.ndarray]],
    count: int,
    settings: Mapping,
    intrinsics: tuple[float, ...] | None,
    check_flow: Callable[[np.ndarray], None],
    stage: Stage,
) -> Structure:
    """The structure of a shot. frames: gives its `count` frames. intrinsics: as of `Features`. check_flow: called with
    the displacement from each frame to the next, pixels [count - 1], before the long part. Raises `Rejected`."""
    with tempfile.TemporaryDirectory(prefix="sanawm-annotate-") as name:
        features = Features(Path(name), intrinsics, settings.points, settings.threads, stage)
        features.extract(frames(), count)
        keys = features.choose(settings.keyframe_move)
        check_flow(features.flow)
        features.match_around(keys)
        found = _map(features, keys, settings, intrinsics is None, stage)
        return _structure(found, features, len(keys), settings)


def _map(features: Features, keys: list[int], settings: Mapping, estimate: bool, stage: Stage) -> Any:
    """Keyframes first; then the other frames are placed among their points, which stay where they are."""
    pycolmap = features.pycolmap
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed = settings.threads, 0
    options.multiple_models = options.extract_colors = False
    options.min_model_size = 3
    options.ba_refine_focal_length = options.ba_refine_extra_params = estimate
    options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = estimate
    folder, placed = features.pictures.parent, 0

    def step() -> None:
        nonlocal placed
        placed += 1
        stage("poses", min(placed + 2, len(features.names)), len(features.names))

    def run(images: list[int], out: str, start: str = "") -> Any:
        options.image_names = [features.names[k] for k in images]
        (folder / out).mkdir()
        told: dict[str, Any] = {"input_path": start, "next_image_callback": step}
        found = pycolmap.incremental_mapping(features.database, features.pictures, folder / out, options, **told)
        if not found:
            raise Rejected(f"no structure in {len(images)} frames: too little parallax, texture or overlap")
        return max(found.items(), key=lambda one: one[1].num_reg_images())

    number, _ = run(keys, "keyframes")
    options.fix_existing_frames = options.mapper.fix_existing_frames = True
    options.ba_refine_focal_length = options.ba_refine_extra_params = False
    options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = False
    options.ba_global_frames_ratio = options.ba_global_points_ratio = 1e6
    options.ba_local_max_refinements = 1
    return run(list(range(len(features.names))), "frames", str(folder / "keyframes" / str(number)))[1]


def _structure(found: Any, features: Features, keyframes: int, settings: Mapping) -> Structure:
    images = {image.name: image for image in found.images.values() if image.has_pose}
    has = np.array([name in images for name in features.names])
    figures = {
        "frames": float(len(has)),
        "keyframes": float(keyframes),
        "registered_share": float(has.mean()),
        "reprojection_error": float(found.compute_mean_reprojection_error()),
        "inliers": float(np.mean([image.num_points3D for image in images.values()])),
        "points": float(found.num_points3D()),
    }
    if figures["registered_share"] < settings.registered:
        raise Rejected(f"{has.mean():.0%} of the frames have a pose, kept is {settings.registered:.0%} and more")
    if figures["reprojection_error"] > settings.error:
        raise Rejected(
            f"reprojection error is {figures['reprojection_error']:.2f} px, kept is up to {settings.error:g}"
        )
    if figures["inliers"] < settings.inliers:
        raise Rejected(
            f"a frame sees {figures['inliers']:.0f} points on average, kept is {settings.inliers:g} and more"
        )
    first, last = _longest_run(has)
    chosen = [images[name] for name in features.names[first:last]]
    poses = np.tile(np.eye(4), (len(chosen), 1, 1))
    poses[:, :3] = np.stack([image.cam_from_world().inverse().matrix() for image in chosen])
    return Structure(
        first=first,
        poses=np.linalg.inv(poses[0]) @ poses,
        points=[_seen(found, image) for image in chosen],
        camera=next(iter(found.cameras.values())),
        flow=features.flow,
        figures=figures,
    )


def _seen(found: Any, image: Any) -> np.ndarray:
    points = [point for point in image.points2D if point.has_point3D()]
    if not points:
        return np.zeros((0, 3))
    where = np.stack([found.points3D[point.point3D_id].xyz for point in points])
    pose = image.cam_from_world().matrix()
    depth = where @ pose[2, :3] + pose[2, 3]
    return np.column_stack([np.stack([point.xy for point in points]) - 0.5, depth])


def _longest_run(has: np.ndarray) -> tuple[int, int]:
    """Bounds of the longest row of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], has.astype(int), [0]])))
    starts, ends = edges[::2], edges[1::2]
    best = int(np.argmax(ends - starts))
    return int(starts[best]), int(ends[best])


def _same_size(pycolmap: Any) -> Any:
    options = pycolmap.UndistortCameraOptions()
    options.min_scale = options.max_scale = 1.0
    return options
