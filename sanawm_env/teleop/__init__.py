"""`sanawm teleop`: drive a world by keys, in a browser page or in a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sanawm_env.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Teleop:
    """bundle, device: the world. control: "browser" (a page served at host and port, which shows the frames) or
    "terminal" (keys of the terminal; frames in the Rerun viewer, or in the recording only). preset, speed, turn_rate:
    of the action map `Keys`. seed: of the first episode, every reset adds one. record: an .rrd file or a .zarr store,
    or None. memory: what the viewer may take."""

    bundle: str = "rooms"
    device: str | None = None
    control: Literal["browser", "terminal"] = "browser"
    preset: str = "diffusers"
    speed: float | None = 1.0
    turn_rate: float | None = 1.0
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8765
    record: Path | None = None
    memory: str = "2GB"

    def __post_init__(self) -> None:
        if self.control not in ("browser", "terminal"):
            raise ConfigError(f"control is {self.control!r}; {nearest(str(self.control), ('browser', 'terminal'))}")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port is {self.port}, allowed are 0 (any free one) .. 65535; change it.")
        if self.record is not None and self.record.suffix not in (".rrd", ".zarr"):
            raise ConfigError(f"record is {self.record}, allowed is a name that ends in .rrd or .zarr; change it.")


def run(config: Teleop) -> None:
    """Drives until the page is told to stop, q is pressed or Ctrl-C comes; then the recording is complete."""
    from sanawm_env.teleop.session import Session

    with _environment(config) as env:
        session = Session(env, config.preset, config.seed)
        if config.control == "browser":
            from sanawm_env.teleop.page import serve

            with serve(session, config.host, config.port) as url:
                print(f"drive at {url} (Ctrl-C here stops)", flush=True)
                session.run()
        else:
            from sanawm_env.teleop.terminal import keys_of_terminal

            with keys_of_terminal(session):
                session.run()
    if config.record is not None:
        print(f"recorded {config.record}")


@contextlib.contextmanager
def _environment(config: Teleop) -> Iterator[Any]:
    """The world with what records it; closed at the end, however it comes."""
    import gymnasium as gym

    from sanawm_env.wrappers.rerun_log import LogToRerun
    from sanawm_env.wrappers.rerun_sink import check_screen

    watched = config.control == "terminal" and (config.record is None or config.record.suffix != ".rrd")
    if watched:
        check_screen()
    options = {"preset": config.preset, "flavour": "keyboard", "speed": config.speed, "turn_rate": config.turn_rate}
    env: Any = gym.make(
        "sanawm_env/Rooms-v0",
        bundle=config.bundle,
        device=config.device,
        action_map="keys",
        action_options=options,
        task="drive",
    )
    with contextlib.closing(env):
        if watched:
            env = LogToRerun(env, None, codec="jpeg", viewer_memory=config.memory)
        if config.record is not None and config.record.suffix == ".rrd":
            env = LogToRerun(env, config.record)
        elif config.record is not None:
            from sanawm_env.wrappers.episodes import StoreEpisodes

            env = StoreEpisodes(env, config.record)
        with contextlib.closing(env):
            yield env
