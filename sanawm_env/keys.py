"""Keyboard-like control with the key maps, speeds and inertia of the public SANA-WM programs (spec rollout.md 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sanawm_env.actions import ActionMap, follow
from sanawm_env.errors import ActionError, nearest
from sanawm_env.rigid import about_right, about_vertical, homogeneous

KEYS = ("w", "s", "a", "d", "i", "k", "j", "l")
CONTROLS = ("forward", "back", "left", "right", "turn_left", "turn_right", "look_up", "look_down")
HELD_SECONDS, COAST_SECONDS = 0.45, 1.0
REFERENCE_FPS = 16.0

# What an action of the "choice" flavour presses.
CHOICES: tuple[tuple[str, ...], ...] = (
    (),
    *((control,) for control in CONTROLS),
    ("forward", "turn_left"),
    ("forward", "turn_right"),
)


@dataclass(frozen=True, kw_only=True)
class KeyPreset:
    """One public program's keys (spec rollout.md 5.3), its per-frame speeds at 16 frames/s turned into m/s and rad/s.

    strafe_keys, turn_keys: the pair of keys for left and right. steering: part of the turn rate that strafing adds.
    limit: of the pitch, radians; saturate: whether a step across it goes up to it or is dropped. epsilon: added to the
    length of a levelled axis. The defaults are what most of the programs have.
    """

    speed: float
    turn_rate: float
    strafe_keys: str = "ad"
    turn_keys: str = "jl"
    steering: float = 0.0
    limit: float = math.radians(85)
    saturate: bool = False
    smooth: bool = False
    epsilon: float = 1e-6

    @property
    def keys(self) -> dict[str, str]:
        """Key of each control."""
        return dict(zip(CONTROLS, f"ws{self.strafe_keys}{self.turn_keys}ik", strict=True))


PRESETS = {
    "nvlabs": KeyPreset(
        speed=0.025 * REFERENCE_FPS,
        turn_rate=math.radians(0.6) * REFERENCE_FPS,
        strafe_keys="jl",
        turn_keys="ad",
        limit=math.radians(60),
        saturate=True,
        smooth=True,
    ),
    "diffusers": KeyPreset(speed=0.05 * REFERENCE_FPS, turn_rate=math.radians(1.2) * REFERENCE_FPS, epsilon=0.0),
    "sglang": KeyPreset(speed=0.04 * REFERENCE_FPS, turn_rate=math.radians(1.2) * REFERENCE_FPS, steering=0.4),
}


@dataclass(frozen=True, kw_only=True)
class Keys(ActionMap):
    """Walking with keys: level motion, yaw about the vertical, pitch about the camera's own x axis.

    preset: "nvlabs" (inertia; a, d turn; j, l strafe), "diffusers", "sglang". flavour: "continuous" (forward, left,
    turn left, look up, each a part -1 .. 1 of full speed), "discrete" (one of the 11 `CHOICES`), "keyboard" (8 keys up
    or down, in the order of `KEYS`). speed in m/s and turn_rate in rad/s replace the preset's.
    """

    name: ClassVar[str] = "keys"
    motion_size: ClassVar[int] = 4 + len(CONTROLS)  # smoothed velocity, then the controls pressed a frame ago
    preset: str = "nvlabs"
    flavour: str = "continuous"
    speed: float | None = None
    turn_rate: float | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ActionError(
                f"unknown preset {self.preset!r} of action map 'keys'; {nearest(str(self.preset), PRESETS)}"
            )
        flavours = ("continuous", "discrete", "keyboard")
        if self.flavour not in flavours:
            raise ActionError(
                f"unknown flavour {self.flavour!r} of action map 'keys'; {nearest(str(self.flavour), flavours)}"
            )
        for option in ("speed", "turn_rate"):
            value = getattr(self, option)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ActionError(
                    f"{option} of action map 'keys' is {value!r}, allowed > 0 or None; change the option."
                )

    @property
    def kind(self) -> str:
        return {"continuous": "continuous", "discrete": "choice", "keyboard": "binary"}[self.flavour]

    @property
    def columns(self) -> tuple[str, ...]:
        return {"continuous": ("forward", "left", "turn_left", "look_up"), "discrete": ("choice",), "keyboard": KEYS}[
            self.flavour
        ]

    @property
    def units(self) -> tuple[str, ...]:
        return ({"continuous": "of full speed", "discrete": "index", "keyboard": "pressed"}[self.flavour],) * self.size

    @property
    def high(self) -> np.ndarray:
        return np.full(self.size, len(CHOICES) - 1.0) if self.flavour == "discrete" else np.ones(self.size)

    @property
    def low(self) -> np.ndarray:
        return -self.high if self.flavour == "continuous" else np.zeros(self.size)

    def advance(
        self, pose: np.ndarray, motion: np.ndarray, action: np.ndarray, dt: float
    ) -> tuple[np.ndarray, np.ndarray]:
        axes, pressed = self._controls(action)
        velocity = self._smooth(motion, self._target(axes), pressed, dt)
        return self._move(pose, velocity * dt), np.concatenate([velocity, pressed], axis=1)

    def _controls(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Axes [B, 4] (forward, left, turn left, look up; -1 .. 1) and the controls that are pressed [B, 8], 0 or 1."""
        if self.flavour == "continuous":
            both = np.stack([action > 0, action < 0], axis=-1)
            return action, both.reshape(len(action), len(CONTROLS)).astype(np.float64)
        table = self._choices() if self.flavour == "discrete" else self._keyboard()
        pressed = table[action[:, 0].astype(np.int64)] if self.flavour == "discrete" else action @ table
        return pressed[:, 0::2] - pressed[:, 1::2], pressed

    @staticmethod
    def _choices() -> np.ndarray:
        return np.array([[float(control in chosen) for control in CONTROLS] for chosen in CHOICES])

    def _keyboard(self) -> np.ndarray:
        keys = PRESETS[self.preset].keys
        return np.array([[float(keys[control] == key) for control in CONTROLS] for key in KEYS])

    def _target(self, axes: np.ndarray) -> np.ndarray:
        """Velocity [B, 4] asked for: forward, left in m/s, turn left, look up in rad/s."""
        preset = PRESETS[self.preset]
        speed = preset.speed if self.speed is None else self.speed
        rate = preset.turn_rate if self.turn_rate is None else self.turn_rate
        target = axes * np.array([speed, speed, rate, rate])
        target[:, 2] += preset.steering * rate * axes[:, 1]
        return target

    def _smooth(self, motion: np.ndarray, target: np.ndarray, pressed: np.ndarray, dt: float) -> np.ndarray:
        """Inertia (spec rollout.md 5.4): any new press takes the target at once, on every axis; a release coasts."""
        if not PRESETS[self.preset].smooth:
            return target
        velocity, before = motion[:, :4], motion[:, 4:]
        held, coasting = (follow(velocity, target, dt, seconds) for seconds in (HELD_SECONDS, COAST_SECONDS))
        eased = np.where(np.abs(target) > 1e-12, held, coasting)
        newly = np.any(pressed > before, axis=1, keepdims=True)
        return np.where(newly, target, eased)

    def _move(self, pose: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Pose after a frame (spec rollout.md 5.2); change: [B, 4] metres and radians."""
        epsilon = PRESETS[self.preset].epsilon
        rotation = about_vertical(-change[:, 2]) @ pose[:, :3, :3] @ about_right(self._pitch(pose, change[:, 3]))
        ahead, right = _levelled(rotation[:, :, 2], epsilon), _levelled(rotation[:, :, 0], epsilon)
        return homogeneous(rotation, pose[:, :3, 3] + ahead * change[:, :1] - right * change[:, 1:2])

    def _pitch(self, pose: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Change of pitch that the limit leaves; a camera that starts beyond the limit may come back but is not
        pulled."""
        preset = PRESETS[self.preset]
        pitch = np.arcsin(np.clip(-pose[:, 1, 2], -1, 1))
        wanted = pitch + change
        if preset.saturate:
            return np.clip(wanted, np.minimum(pitch, -preset.limit), np.maximum(pitch, preset.limit)) - pitch
        beyond = (np.abs(wanted) > preset.limit) & (np.abs(wanted) > np.abs(pitch))
        return np.where(beyond, 0.0, change)


def _levelled(axis: np.ndarray, epsilon: float) -> np.ndarray:
    """Axes [B, 3] without their vertical part, of about unit length."""
    flat = axis * np.array([1.0, 0.0, 1.0])
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True) + epsilon, 1e-12)


