"""A world that is driven by keys: whoever holds them says so here, whoever shows it asks here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sanawm_env.errors import ActionError
from sanawm_env.keys import KEYS, PRESETS

STILL = 1e-6  # metres, and entries of rotations, below which a camera does not move any more
RELEASE = 2.0  # seconds after which keys count as released when nobody says that they are held
ARROWS = {"ArrowUp": "look_up", "ArrowDown": "look_down", "ArrowLeft": "turn_left", "ArrowRight": "turn_right"}


@dataclass(frozen=True, kw_only=True)
class View:
    """What there is to see. number: of the view, counted over all episodes. frames: uint8 [T, H, W, 3], those since the
    view before. frame: the newest one's number in its episode. reason: why the episode has ended, "" while it goes
    on. step_seconds: of computing them."""

    number: int
    frames: np.ndarray
    frame: int
    position: tuple[float, float, float]
    reason: str
    step_seconds: float


class Session:
    """Steps an environment with action map `Keys` ("keyboard") while keys are held or the camera still moves; a world
    at rest waits and computes nothing. An action holds for a chunk, so keys take effect at the next one.

    Only `run` touches the environment; all else may be called from any thread.
    """

    def __init__(self, env: Any, preset: str, seed: int) -> None:
        self.env, self.seed = env, seed
        self.fps, self.frames_per_step = float(env.unwrapped.fps), int(env.unwrapped.frames_per_step)
        self.keys = PRESETS[preset].keys
        self.names = {key: key for key in KEYS} | {arrow: self.keys[control] for arrow, control in ARROWS.items()}
        self._changed = threading.Condition()
        self._held: frozenset[str] = frozenset()
        self._heard = 0.0
        self._reset, self._stop = True, False
        self._view: View | None = None

    def hold(self, names: Iterable[str]) -> None:
        """These keys are down now, and no others: letters of `KEYS` and the arrows by the names browsers give them.
        Say so again within `RELEASE` seconds. ActionError for another name."""
        given = list(names)
        if unknown := [name for name in given if name not in self.names]:
            raise ActionError(f"key {unknown[0]!r} is unknown, allowed are {', '.join(self.names)}; press one of them.")
        with self._changed:
            self._held, self._heard = frozenset(self.names[name] for name in given), time.monotonic()
            self._changed.notify_all()

    def restart(self) -> None:
        """The next episode begins as soon as the running step is done."""
        with self._changed:
            self._reset = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Ends `run`, and everybody's waiting."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        return self._stop

    def view(self, after: int, timeout: float) -> View | None:
        """The newest view once its number is above `after`; None if there is none within `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop or self._newer(after), timeout)
            return self._view if self._newer(after) else None

    def run(self) -> None:
        """Drives until `stop`, no faster than the world's own time."""
        moving, ready = False, 0.0
        try:
            while self._wait(moving, ready):
                starting, self._reset = self._reset, False
                ready = time.monotonic() + self.frames_per_step / self.fps
                if starting:
                    self._start()
                moving = not starting and self._step(self._pressed())
        finally:
            self.stop()

    def _wait(self, moving: bool, ready: float) -> bool:
        """Waits for something to do, for a step until `ready`; whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop or self._reset or moving or bool(self._pressed()))
            self._changed.wait_for(lambda: self._stop or self._reset, max(0.0, ready - time.monotonic()))
            return not self._stop

    def _newer(self, after: int) -> bool:
        return self._view is not None and self._view.number > after

    def _pressed(self) -> frozenset[str]:
        return self._held if time.monotonic() - self._heard < RELEASE else frozenset()

    def _start(self) -> None:
        _, info = self.env.reset(seed=self.seed)
        self.seed += 1
        self._show(info, "", self.env.unwrapped.last_timing["reset_seconds"])

    def _step(self, pressed: frozenset[str]) -> bool:
        """A step; whether the camera moved in its last frame."""
        action = np.array([float(key in pressed) for key in KEYS])
        *_, info = self.env.step(action)
        reason = info["termination_reason"] or info["truncation_reason"]
        self._show(info, reason, self.env.unwrapped.last_timing["step_seconds"])
        last, before = info["poses"][-1], info["poses"][-2]
        return bool(np.abs(last - before).max() > STILL)

    def _show(self, info: dict[str, Any], reason: str, seconds: float) -> None:
        x, y, z = (float(value) for value in info["poses"][-1][:3, 3])
        with self._changed:
            self._view = View(
                number=1 if self._view is None else self._view.number + 1,
                frames=np.array(info["frames"]),
                frame=int(info["frame"]),
                position=(x, y, z),
                reason=reason,
                step_seconds=seconds,
            )
            self._changed.notify_all()
