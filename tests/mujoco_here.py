"""Whether MuJoCo can draw on this machine, for the tests that need its pictures."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest

DRAW = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).close()"


def needs_mujoco() -> None:
    """Skips a test where MuJoCo is missing or has nothing to draw with."""
    pytest.importorskip("mujoco", reason="the extra `mujoco` is not installed")
    if problem := _problem():
        pytest.skip(f"MuJoCo cannot draw here with MUJOCO_GL={os.environ['MUJOCO_GL']}: {problem}")


@functools.cache
def _problem() -> str:
    done = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1] if done.returncode else ""
