"""How worlds start: a room drawn from a seed, rendered by the ray-caster, or a picture that the user gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sanawm_env.errors import SceneError, nearest
from sanawm_env.scene import Scene, check_images, load_scene, read_scene
from sanawm_env.tasks import Situation

if TYPE_CHECKING:
    import torch

    from sanawm_env.model.config import WorldConfig
    from sanawm_env.rooms import Scenes

CANDIDATES = 6
ENOUGH_OBJECT = 0.04  # part of the first picture that furniture should cover for an interesting start
NO_ROOM = -1
TOGETHER = {"cpu": 1, "cuda": 64}  # first pictures that one call renders


@dataclass(frozen=True, kw_only=True)
class ResetOptions:
    """What `reset(options=...)` takes; see `SanaWMEnv.reset`."""

    scene: Any = None
    image: Any = None
    pose: Any = None
    task: Any = None
    horizon: int | None = None


@dataclass(frozen=True, kw_only=True)
class Start:
    """Worlds about to start: images uint8 [B, H, W, 3], poses [B, 4, 4], intrinsics [B, 4], room seeds int64 [B] (-1
    for a world without geometry) and the rooms themselves, what a task may know of each, and the scene of those that
    start from a picture.
    """

    images: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    rooms: np.ndarray
    situations: list[Situation]
    scene: Scene | None = None
    geometry: Scenes | None = None

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[Start, int]]) -> Start:
        """Worlds of starts in rooms, each named by its start and its row there."""
        from sanawm_env.rooms.scenes import Scenes

        runs = [list(run) for _, run in itertools.groupby(rows, key=lambda pair: id(pair[0]))]
        parts = [(run[0][0], [row for _, row in run]) for run in runs]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(one, name)[chosen] for one, chosen in parts])

        return cls(
            images=joined("images"),
            poses=joined("poses"),
            intrinsics=joined("intrinsics"),
            rooms=joined("rooms"),
            situations=[one.situations[row] for one, row in rows],
            geometry=Scenes.join([one.geometry.select(chosen) for one, chosen in parts if one.geometry is not None]),
        )

    @property
    def units(self) -> float | None:
        """Model units a metre, as the scene says them."""
        return None if self.scene is None else self.scene.units_per_metre

    @property
    def intrinsics_source(self) -> str:
        """How the intrinsics were found: "bundle", or as the scene says."""
        scene = self.scene
        return "bundle" if scene is None or scene.intrinsics is None else scene.intrinsics_from


def read_options(options: Mapping[str, Any] | None, kind: type[ResetOptions] = ResetOptions) -> ResetOptions:
    """The options of a reset, checked. Raises SceneError on an unknown key and on what excludes each other."""
    known = [field.name for field in fields(kind)]
    given = dict(options or {})
    for key in given:
        if key not in known:
            raise SceneError(f"unknown reset option {key!r}; {nearest(str(key), known)}")
    chosen = kind(**given)
    if chosen.scene is not None and chosen.image is not None:
        raise SceneError("reset options hold both 'scene' and 'image'; pass one, or Scene(image=...) as the scene.")
    horizon = chosen.horizon
    if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1):
        raise SceneError(f"horizon is {horizon!r}, allowed is a whole number of frames >= 1, or None for no end.")
    return chosen


def make_start(
    options: ResetOptions, seeds: Sequence[int], config: WorldConfig, device: torch.device | str = "cpu"
) -> Start:
    """The start of len(seeds) worlds, each a function of its own seed and of the options alone; rendered on
    `device`."""
    scene = options.scene
    if isinstance(scene, Start):
        return _made_before(scene, options.pose, seeds)
    if isinstance(scene, Mapping):
        scene = read_scene(scene)
    elif isinstance(scene, str | Path):
        scene = load_scene(scene, config.height, config.width)
    if options.image is not None:
        scene = Scene(image=options.image)
    if isinstance(scene, Scene):
        return _from_picture(scene, options.pose, seeds, config)
    return _from_rooms(_room_seeds(scene, seeds), options.pose, seeds, config, device)


def _made_before(start: Start, pose: Any, seeds: Sequence[int]) -> Start:
    known = [one.seed for one in start.situations]
    if known != list(seeds) or pose is not None:
        raise SceneError(
            f"scene is a start of the seeds {known[:4]} ..., with {'a' if pose is not None else 'no'} pose beside it; "
            f"allowed is one of the seeds that are reset ({list(seeds)[:4]} ...), which has its poses."
        )
    return start


def _room_seeds(scene: Any, seeds: Sequence[int]) -> list[int]:
    """Seed of each world's room: the world's own unless the options name others."""
    rooms = seeds if scene is None else [scene] * len(seeds) if np.ndim(scene) == 0 else list(scene)
    whole = all(isinstance(room, int | np.integer) and not isinstance(room, bool) and room >= 0 for room in rooms)
    if len(rooms) != len(seeds) or not whole:
        raise SceneError(
            f"scene is {scene!r}, allowed is the seed of a room (a whole number >= 0), one a world for {len(seeds)} "
            "worlds, a Scene with an image, or the path of a scene.yaml."
        )
    return [int(room) for room in rooms]


def _from_picture(scene: Scene, pose: Any, seeds: Sequence[int], config: WorldConfig) -> Start:
    worlds = len(seeds)
    if scene.fps is not None and scene.fps != config.fps:
        raise SceneError(
            f"the scene is meant for {scene.fps:g} frames/s, the bundle {config.name!r} runs at {config.fps:g}; "
            "resample its poses, and pass fps=None."
        )
    images = check_images(scene.image, config.height, config.width)
    intrinsics = np.asarray(config.intrinsics if scene.intrinsics is None else scene.intrinsics, np.float32)
    if intrinsics.shape != (4,) or not np.isfinite(intrinsics).all() or (intrinsics[:2] <= 0).any():
        raise SceneError(f"intrinsics are {scene.intrinsics!r}, allowed is (fx, fy, cx, cy) in pixels, fx and fy > 0.")
    pose = scene.pose if pose is None else pose
    poses = _poses(np.eye(4) if pose is None else pose, worlds)
    return Start(
        images=_a_world_each("image", images, worlds, 3),
        poses=poses,
        intrinsics=np.tile(intrinsics, (worlds, 1)),
        rooms=np.full(worlds, NO_ROOM, np.int64),
        situations=[
            Situation(pose=poses[world], seed=seed, objects=None, visible={}) for world, seed in enumerate(seeds)
        ],
        scene=scene,
    )


def _from_rooms(
    rooms: list[int], pose: Any, seeds: Sequence[int], config: WorldConfig, device: torch.device | str
) -> Start:
    import torch

    from sanawm_env.rooms import clearance, sample_scenes
    from sanawm_env.rooms.collision import FloorPlan

    scenes = sample_scenes(rooms)
    poses = _start_poses(scenes, seeds, config, device) if pose is None else _poses(pose, len(seeds))
    free = clearance(scenes, torch.from_numpy(poses[:, None, :3, 3])).numpy()[:, 0]
    if (free <= 0).any():
        world = int(free.argmin())
        raise SceneError(
            f"the start pose at {poses[world, :3, 3].round(2).tolist()} is {-free[world]:.2f} m inside a wall or "
            f"object of room {rooms[world]}; pass a free one, or none to have one drawn."
        )
    images, instances = _rendered(scenes, poses[:, None], config.intrinsics, (config.height, config.width), 2, device)
    plan = FloorPlan.of(scenes)
    situations = [
        Situation(
            pose=poses[row],
            seed=seed,
            objects=scenes.objects(row),
            visible=_pixels(instances[row]),
            plan=plan.rows(np.array([row])),
        )
        for row, seed in enumerate(seeds)
    ]
    return Start(
        images=images[:, 0],
        poses=poses,
        intrinsics=np.tile(np.asarray(config.intrinsics, np.float32), (len(seeds), 1)),
        rooms=np.asarray(rooms, np.int64),
        situations=situations,
        geometry=scenes,
    )


def _start_poses(scenes: Scenes, seeds: Sequence[int], config: WorldConfig, device: torch.device | str) -> np.ndarray:
    """[B, 4, 4] collision-free camera poses, each the first of a few drawn from its world's seed that shows
    furniture."""
    from sanawm_env.rooms import layout, sample_trajectories

    copies = scenes.select(np.repeat(np.arange(len(seeds)), CANDIDATES).tolist())
    drawn = np.concatenate([np.random.SeedSequence([seed, 2]).generate_state(CANDIDATES, np.uint64) for seed in seeds])
    whole = (drawn >> np.uint64(2)).astype(np.int64).tolist()
    still = sample_trajectories(copies, whole, 1, config.fps, kind="still").poses[:, 0]
    poses = np.asarray(still, np.float64).reshape(len(seeds), CANDIDATES, 4, 4)
    fx, fy, cx, cy = config.intrinsics
    small = (fx / 4, fy / 4, (cx + 0.5) / 4 - 0.5, (cy + 0.5) / 4 - 0.5)
    _, instances = _rendered(scenes, poses, small, (config.height // 4, config.width // 4), 1, device)
    covered = (instances >= layout.INSTANCE_OBJECT).mean(axis=(2, 3))
    return poses[np.arange(len(seeds)), np.argmax(covered >= ENOUGH_OBJECT, axis=1)]


def _rendered(
    scenes: Scenes,
    poses: np.ndarray,
    intrinsics: tuple[float, float, float, float],
    size: tuple[int, int],
    supersample: int,
    device: torch.device | str,
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [B, T, H, W, 3] and instance numbers [B, T, H, W] seen from poses [B, T, 4, 4]."""
    import torch

    from sanawm_env.rooms import render

    # Always as many at a time: which worlds start together then cannot change a single grey level.
    together = TOGETHER[torch.device(device).type]
    groups = [np.arange(first, first + together) % len(poses) for first in range(0, len(poses), together)]
    seen = [
        render(
            scenes.select(rows.tolist()).to(device),
            torch.from_numpy(poses[rows]).to(device),
            intrinsics,
            size,
            supersample=supersample,
            compiled=False,  # a start is a picture or two; compiling would take a minute
        )
        for rows in groups
    ]
    pictures = np.concatenate([one.rgb.cpu().numpy() for one in seen])
    return pictures[: len(poses)], np.concatenate([one.instance.cpu().numpy() for one in seen])[: len(poses)]


