"""Stored episodes made again from bundle, seed and actions: whether every frame is the same, to the last bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sanawm_env import bundle as bundles
from sanawm_env import world as worlds
from sanawm_env.actions import read_action_map
from sanawm_env.datasets.codec import picture_codec
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.env_config import EnvConfig
from sanawm_env.errors import BundleError, ConfigError, StorageError
from sanawm_env.learned import LearnedEpisodes
from sanawm_env.placement import host_threads
from sanawm_env.start import ResetOptions
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.rows import digests

# Stored actions are rounded to float32; integrated over an episode, they still lead to the stored poses this closely.
POSE_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """An episode made again. difference: what differs, "" for nothing. frame: the first that does, 0 the picture of
    reset, None where it is not a frame that differs. exact: compared before the picture codec, by digests that the
    store has; else both sides after the codec, which may hide a change of a grey level."""

    episode: int
    difference: str = ""
    frame: int | None = None
    exact: bool = True

    def text(self) -> str:
        """In one line."""
        how = "" if self.exact else " (compared after the picture codec)"
        where = "" if self.frame is None else f" from frame {self.frame} on"
        return f"episode {self.episode}: " + (f"{self.difference}{where}{how}" if self.difference else f"same{how}")


def replay(
    path: str | Path,
    *,
    episodes: Sequence[int] | None = None,
    bundle: str | Path | WorldModel | None = None,
    prompts: Any = None,
    device: str | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[Replayed]:
    """Makes episodes of a store again, all of them by default, and compares.

    The actions, through the action map, must lead to the poses that the store has; the world, started at the stored
    seed and scene and taken along these poses, must show the stored frames. bundle: where the world model is, if not
    where the name in the store says. prompts: as of `EnvConfig`. ConfigError, BundleError, StorageError: another
    bundle, or something that was not kept. Frames are the same on the same machine, precision and number of threads.
    """
    store = EpisodeStore(path)
    wanted = list(range(len(store)) if episodes is None else episodes)
    if wrong := [index for index in wanted if not 0 <= index < len(store)]:
        raise ConfigError(f"episode {wrong[0]} was asked for, {path} has 0 .. {len(store) - 1}; name one of these.")
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index in wanted:
        told = store.describe(index)
        extra = told["extra"]
        kind = (told["bundle"], told["bundle_sha256"], told["precision"], extra.get("threads"), extra.get("batch") or 1)
        groups[(*kind, extra.get("scene"), told["room"] >= 0, told["action_map"], told["steps"])].append(index)
    results: list[Replayed] = []
    for key, members in groups.items():
        name, fingerprint, precision, count, size = key[:5]
        model = _model(bundle if bundle is not None else name, fingerprint, precision, device)
        for first in range(0, len(members), size):
            with host_threads(model.device, count or torch.get_num_threads()):
                results += _again(store, members[first : first + size], size, model, prompts)
            progress(len(results), len(wanted))
    return sorted(results, key=lambda one: wanted.index(one.episode))


def summary(results: Sequence[Replayed]) -> str:
    """A line for each episode that differs, and how many there are."""
    different = [one.text() for one in results if one.difference]
    count = f"{len(results) - len(different)} of {len(results)} episodes are the same, {len(different)} differ"
    return "\n".join([*different, count])


def _model(bundle: Any, fingerprint: str, precision: str, device: str | None) -> WorldModel:
    model = bundles.open_model(bundle, device, precision)  # type: ignore[arg-type]
    if model.fingerprint != fingerprint:
        raise BundleError(
            f"bundle {str(bundle)!r} is {model.fingerprint[:12]!r}, the episode was made with {fingerprint[:12]!r}; "
            "name the bundle that made it (--bundle)."
        )
    return model


def _again(store: EpisodeStore, members: Sequence[int], size: int, model: WorldModel, prompts: Any) -> list[Replayed]:
    """Episodes of equal length and one kind of start, together in a batch that is filled up to `size` with copies: on a
    GPU it decides how the decoder rounds."""
    stored = [store.read(index, valid_only=False) for index in members]
    told = [store.describe(index) for index in members]
    poses = np.stack([arrays["poses"] for arrays in stored])
    starts = np.stack([arrays["start_poses"] for arrays in stored])
    off = _pose_error(told[0]["action_map"], starts, np.stack([arrays["actions"] for arrays in stored]), poses, store)
    filled = np.arange(size) % len(members)
    episodes = LearnedEpisodes(model, EnvConfig(task="drive", prompts=prompts), size)
    options = ResetOptions(scene=_scene(store, members, [told[row] for row in filled]), pose=starts[filled])
    episodes.start([told[row]["seed"] for row in filled], options)
    first = episodes.frames()
    assert first is not None
    shown, state = [first[: len(members)]], episodes.now.world
    for path in np.split(poses[filled], told[0]["steps"], axis=1):
        state, output = worlds.step(model, state, path)
        assert output.frames is not None
        shown.append(output.frames[: len(members)].cpu().numpy())
    frames = np.concatenate(shown, axis=1)
    results = []
    for row, index in enumerate(members):
        if off[row] > POSE_TOLERANCE:
            results.append(Replayed(episode=index, difference=f"actions lead {off[row]:.2g} from the stored poses"))
        else:
            results.append(_compare(store, index, stored[row], frames[row]))
    return results


def _scene(store: EpisodeStore, members: Sequence[int], told: Sequence[dict[str, Any]]) -> Any:
    if told[0]["room"] >= 0:
        return [one["room"] for one in told]
    scene = told[0]["extra"].get("scene")
    if scene is None:
        raise StorageError(
            f"{store.path}: episode {members[0]} started from a picture that the store does not name; only episodes in "
            "rooms, or of `sanawm generate`, can be made again"
        )
    return scene


def _pose_error(
    action_map: str, starts: np.ndarray, actions: np.ndarray, poses: np.ndarray, store: EpisodeStore
) -> np.ndarray:
    """Largest difference between stored poses and those to which the actions lead [B]."""
    chosen = read_action_map(action_map)
    inside, _ = chosen.limit(actions.astype(np.float64))
    led, _ = chosen.rollout(starts, chosen.initial(len(starts)), inside, store.info.fps)
    error: np.ndarray = np.abs(led - poses).max(axis=(1, 2, 3))
    return error


def _compare(store: EpisodeStore, index: int, stored: dict[str, np.ndarray], frames: np.ndarray) -> Replayed:
    """frames: [1 + k F, H, W, 3], the picture of reset first."""
    exact = "frame_digests" in stored
    if exact:
        before = np.concatenate([[stored["start_frame_digests"]], stored["frame_digests"]])
        same = digests(frames) == before
    else:
        codec = picture_codec(store.info.picture_codec, store.info.picture_quality)
        before = np.concatenate([stored["start_frames"][None], stored["frames"]])
        rows = codec.rows_per_chunk(store.info.frames_per_step)
        chunks = [frames[:1], *(frames[k : k + rows] for k in range(1, len(frames), rows))]
        same = (np.concatenate([codec.coded(chunk) for chunk in chunks]) == before).all(axis=(1, 2, 3))
    if same.all():
        return Replayed(episode=index, exact=exact)
    return Replayed(
        episode=index, difference=f"{np.count_nonzero(~same)} frames differ", frame=int(same.argmin()), exact=exact
    )
