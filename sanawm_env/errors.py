"""Every exception of the package. A message names the value seen, what is allowed and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SanaWMError(Exception):
    """Base of all errors raised on purpose by this package."""


class ActionError(SanaWMError, ValueError):
    """An action, or the name of an action map, that cannot be used."""


class PoseError(SanaWMError, ValueError):
    """A camera pose or intrinsics that are not usable."""


class SceneError(SanaWMError, ValueError):
    """A first picture, scene or reset option that does not fit the world."""


class TaskError(SanaWMError, ValueError):
    """An unknown task or an impossible start for one."""


class ConfigError(SanaWMError, ValueError):
    """A configuration value or key that is not allowed."""


class BundleError(SanaWMError, ValueError):
    """A bundle that is missing, damaged or of another kind."""


class SpaceError(SanaWMError, ValueError):
    """A policy made for other observations or actions than an environment's."""


class StateError(SanaWMError, RuntimeError):
    """A world state used where it does not fit."""


class SpentStateError(StateError):
    """A world state that an earlier step has already advanced in place."""


class LifecycleError(SanaWMError, RuntimeError):
    """An environment stepped before reset or after close."""


class StorageError(SanaWMError, OSError):
    """A file or folder that cannot be written or read."""


class WorkerError(SanaWMError, RuntimeError):
    """A process that was to do part of a job and ended before it had."""


class PolicyError(SanaWMError, RuntimeError):
    """A policy elsewhere that does not answer, or answers with an error; a planner's cost that is no number."""


class BackendError(SanaWMError, RuntimeError):
    """A kernel backend or precision that this machine cannot run."""


class MissingExtraError(SanaWMError, ImportError):
    """An optional package that is not installed; the message names the extra."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Allowed names as text, the one closest to `name` first ("did you mean 'rooms'? Known: ..."), or that none is."""
    known = sorted(allowed)
    if not known:
        return "none is known."
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."
