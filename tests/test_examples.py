"""Every example runs unedited with few steps on a CPU, and so does the first lesson of the README."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.mujoco_here import needs_mujoco
from tests.public_layouts import SIZE, write_release

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("[0-9]*.py"))
RELEASED = "03_sana_wm.py"  # the one that needs weights which are not in the package
DRAWS_MUJOCO = "11_record_any_env.py"
EXTRAS = {"07_ppo_in_the_dream.py": ("stable_baselines3", "rl"), "10_arm_camera.py": ("mujoco", "mujoco")}
# On a CPU, futures are computed one after another, and a step of the shipped world's training takes ten seconds.
FEW = {
    "02_fork_and_plan.py": ["--futures", "3"],
    "09_mpc.py": ["--steps", "1", "--candidates", "2"],
    "12_adapt.py": ["--steps", "1"],
}
MAX_LINES = 60


def run(arguments: list[str], cwd: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_there_are_examples() -> None:
    assert {"01_first_steps.py", "02_fork_and_plan.py", RELEASED, "04_generate_dataset.py"} <= set(EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != RELEASED])
def test_example_runs(name: str, tmp_path: Path) -> None:
    if name == DRAWS_MUJOCO:
        needs_mujoco()
    if name in EXTRAS:
        package, extra = EXTRAS[name]
        pytest.importorskip(package, reason=f"the extra `{extra}` is not installed")
    told = ["--steps", "2", "--device", "cpu", *FEW.get(name, [])]
    assert run([str(ROOT / "examples" / name), *told], tmp_path), "it should say something"


@pytest.mark.slow
def test_the_released_model_runs_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the released model, with its release in miniature in place of the download."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    release = write_release(tmp_path / "release")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    told = ["--source", str(release), "--text-encoder", str(release / "gemma2"), "--size", *map(str, SIZE)]
    told += ["--image", "a.png", "--prompt", "a kitchen with red chairs", "--steps", "2", "--device", "cpu"]
    printed = run([str(ROOT / "examples" / RELEASED), *told], tmp_path)
    assert "frame  48" in printed and "scale of a picture is not known" in printed
    assert (tmp_path / "outputs" / "sana_wm" / "episode-0000.mp4").stat().st_size > 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_short(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) <= MAX_LINES


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_readme_has_code() -> None:
    assert python_blocks()


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(python_blocks())))
def test_readme_code_runs(index: int, tmp_path: Path) -> None:
    run(["-c", python_blocks()[index]], tmp_path)
