"""`sanawm view`: a stored episode in Rerun, alone, beside its ground truth, or beside another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanawm_env.errors import ConfigError

if TYPE_CHECKING:
    from sanawm_env.datasets.reader import EpisodeStore
    from sanawm_env.wrappers.rollouts import Finished

NOTED = ("seed", "room", "steps", "reason", "bundle", "variant", "precision", "action_map", "task")


@dataclass(frozen=True, kw_only=True)
class View:
    """store, episode: what to look at. compare, compare_episode: beside which store's episode, by default the same
    number. save: an .rrd file in place of the viewer. memory: what the viewer may take, as "2GB" or "25%"."""

    store: Path
    episode: int = 0
    compare: Path | None = None
    compare_episode: int | None = None
    save: Path | None = None
    memory: str = "2GB"

    def __post_init__(self) -> None:
        if self.compare is None and self.compare_episode is not None:
            raise ConfigError("compare_episode is given without compare; name the store (the same one is allowed).")


def run(config: View) -> str:
    """Opens the viewer or writes the file, and returns what to say of it. ConfigError without a screen, or for an
    episode that is not there; StorageError for a store or file that cannot be read or written."""
    from sanawm_env.wrappers.rerun_sink import Viewer, WholeFile, check_screen
    from sanawm_env.wrappers.rollouts import record

    if config.save is None:
        check_screen()  # before the episode is read
    finished = load(config)
    sink = Viewer(config.store.stem, memory=config.memory) if config.save is None else WholeFile(config.save)
    record(sink, finished)
    shown = " | ".join(finished.tracks)
    return f"{shown} is in the viewer" if config.save is None else f"{config.save}: {shown}; rerun {config.save}"


def load(config: View) -> Finished:
    """What the viewer is to show."""
    from sanawm_env.datasets.reader import EpisodeStore
    from sanawm_env.wrappers import rollouts

    store = EpisodeStore(config.store)
    rows, told = _read(store, config.episode)
    rollout = rollouts.of_episode(rows, store.info, told["reason"])
    settings: dict[str, Any] = {"fps": store.info.fps, "frames_per_chunk": store.info.frames_per_step}
    if config.compare is None:
        truth = rollouts.of_truth(rows)
        tracks = {"episode": rollout} if truth is None else rollouts.compare(rollout, truth, ("dream", "truth"))
        return rollouts.Finished(tracks=tracks, text=notes({"episode": told}), **settings)
    other = EpisodeStore(config.compare)
    if other.info.fps != store.info.fps:
        raise ConfigError(
            f"{config.store} has {store.info.fps} frames/s and {config.compare} {other.info.fps}, which cannot run on "
            "one time line; compare episodes of one rate."
        )
    number = config.episode if config.compare_episode is None else config.compare_episode
    rows, beside = _read(other, number)
    names = (config.store.stem, config.compare.stem)
    if names[0] == names[1]:
        names = (f"{names[0]} {config.episode}", f"{names[1]} {number}")
    if names[0] == names[1]:
        names = (str(config.store), str(config.compare))
    tracks = rollouts.compare(rollout, rollouts.of_episode(rows, other.info, beside["reason"]), names)
    return rollouts.Finished(tracks=tracks, text=notes(dict(zip(names, (told, beside)))), **settings)


def notes(told: Mapping[str, Mapping[str, Any]]) -> str:
    """What is known of episodes, as a Markdown table with a column each."""
    lines = ["| | " + " | ".join(told) + " |", "|---" * (len(told) + 1) + "|"]
    lines += [f"| {key} | " + " | ".join(str(one.get(key, "")) for one in told.values()) + " |" for key in NOTED]
    return "\n".join(lines)


def _read(store: EpisodeStore, episode: int) -> tuple[dict[str, Any], dict[str, Any]]:
    if not -len(store) <= episode < len(store):
        raise ConfigError(f"{store.path} has no episode {episode}, allowed are 0 .. {len(store) - 1}; choose another.")
    rows = store[episode]
    if "frames" not in rows:
        raise ConfigError(f"{store.path} keeps latents alone; write one with frames (StoreEpisodes, keep='both').")
    return rows, store.describe(episode)