def _pixels(instance: np.ndarray) -> dict[int, int]:
    """Pixels of each instance that covers at least a thousandth of the picture."""
    counts = np.bincount(instance.ravel())
    return {int(n): int(counts[n]) for n in np.flatnonzero(counts >= max(1, instance.size // 1000))}


def _poses(given: Any, worlds: int) -> np.ndarray:
    import torch

    from sanawm_env.camera import check_rigid

    try:
        poses = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SceneError(f"pose is {given!r}, allowed is a camera-to-world matrix [4, 4] in metres.") from error
    check_rigid(torch.from_numpy(poses), "pose")
    return _a_world_each("pose", poses, worlds, 2)


def _a_world_each(name: str, value: np.ndarray, worlds: int, ndim: int) -> np.ndarray:
    if value.ndim == ndim:
        return np.repeat(value[None], worlds, axis=0)
    if value.ndim != ndim + 1 or len(value) != worlds:
        raise SceneError(f"{name} has shape {value.shape} for {worlds} worlds; pass one for all, or one a world.")
    return value


def check_seed(seed: Any) -> int:
    """A world's seed as a number; raises SceneError unless it is a whole number in 0 .. 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise SceneError(f"seed is {seed!r}, allowed is a whole number in 0 .. {2**63 - 1}; pass another.")
    return int(seed)


def seconds_to_frames(seconds: float | None, fps: float) -> int | None:
    """Frames within a time limit, at least one; None stays None."""
    return None if seconds is None else max(1, math.floor(seconds * fps + 1e-9))
