"""`sanawm demo`: a learned world along a scripted tour, beside its ground truth, in four files to look at.

What it does with the world is what a user does: `gym.make`, `reset`, `step`, a recorder around it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sanawm_env.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from sanawm_env.actions import ActionMap
    from sanawm_env.datasets.provenance import Provenance, StoreInfo
    from sanawm_env.rooms.scenes import Scenes
    from sanawm_env.wrappers.rollouts import Finished
    from sanawm_env.wrappers.tape import EpisodeTape

# (steps, forward m/s, turn rad/s): look around, drive in, turn, drive back while turning. 16 steps, then again.
TOUR = ((2, 0.0, 0.5), (4, 0.0, -0.5), (2, 0.0, 0.5), (3, 0.35, 0.0), (2, 0.15, 0.45), (3, -0.25, -0.3))
# Metres that stay free around the camera; the environment ends an episode below its own, smaller, body radius.
MARGIN = 0.25
HEADROOM = 2.1
SHEET_FRAMES = (0, 8, 16, 32, 64, 96, 128)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """frames: of the tour, rounded up to whole steps. scene_seed: which room. seed: the world's noise. out: folder."""

    bundle: str = "rooms"
    device: str = "cpu"
    frames: int = 128
    scene_seed: int = 1_000_000_007
    seed: int = 0
    out: Path = Path("outputs/demo")

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"frames is {self.frames}, expected 1 or more; the tour has 128")


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A finished tour, T = 1 + k F frames: what the world showed and what the ray-caster shows there.

    taped: k F rows as `EpisodeTape.arrays` gives them, and the same of the truth as a store takes them. psnr,
    visible_psnr: [T] dB over all pixels and over those whose place frame 0 has seen. seconds: spent in `step`. info,
    provenance: what the store says of all episodes, and of this one.
    """

    taped: dict[str, np.ndarray]
    psnr: np.ndarray
    visible_psnr: np.ndarray
    seconds: float
    info: StoreInfo
    provenance: Provenance

    @property
    def fps(self) -> float:
        return self.info.fps

    @property
    def dream(self) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        return self.whole("frames")

    @property
    def truth(self) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        return self.whole("truth_frames")

    @property
    def poses(self) -> np.ndarray:
        """[T, 4, 4]."""
        return self.whole("poses")

    def whole(self, key: str) -> np.ndarray:
        """An array with the row of the start before those of the steps, T rows."""
        return np.concatenate([self.taped[f"start_{key}"][None], self.taped[key]])


def run(config: DemoConfig) -> dict[str, Any]:
    """Drives the tour, writes the four files into `config.out`, says how to open them; returns the figures printed.

    StorageError if the folder cannot be written or the disk is full: every file is then complete or absent.
    """
    _check_folder(config.out)
    with _loading("torch"):
        import torch  # noqa: F401
    with _loading(f"the bundle {config.bundle!r}"):
        env = make(config)
    try:
        rollout = drive(env, config)
    finally:
        env.close()
    figures = _figures(rollout)
    print(_summary(figures))
    for line in write(rollout, config):
        print(line)
    return figures


def make(config: DemoConfig) -> EpisodeTape:
    """The environment of the demo: Rooms with a differential drive and no goal, what happens in it kept on a tape."""
    import gymnasium as gym

    from sanawm_env.wrappers.tape import EpisodeTape

    return EpisodeTape(
        gym.make(
            "sanawm_env/Rooms-v0", bundle=config.bundle, device=config.device, action_map="diff_drive", task="drive"
        )
    )


def drive(env: EpisodeTape, config: DemoConfig) -> Rollout:
    """The tour through the room of `config.scene_seed`, with its ground truth."""
    from tqdm import tqdm

    from sanawm_env.rooms import sample_scenes

    _, info = env.reset(seed=config.seed, options={"scene": config.scene_seed})
    world: Any = env.unwrapped
    chunk = world.frames_per_step
    steps = -(-config.frames // chunk)
    scenes = sample_scenes([config.scene_seed])
    seconds = 0.0
    with tqdm(total=steps * chunk, unit="frame", desc="stepping the world") as bar:
        for action in free_tour(scenes, info["poses"][0], world.action_map, steps, chunk, world.fps):
            start = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            seconds += time.perf_counter() - start
            bar.update(chunk)
            if terminated or truncated:
                break
    return _with_truth(env, info, config.scene_seed, seconds)


def free_tour(
    scenes: Scenes, pose: np.ndarray, action_map: ActionMap, steps: int, chunk: int, fps: float
) -> np.ndarray:
    """Actions [steps, 2] of the tour, mirrored or slowed down until it keeps `MARGIN` from everything in the room.

    Only looking around is left in a corner with no room to drive.
    """
    import torch

    from sanawm_env.rooms import clearance

    script = np.array([move[1:] for move in TOUR for _ in range(move[0])])
    script = np.resize(script, (steps, 2))
    for pace in (1.0, 0.75, 0.5, 0.25):
        for side in (1.0, -1.0):
            plan = script * (pace, side)
            held = np.repeat(plan, chunk, axis=0)[None]
            path, _ = action_map.rollout(pose[None], action_map.initial(1), held, fps)
            if float(clearance(scenes, torch.as_tensor(path[..., :3, 3])).min()) >= MARGIN:
                return plan
    return script * (0.0, 1.0)


def _with_truth(env: EpisodeTape, reset: dict[str, Any], room: int, seconds: float) -> Rollout:
    import torch
    from tqdm import tqdm

    from sanawm_env.evaluation.metrics import psnr
    from sanawm_env.evaluation.visibility import visible
    from sanawm_env.wrappers.recorded import recorded
    from sanawm_env.wrappers.rows import provenance, store_info, truth_rows

    world: Any = env.unwrapped
    taped, size = env.arrays(), (world.model.config.height, world.model.config.width)
    poses, lens = np.concatenate([taped["start_poses"][None], taped["poses"]]), taped["start_intrinsics"]
    with tqdm(range(len(poses)), unit="frame", desc="rendering the truth") as rows:
        shown = [truth_rows(room, poses[k : k + 1], lens, size) for k in rows]
    for key in shown[0]:
        taped[f"start_{key}"] = shown[0][key][0]
        taped[key] = np.concatenate([row[key] for row in shown[1:]])
    rollout = Rollout(
        taped=taped,
        psnr=np.zeros(0),
        visible_psnr=np.zeros(0),
        seconds=seconds,
        info=store_info(recorded(world)),
        provenance=provenance(recorded(world), reset),
    )
    dream, truth, depth = (torch.as_tensor(rollout.whole(key)) for key in ("frames", "truth_frames", "truth_depth"))
    path = torch.as_tensor(poses)[None]
    known = visible(depth[None], path, depth[:1], path[:, 0], torch.as_tensor(lens)[None])[0]
    return replace(rollout, psnr=psnr(dream, truth).numpy(), visible_psnr=psnr(dream, truth, known).numpy())


def write(rollout: Rollout, config: DemoConfig) -> Iterator[str]:
    """Writes the four files one after the other; yields a line on each: where it is and how to open it."""
    from sanawm_env.evaluation.sheet import contact_sheet, save_sheet
    from sanawm_env.wrappers.rerun_sink import WholeFile
    from sanawm_env.wrappers.rollouts import DIFFERENCE_GAIN, record
    from sanawm_env.wrappers.video import write_mp4

    out = config.out
    write_mp4(out / "rollout.mp4", side_by_side(rollout), rollout.fps, scale=3)
    yield f"{out / 'rollout.mp4'}: truth | dream | difference x{DIFFERENCE_GAIN}; any video player"
    columns = [frame for frame in SHEET_FRAMES if frame < len(rollout.dream)]
    save_sheet(
        contact_sheet(rollout.truth[None, columns], rollout.dream[None, columns], columns), out / "contact_sheet.png"
    )
    yield f"{out / 'contact_sheet.png'}: the same at a few frames; any picture viewer"
    record(WholeFile(out / "rollout.rrd"), _recording(rollout, config), {"truth's depth": point_cloud(rollout)})
    yield f"{out / 'rollout.rrd'}: camera path, both videos, their difference, PSNR; rerun {out / 'rollout.rrd'}"
    _write_episode(rollout, config, out / "episode.zarr")
    yield (
        f"{out / 'episode.zarr'}: frames, poses, actions, depth; in Python "
        f"sanawm_env.datasets.reader.EpisodeStore({str(out / 'episode.zarr')!r})[0]"
    )


def side_by_side(rollout: Rollout) -> np.ndarray:
    """Truth, dream and their difference next to each other, uint8 [T, H, 3 W + gaps, 3]."""
    from sanawm_env.wrappers.rollouts import difference

    gap = np.full((*rollout.truth.shape[:2], 2, 3), 255, dtype=np.uint8)
    return np.concatenate([rollout.truth, gap, rollout.dream, gap, difference(rollout.dream, rollout.truth)], axis=2)


def _recording(rollout: Rollout, config: DemoConfig) -> Finished:
    from sanawm_env.wrappers import rollouts

    room = f"room {config.scene_seed}, bundle {rollout.provenance.bundle_sha256[:12]}, noise seed {config.seed}"
    truth = rollouts.of_truth(rollout.taped)
    assert truth is not None
    return rollouts.Finished(
        tracks=rollouts.compare(rollouts.of_episode(rollout.taped, rollout.info), truth, ("dream", "truth")),
        fps=rollout.fps,
        frames_per_chunk=rollout.info.frames_per_step,
        text=f"**dream**: the learned world. **truth**: the ray-caster at the same poses.\n\n{room}",
    )


def point_cloud(rollout: Rollout, every: int = 8, pixels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 3] in the room and colours [N, 3] of the truth's depth, one frame and pixel in a few.

    What is higher than `HEADROOM` above the floor is left out, so that one can look in from above.
    """
    import torch

    from sanawm_env.evaluation.visibility import unproject

    depth = torch.as_tensor(rollout.whole("truth_depth")[None, ::every])
    lens = torch.as_tensor(rollout.taped["start_intrinsics"])[None]
    seen = unproject(depth, lens)[0, :, ::pixels, ::pixels].numpy()
    poses = rollout.poses[::every]
    placed = np.einsum("tij,thwj->thwi", poses[:, :3, :3], seen) + poses[:, None, None, :3, 3]
    low = placed[..., 1] > -HEADROOM  # y points down, the floor is at 0
    return placed[low].astype(np.float32), rollout.truth[::every, ::pixels, ::pixels][low]


