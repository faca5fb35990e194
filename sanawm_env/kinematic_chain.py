"""Action map of a robot arm that carries the camera: joint velocities in, camera poses by MuJoCo's kinematics out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sanawm_env.actions import ActionMap, check_at_least
from sanawm_env.errors import ActionError, MissingExtraError, nearest
from sanawm_env.rigid import CAMERA_FROM_BODY, homogeneous

# Columns are OpenCV's axes written in those of the link: as MuJoCo's cameras have them (x right, y up, looking along
# -z), as robots' bodies do (REP 103: x forward, y left, z up), or as they are (REP 103's optical frames).
AXES = {"mujoco": np.diag([1.0, -1.0, -1.0]), "body": CAMERA_FROM_BODY.T, "optical": np.eye(3)}
KINDS = ("camera", "site", "body")


@dataclass(frozen=True, kw_only=True)
class KinematicChain(ActionMap):
    """A robot from an MJCF or URDF file, standing still, whose joints move the camera on one of its links.

    robot: the file. link: a camera, site or body of it, looked for in this order, a URDF's links being bodies. axes:
    how the camera looks out of the link, "mujoco", "body" or "optical" (see AXES); by default "mujoco" for a camera and
    "optical" for the rest. joints: those that an action moves, all hinges and slides by default; the others keep their
    place. max_velocity: of each, rad/s or m/s. The joints start where the file's reference (or its first keyframe) has
    them, which is where the camera is at the start pose; they stop at their limits. Motion: joint positions, from the
    start. Needs the extra `mujoco`. ActionError: no such file, link or joint; it names those there are.
    """

    name: ClassVar[str] = "kinematic_chain"
    robot: str
    link: str
    axes: str | None = None
    joints: tuple[str, ...] | None = None
    max_velocity: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, ("max_velocity",))
        if self.axes is not None and self.axes not in AXES:
            raise ActionError(f"axes of action map 'kinematic_chain' is {self.axes!r}; {nearest(self.axes, AXES)}")
        if self.joints is not None:
            object.__setattr__(self, "joints", tuple(self.joints))
        self._link, self._moved  # noqa: B018 - a wrong file is told here

    @property
    def motion_size(self) -> int:  # type: ignore[override]
        """Joints that move."""
        return len(self._moved)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._model.joint(number).name for number in self._moved)

    @property
    def units(self) -> tuple[str, ...]:
        slide = int(_mujoco().mjtJoint.mjJNT_SLIDE)
        return tuple("m/s" if self._model.jnt_type[number] == slide else "rad/s" for number in self._moved)

    @property
    def high(self) -> np.ndarray:
        return np.full(self.size, self.max_velocity)

    def advance(
        self, pose: np.ndarray, motion: np.ndarray, action: np.ndarray, dt: float
    ) -> tuple[np.ndarray, np.ndarray]:
        reached = motion + action * dt
        low, high = self._range
        moved = np.clip(reached, np.minimum(low, motion), np.maximum(high, motion))
        steps = [np.linalg.inv(self._camera(before)) @ self._camera(after) for before, after in zip(motion, moved)]
        return pose @ np.stack(steps), moved

    def _camera(self, moved: np.ndarray) -> np.ndarray:
        """[4, 4] camera in the robot's base, OpenCV axes, with joints [k] moved this far from the start."""
        mujoco, model, data = _mujoco(), self._model, self._data
        data.qpos[:] = self._home
        data.qpos[model.jnt_qposadr[self._moved]] += moved
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        kind, number = self._link
        places = {"camera": ("cam_xmat", "cam_xpos"), "site": ("site_xmat", "site_xpos"), "body": ("xmat", "xpos")}
        turned, position = (np.array(getattr(data, name)[number], np.float64) for name in places[kind])
        axes = AXES[self.axes or ("mujoco" if kind == "camera" else "optical")]
        return homogeneous(turned.reshape(3, 3) @ axes, position)

    @cached_property
    def _model(self) -> Any:
        mujoco, file = _mujoco(), Path(self.robot).expanduser()
        if not file.is_file():
            raise ActionError(f"robot is {self.robot!r}, which is no file; pass the path of an MJCF or URDF file.")
        try:
            described = mujoco.MjSpec.from_file(str(file))
            # A camera's link is often fixed to the one before it, and a URDF's fixed links are otherwise joined.
            described.compiler.fusestatic = False
            return described.compile()
        except (ValueError, RuntimeError) as error:
            told = " ".join(str(error).split())
            raise ActionError(f"robot {self.robot!r} cannot be read: {told}; correct the file.") from error

    @cached_property
    def _data(self) -> Any:
        return _mujoco().MjData(self._model)

    @cached_property
    def _home(self) -> np.ndarray:
        """Position of every joint at the start."""
        return np.array(self._model.key_qpos[0] if self._model.nkey else self._model.qpos0)

    @cached_property
    def _moved(self) -> list[int]:
        """Numbers of the joints that an action moves."""
        model, kinds = self._model, _mujoco().mjtJoint
        movable = (int(kinds.mjJNT_HINGE), int(kinds.mjJNT_SLIDE))
        simple = [n for n in range(model.njnt) if int(model.jnt_type[n]) in movable]
        numbers = {model.joint(n).name: n for n in simple}
        if not simple:
            raise ActionError(f"robot {self.robot!r} has no hinge or slide to move; pass another file.")
        for joint in self.joints or ():
            if joint not in numbers:
                raise ActionError(f"robot {self.robot!r} has no joint {joint!r}; {nearest(joint, numbers)}")
        return simple if self.joints is None else [numbers[joint] for joint in self.joints]

    @cached_property
    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest motion [k] of the joints, from the start."""
        model = self._model
        home = self._home[model.jnt_qposadr[self._moved]]
        limited = model.jnt_limited[self._moved].astype(bool)
        low, high = model.jnt_range[self._moved].T
        return np.where(limited, low - home, -np.inf), np.where(limited, high - home, np.inf)

    @cached_property
    def _link(self) -> tuple[str, int]:
        """Kind and number of the link."""
        model = self._model
        counts = {"camera": model.ncam, "site": model.nsite, "body": model.nbody}
        names = {kind: [getattr(model, kind)(n).name for n in range(counts[kind])] for kind in KINDS}
        for kind, known in names.items():
            if self.link in known:
                return kind, known.index(self.link)
        links = [name for known in names.values() for name in known if name]
        raise ActionError(f"robot {self.robot!r} has no link {self.link!r}; {nearest(self.link, links)}")


def _mujoco() -> Any:
    try:
        import mujoco
    except ImportError as error:
        remedy = "pip install 'sanawm-env[mujoco]'"
        raise MissingExtraError(f"action map 'kinematic_chain' needs MuJoCo; {remedy}.") from error
    return mujoco