def read_script(script: str) -> np.ndarray:
    """Frames of a key script such as "w-80,jw-40,none-20" (spec rollout.md 5.1) as actions of the "keyboard" flavour,
    [F, 8].

    Raises ActionError that names the first segment it cannot read.
    """
    rows: list[np.ndarray] = []
    for segment in script.replace("，", ",").split(","):
        keys, _, count = (part.strip().lower() for part in segment.partition("-"))
        pressed = set() if keys == "none" else set(keys)
        if not count.isdecimal() or int(count) < 1 or not keys or not pressed <= set(KEYS):
            raise ActionError(
                f"segment {segment.strip()!r} of the key script is not KEYS-FRAMES; KEYS is none or letters of "
                f"{''.join(KEYS)!r}, FRAMES a positive whole number, as in 'w-80,jw-40,none-20'."
            )
        rows.append(np.tile([float(key in pressed) for key in KEYS], (int(count), 1)))
    return np.concatenate(rows)


def parse_choice(control: str) -> int:
    """Index of a choice of the "discrete" flavour, written as controls joined by "+" ("forward+turn_left"); "none" is
    0."""
    wanted = () if control == "none" else tuple(control.split("+"))
    if wanted not in CHOICES:
        raise ActionError(f"unknown choice {control!r}; {nearest(control, ['none', *map('+'.join, CHOICES[1:])])}")
    return CHOICES.index(wanted)