def _write_episode(rollout: Rollout, config: DemoConfig, path: Path) -> None:
    from sanawm_env.datasets.atomic import appearing
    from sanawm_env.datasets.writer import EpisodeWriter

    with appearing(path) as draft, EpisodeWriter(draft, rollout.info) as writer:  # in place of an earlier demo's
        writer.add(rollout.taped, seed=config.seed, room=config.scene_seed, provenance=rollout.provenance)


def _figures(rollout: Rollout) -> dict[str, Any]:
    new = len(rollout.dream) - 1
    ahead = [frame for frame in (8, 32, 64, 128) if frame <= new]
    return {
        "frames": new,
        "seconds": rollout.seconds,
        "fps": new / rollout.seconds,
        "psnr": float(rollout.psnr[1:].mean()),
        "psnr_visible": {str(k): float(rollout.visible_psnr[k]) for k in ahead},
    }


def _summary(figures: dict[str, Any]) -> str:
    seen = ", ".join(f"{db:.1f} at {k}" for k, db in figures["psnr_visible"].items())
    return (
        f"{figures['frames']} frames in {figures['seconds']:.1f} s: {figures['fps']:.1f} frames/s. PSNR to the truth: "
        f"{figures['psnr']:.1f} dB over all; where frame 0 saw the place: {seen or '-'} frames"
    )


def _check_folder(out: Path) -> None:
    """Refuses before the minute of work, not after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        writable = os.access(out, os.W_OK)
    except OSError as error:
        raise StorageError(f"cannot make folder {out}: {error.strerror}; choose another with --out") from error
    if not writable:
        raise StorageError(f"folder {out} cannot be written to; choose another with --out")


@contextlib.contextmanager
def _loading(what: str) -> Iterator[None]:
    print(f"loading {what} ...", end=" ", flush=True)
    start = time.perf_counter()
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.perf_counter() - start:.1f} s", flush=True)
