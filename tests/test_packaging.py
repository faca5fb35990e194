"""What a wheel contains, which names it installs, and what importing it costs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("policies", "datasets", "kernels", "configs")
IMPORT_SECONDS = 0.3


def python(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of the working tree and the wheel built from it, with the build tools of this environment."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_from_sdist_contains_everything(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
    # Everything that git would not ignore and a user needs: the modules, and the data beside them.
    here = {
        path.relative_to(ROOT).as_posix()
        for folder in ("", *LINKED)
        for path in (ROOT / "sanawm_env" / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".json", ".safetensors", ".typed", ".html"}
        and "__pycache__" not in path.parts
    }
    assert sorted(here - names) == []
    for bundle in ("rooms", "rooms-teacher"):
        folder = f"sanawm_env/bundles/{bundle}/"
        assert f"{folder}bundle.json" in names
        assert any(name.startswith(folder) and name.endswith(".safetensors") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_only_one_top_level_name_is_installed(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sanawm_env"}


@pytest.mark.slow
def test_sdist_has_no_links_to_follow(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        outside = [m.name for m in sdist.getmembers() if m.issym() and m.linkname.startswith("/")]
    assert outside == []


@pytest.mark.slow
def test_the_wheel_works_away_from_the_sources(archives: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "import sanawm_env, sanawm_env.datasets.schema, sanawm_env.kernels.backend, sanawm_env.cli_parts as parts;"
        f"assert sanawm_env.__file__.startswith({str(tmp_path)!r}), sanawm_env.__file__;"
        "print(parts.compose('demo', [])['bundle'])"
    )
    assert python(code, cwd=tmp_path) == "rooms"


@pytest.mark.parametrize("name", LINKED)
def test_links_are_relative_and_resolve(name: str) -> None:
    link = ROOT / "sanawm_env" / name
    assert link.is_symlink() and link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", ["policies", "datasets", "kernels"])
def test_root_folders_do_not_shadow_other_packages(name: str) -> None:
    # Without an __init__.py the folder is at most a namespace package, and an installed regular one of that name wins.
    assert not (ROOT / name / "__init__.py").exists()
    code = f"import importlib.util as u; s = u.find_spec({name!r}); print(s.origin if s else None)"
    origin = python(code)
    assert not origin.startswith(str(ROOT / name))


def test_a_package_called_datasets_wins_even_in_the_root(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("NAME = 'the other one'")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import datasets; print(datasets.NAME)"
    assert python(code) == "the other one"
    code = "import sanawm_env.datasets.schema as s; print(s.NAME)"
    assert python(code) == "sanawm-episodes"


def test_import_is_fast_and_leaves_torch_alone() -> None:
    code = (
        "import gymnasium, numpy, sys, time; t = time.perf_counter(); import sanawm_env; d = time.perf_counter() - t;"
        "heavy = [n for n in ('torch', 'diffusers', 'zarr', 'av', 'rerun', 'hydra') if n in sys.modules];"
        "print(round(d, 3), *heavy)"
    )
    # The best of three: the machine may be busy.
    results = [python(code).split() for _ in range(3)]
    assert all(len(result) == 1 for result in results), f"imported on the way: {results[0][1:]}"
    assert min(float(result[0]) for result in results) < IMPORT_SECONDS


def test_no_public_name_is_hidden_by_a_module_of_that_name() -> None:
    # Importing `sanawm_env.x` sets the attribute x of the package, and the name loaded on first use would be gone.
    import sanawm_env

    modules = {path.stem for path in Path(sanawm_env.__file__).parent.iterdir()}
    assert not modules & set(sanawm_env.__all__) - {"errors"}


def test_import_works_without_gymnasium() -> None:
    code = "import sys; sys.modules['gymnasium'] = None; import sanawm_env; print(sanawm_env.__name__)"
    assert python(code) == "sanawm_env"


def test_a_bare_gpu_machine_can_import() -> None:
    # What `PYTHONPATH=. python3 -m ...` may use there: torch, numpy, safetensors, triton, diffusers and Pillow.
    absent = ["gymnasium", "zarr", "imagecodecs", "av", "hydra", "omegaconf", "rerun", "scipy", "jaxtyping"]
    modules = ["world", "bundle", "rooms", "actions", "training.stages", "evaluation.rooms"]
    modules += ["benchmarks.kernels", "benchmarks.rooms", "benchmarks.sana_wm"]
    jobs = [f"import sanawm_env.{module}" for module in modules]
    # A small world is there without diffusers, which takes longer to import than all the rest.
    jobs += [
        "from sanawm_env.world import WorldModel; from sanawm_env.model.config import tiny_config;"
        "WorldModel.random(tiny_config()); assert 'diffusers' not in sys.modules"
    ]
    # Each in a child that has loaded nothing but torch, as a process of its own would.
    code = f"""
import os, sys
sys.modules.update(dict.fromkeys({absent}))
import torch
for job in {jobs}:
    child = os.fork()
    if not child:
        exec(job)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, job
print("fine")
"""
    assert python(code) == "fine"


@pytest.mark.parametrize("kind", ["Jpeg", "WebP", "JpegXl", "Av1"])
def test_the_picture_codecs_are_registered(kind: str) -> None:
    name = f"sanawm.{kind.lower()}"
    points = importlib.metadata.entry_points(group="zarr.codecs", name=name)
    assert [point.value for point in points] == [f"sanawm_env.datasets.codec:{kind}"], "run `make setup`"
    assert [point.load().name for point in points] == [name]


def test_constraints_pin_everything_that_is_declared() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[A-Za-z0-9-]+", text).group().lower() for text in declared}  # type: ignore[union-attr]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert sorted(names - pinned) == []
