"""Training of the Rooms world: one file a stage; `run_stage(name, settings)` runs one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def run_stage(name: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a stage of stages.py, such as "rooms-denoiser" or "recipe" (which says what the mapping holds)."""
    from sanawm_env.training.stages import run_stage as run  # torch and diffusers are loaded only by whoever trains

    return run(name, mapping)
