"""sanawm_env: the SANA-WM world model as a simulator that one can `step()`.

Importing this package registers its environments with Gymnasium, where that is installed, and loads nothing slow: torch
and the models come with the first use of a public name below.

Dimension letters, in docstrings and shapes:

    B  worlds in a batch               F  frames of a chunk, n * r
    T  frames or latent frames         n  latent frames of a chunk
    H  frame height, W frame width     r  frames of a latent frame
    h  latent height, w latent width   C  channels
    N  attention heads                 D  features of a head
    A  columns of an action            k  numbers of motion an action map carries from frame to frame

Axes are OpenCV's (x right, y down, z forward), poses are camera-to-world 4x4 in metres, times in seconds, angles in
radians. Actions follow robots: forward, left and up are positive, and a positive turn is to the left.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from sanawm_env import errors
from sanawm_env.errors import MissingExtraError, SanaWMError

if TYPE_CHECKING:
    from sanawm_env.actions import ActionMap as ActionMap
    from sanawm_env.actions import make_action_map as make_action_map
    from sanawm_env.bundle import load as load
    from sanawm_env.clips import generate as generate
    from sanawm_env.clips import refine as refine
    from sanawm_env.env import SanaWMEnv as SanaWMEnv
    from sanawm_env.explore import Explore as Explore
    from sanawm_env.planned_env import PlannedEnv as PlannedEnv
    from sanawm_env.pretrained import from_pretrained as from_pretrained
    from sanawm_env.scene import Scene as Scene
    from sanawm_env.scene import load_scene as load_scene
    from sanawm_env.scene import prepare_image as prepare_image
    from sanawm_env.snapshot import Snapshot as Snapshot
    from sanawm_env.state import StepOutput as StepOutput
    from sanawm_env.state import WorldState as WorldState
    from sanawm_env.tasks import Drive as Drive
    from sanawm_env.tasks import GoTo as GoTo
    from sanawm_env.truth import RoomsTruthEnv as RoomsTruthEnv
    from sanawm_env.truth import RoomsTruthVectorEnv as RoomsTruthVectorEnv
    from sanawm_env.vector_env import SanaWMVectorEnv as SanaWMVectorEnv
    from sanawm_env.world import WorldModel as WorldModel
    from sanawm_env.world import initial as initial
    from sanawm_env.world import step as step

__version__ = "0.1.0"

# Module of each public name that is loaded on first use.
_HOMES = {
    "ActionMap": "actions",
    "make_action_map": "actions",
    "load": "bundle",
    "SanaWMEnv": "env",
    "PlannedEnv": "planned_env",
    "generate": "clips",
    "refine": "clips",
    "from_pretrained": "pretrained",
    "Scene": "scene",
    "load_scene": "scene",
    "prepare_image": "scene",
    "Snapshot": "snapshot",
    "StepOutput": "state",
    "WorldState": "state",
    "Drive": "tasks",
    "GoTo": "tasks",
    "Explore": "explore",
    "RoomsTruthEnv": "truth",
    "RoomsTruthVectorEnv": "truth",
    "SanaWMVectorEnv": "vector_env",
    "WorldModel": "world",
    "initial": "world",
    "step": "world",
}

__all__ = [*_HOMES, "SanaWMError", "errors", "register_envs"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {errors.nearest(name, __all__)}")
    if name.endswith("Env") and importlib.util.find_spec("gymnasium") is None:
        raise MissingExtraError(f"{name} needs gymnasium, which is not installed; pip install 'gymnasium>=1.2'.")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register_envs() -> None:
    """Makes our environments known to `gymnasium.make` and `make_vec`; done on import, harmless when repeated.

    Gymnasium's own checks of order and of actions are off, because ours come with the value seen and the remedy.
    """
    from gymnasium.envs.registration import register, registry

    if "sanawm_env/Rooms-v0" not in registry:
        register(
            "sanawm_env/Rooms-v0",
            entry_point="sanawm_env.env:SanaWMEnv",
            vector_entry_point="sanawm_env.vector_env:SanaWMVectorEnv",
            order_enforce=False,
            disable_env_checker=True,
            kwargs={"bundle": "rooms"},
        )
        register(
            "sanawm_env/RoomsTruth-v0",
            entry_point="sanawm_env.truth:RoomsTruthEnv",
            vector_entry_point="sanawm_env.truth:RoomsTruthVectorEnv",
            order_enforce=False,
            disable_env_checker=True,
            kwargs={"bundle": "rooms"},
        )
        register(
            "sanawm_env/SanaWM-v0",
            entry_point="sanawm_env.sana_wm:make_env",
            order_enforce=False,
            disable_env_checker=True,
        )


# A bare GPU machine trains and evaluates without Gymnasium; there is then nothing to register with.
if importlib.util.find_spec("gymnasium") is not None:
    register_envs()
