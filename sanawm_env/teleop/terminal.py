"""Keys of a terminal for a session. A terminal tells presses and repeats, not releases, so a key counts as held for a
little longer than the time between two repeats."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Iterator

from sanawm_env.errors import ConfigError
from sanawm_env.keys import CONTROLS
from sanawm_env.teleop.session import Session

HELD = 0.6  # seconds; terminals wait up to half a second before the first repeat
SEQUENCES = {"\x1b[A": "ArrowUp", "\x1b[B": "ArrowDown", "\x1b[D": "ArrowLeft", "\x1b[C": "ArrowRight"}


@contextlib.contextmanager
def keys_of_terminal(session: Session) -> Iterator[None]:
    """Reads the keys of standard input for a session, whose state it prints; the terminal is as before afterwards.

    ConfigError where standard input is no terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError("standard input is no terminal; run it in one, or choose control=browser.")
    import termios
    import tty

    print("keys: " + ", ".join(f"{session.keys[control]} {control.replace('_', ' ')}" for control in CONTROLS))
    print("arrows turn and look; r next room, q stop", flush=True)
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    threads = [threading.Thread(target=work, args=(session,), daemon=True) for work in (_listen, _report)]
    tty.setcbreak(number)
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        session.stop()
        for thread in threads:
            thread.join()
        termios.tcsetattr(number, termios.TCSADRAIN, before)
        print()


def names(text: str) -> list[str]:
    """Names of the keys in what a terminal sent."""
    found = []
    while text:
        arrow = next((sequence for sequence in SEQUENCES if text.startswith(sequence)), None)
        found.append(text[0].lower() if arrow is None else SEQUENCES[arrow])
        text = text[1 if arrow is None else len(arrow) :]
    return found


def _listen(session: Session) -> None:
    until: dict[str, float] = {}
    said: set[str] = set()
    number = sys.stdin.fileno()
    while not session.stopped:
        ready, _, _ = select.select([number], [], [], 0.05)
        for name in names(os.read(number, 1024).decode(errors="ignore")) if ready else ():
            if name in session.names:
                until[name] = time.monotonic() + HELD
            elif name == "r":
                session.restart()
            elif name == "q":
                session.stop()
        held = {name for name, end in until.items() if end > time.monotonic()}
        if ready or held != said:
            session.hold(held)
            said = held


def _report(session: Session) -> None:
    seen = 0
    while not session.stopped:
        view = session.view(seen, 0.2)
        if view is not None:
            seen = view.number
            x, _, z = view.position
            ended = f"; ended: {view.reason}, r for the next room" if view.reason else ""
            rate = len(view.frames) / view.step_seconds
            print(
                f"\rframe {view.frame}, x {x:+.2f} z {z:+.2f} m, {rate:.1f} frames/s{ended}\x1b[K", end="", flush=True
            )
