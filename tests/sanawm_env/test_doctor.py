"""`sanawm doctor`: run as it is, in a process of its own, with Hub caches and tables of speeds that lie on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTX2Video
from PIL import Image

from sanawm_env import doctor
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig
from sanawm_env.released import released_config
from sanawm_env.scene import Scene, load_scene

ROOT = Path(__file__).parents[2]


def run(cwd: Path, *arguments: str, **environment: str) -> str:
    kept = {name: x for name, x in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-m", "sanawm_env.cli", "doctor", *arguments]
    told = {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, cwd=cwd, env=told, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache with one part of the streaming release, an older revision, and a download that was cut short."""
    hub = tmp_path_factory.mktemp("hub")
    folder = hub / "models--Efficient-Large-Model--SANA-WM_streaming"
    for revision, size in (("old", 7), ("new", 3 * 2**20)):
        part = folder / "snapshots" / revision / "ltx2_causal_vae"
        part.mkdir(parents=True)
        (folder / "blobs").mkdir(exist_ok=True)
        (folder / "blobs" / revision).write_bytes(bytes(size))
        (part / "diffusion_pytorch_model.safetensors").symlink_to(folder / "blobs" / revision)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("new")
    (folder / "blobs" / "abc.incomplete").write_bytes(bytes(2**20))
    return hub


@pytest.fixture(scope="module")
def found(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run(tmp_path_factory.mktemp("cwd"), "--json", HF_HUB_CACHE=str(cache)))
    return told


def test_json_has_a_fixed_form(found: dict[str, Any]) -> None:
    groups = {
        "machine",
        "memory",
        "gpu",
        "no_gpu_because",
        "kernels",
        "precisions",
        "versions",
        "extras",
        "hub",
        "weights",
        "fits",
    }
    assert found.keys() == groups | {"seconds_a_chunk"}
    assert found["machine"].keys() == {"cpu", "cores", "python", "native_bf16", "device"}
    assert 0 < found["memory"]["available_bytes"] <= found["memory"]["total_bytes"]
    assert bool(found["gpu"]) == (found["no_gpu_because"] is None) == torch.cuda.is_available()
    assert found["versions"]["torch"] == torch.__version__
    assert found["precisions"].keys() == {"bf16", "fp8", "nvfp4"}
    if not torch.cuda.is_available():
        assert found["precisions"]["nvfp4"] == "nvfp4 weight-only (reference)"
        assert "'fp8' cannot run on cpu" in found["precisions"]["fp8"], "not said to be simulated either"
    assert found["hub"]["offline"] is True and found["hub"]["free_bytes"] > 0
    for row in found["fits"]:
        assert row.keys() == {*("world", "refiner", "precision", "bytes", "offloaded", "fits", "left_bytes", "offload")}
        assert row["fits"] == (row["left_bytes"] >= 0)
    for told in found["weights"].values():
        for part in told["parts"]:
            assert part.keys() == {"folder", "what", "cached_bytes", "published_gb", "licence"}
            assert part["licence"]
    worlds = {(row["world"], row["refiner"], row["precision"]) for row in found["fits"]}
    assert len(worlds) == len(found["fits"]) == 24
    assert ("distilled", True, "bf16") in worlds and ("teacher", True, "bf16") not in worlds


def test_the_cache_is_counted_by_part(found: dict[str, Any], cache: Path) -> None:
    streaming = found["weights"]["Efficient-Large-Model/SANA-WM_streaming"]
    held = {part["folder"]: part["cached_bytes"] for part in streaming["parts"]}
    assert held == {"sana_dit": 0, "ltx2_causal_vae": 3 * 2**20, "refiner_diffusers": 0, "gemma3_12b": 0}
    assert streaming["unfinished_bytes"] == 2**20
    assert found["hub"]["cache"] == str(cache)
    others = [told for name, told in found["weights"].items() if not name.endswith("SANA-WM_streaming")]
    assert all(part["cached_bytes"] == 0 for told in others for part in told["parts"])


def test_bytes_are_those_of_the_modules(found: dict[str, Any]) -> None:
    count = {(row["world"], row["refiner"], row["precision"]): row["bytes"] for row in found["fits"]}
    with torch.device("meta"):
        autoencoder, refiner = AutoencoderKLLTX2Video(), Refiner(RefinerConfig(), {})
    refined = count["distilled", True, "bf16"]
    assert refined["denoiser"] == pytest.approx(2 * 2_661_800_448, rel=1e-4)
    assert refined["autoencoder"] == pytest.approx(2 * sum(x.numel() for x in autoencoder.parameters()), rel=1e-4)
    assert refined["refiner"] == pytest.approx(2 * sum(x.numel() for x in refiner.parameters()), rel=1e-4)
    # Keys and values of 11 latent frames of 22 x 40 tokens in 48 layers 4096 wide, and a position.
    assert refined["state"]["refiner"] == 2 * 2 * 11 * 22 * 40 * 48 * 4096 + 8
    for told in count.values():
        parts = (told.get(name, 0) for name in ("denoiser", "autoencoder", "refiner"))
        assert told["total"] == sum(parts) + told["state"]["total"]
    plain, wide = count["distilled", False, "bf16"], count["distilled", False, "fp32"]
    assert wide["denoiser"] == pytest.approx(2 * plain["denoiser"], rel=1e-4)
    assert wide["state"]["recurrent"] == plain["state"]["recurrent"], "always in single precision"
    low = {name: count["distilled", False, name]["denoiser"] / plain["denoiser"] for name in ("fp8", "nvfp4")}
    assert low == pytest.approx({"fp8": 0.6612, "nvfp4": 0.5122}, abs=1e-4)
    low = {name: count["distilled", True, name]["refiner"] / refined["refiner"] for name in ("fp8", "nvfp4")}
    assert low == pytest.approx({"fp8": 0.5064, "nvfp4": 0.2899}, abs=1e-4)
    assert count["distilled", False, "nvfp4"]["state"] == plain["state"]


def test_the_page_tells_the_same(found: dict[str, Any]) -> None:
    """Figures of the page about the released model are those that are counted here; its scene.yaml loads."""
    page = (ROOT / "examples" / "sana_wm.md").read_text()
    count = {(row["refiner"], row["precision"]): row["bytes"] for row in found["fits"] if row["world"] == "distilled"}
    offloaded = {
        (row["refiner"], row["precision"]): row["offloaded"] for row in found["fits"] if row["world"] == "distilled"
    }
    for name, key in (("denoiser, 2.66 B parameters", "denoiser"), ("autoencoder", "autoencoder")):
        assert f"| {name} | {gib(count[False, 'bf16'][key])} | {gib(count[False, 'fp32'][key])} |" in page
    refiner = [gib(count[True, precision]["refiner"]) for precision in ("bf16", "fp32")]
    assert f"without its audio half) | {' | '.join(refiner)} |" in page
    states = {key: told["state"] for key, told in count.items()}
    plain = [gib(states[False, precision]["total"]) for precision in ("bf16", "fp32")]
    added = [gib(states[True, p]["total"] - states[False, p]["total"]) for p in ("bf16", "fp32")]
    assert f"| state of one world, distilled | {' | '.join(plain)} |" in page
    assert f"window and text, one world | {' | '.join(added)} |" in page
    for refined, name in ((False, "distilled"), (True, "distilled with refiner")):
        for mode in ("parts", "blocks"):
            least = [gib(offloaded[refined, precision][mode]) for precision in ("bf16", "fp32")]
            assert f'| {name}, `offload="{mode}"` | {" | ".join(least)} |' in page
        totals = [f"**{gib(count[refined, precision]['total'])}**" for precision in ("bf16", "fp32")]
        assert f"| **{name}, in all** | {' | '.join(totals)} |" in page
    window, tails, cache, recurrent = (
        gib(states[False, "bf16"][part]) for part in ("window", "tails", "decoder", "recurrent")
    )
    told = (
        f"softmax window {window}, convolution tails {tails}, decode cache {cache} and recurrent state {recurrent} GiB"
    )
    assert told in " ".join(page.split())
    for name, told in found["weights"].items():
        assert f"`{name}`" in page
        for part in told["parts"]:
            assert part["published_gb"] is None or f"| {part['published_gb']:g} GB" in page


def test_the_pages_scene_has_every_key_and_loads(tmp_path: Path) -> None:
    page = (ROOT / "examples" / "sana_wm.md").read_text()
    block = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)[0]
    (tmp_path / "scene.yaml").write_text(block)
    Image.new("RGB", (2016, 1512)).save(tmp_path / "kitchen.jpg")
    scene = load_scene(tmp_path, 704, 1280)
    assert scene.prompt == "a kitchen with red chairs" and scene.units_from == "estimated" and scene.fps == 16
    keys = {field.name for field in dataclasses.fields(Scene)} - {"intrinsics_from"} | {"pose_convention"}
    assert {line.split(":")[0] for line in block.splitlines()} == keys


def gib(count: int) -> str:
    return f"{count / 2**30:.2f}"


def test_the_configuration_is_that_of_the_released_autoencoder() -> None:
    with torch.device("meta"):
        ours, theirs = Autoencoder(released_config("distilled").autoencoder).vae, AutoencoderKLLTX2Video()
    shapes = [{name: x.shape for name, x in vae.state_dict().items()} for vae in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_offloading_is_told_where_it_helps() -> None:
    count = {"state": {"total": 3}, "total": 103}
    row = {
        "world": "w",
        "refiner": False,
        "precision": "bf16",
        "bytes": count,
        "offloaded": {"parts": 63, "blocks": 13},
    }
    told = {free: doctor._verdict(row, free, 1000) for free in (103, 102, 63, 62, 12)}
    assert [x["offload"] for x in told.values()] == [None, "parts", "parts", "blocks", None]
    assert told[62]["fits"] is False and told[62]["left_bytes"] == -41
    assert "fits with offload='blocks'" in list(doctor._fit_rows([row | told[62]]))[1][-1]
    assert doctor._verdict(row, 62, 99)["offload"] is None, "the weights have to be somewhere"
    assert doctor._verdict(row, None, None) == {"fits": None, "left_bytes": None, "offload": None}


def test_offloaded_bytes_are_of_the_largest_part_or_block(found: dict[str, Any]) -> None:
    for row in found["fits"]:
        count, least = row["bytes"], row["offloaded"]
        parts = [count[name] for name in ("denoiser", "autoencoder", "refiner") if name in count]
        assert least["parts"] == max(parts) + count["state"]["total"]
        assert max(count["autoencoder"], max(parts) / 20) <= least["blocks"] - count["state"]["total"] < max(parts)
        assert row["offload"] is None or not row["fits"]


def test_text_is_aligned_and_complete(tmp_path: Path) -> None:
    lines = run(tmp_path, HF_HOME=str(tmp_path / "home")).splitlines()
    text = "\n".join(lines)
    for title in ("This machine", "Missing extras", "Released weights", "Memory for one world", "Licences"):
        assert any(line.startswith(title) for line in lines), title
    assert f"{tmp_path / 'home' / 'hub'}, " in text and ", offline" in text
    assert "distilled.decoded  random weights, bfloat16, NVIDIA H200, 20" in text, "the table that comes along"
    assert "38 GB" in text and "Gemma Terms of Use" in text and "LTX-2 Community License" in text
    table = [line for line in lines if line.startswith(("  distilled", "  teacher", "  bidirectional"))]
    assert len(table) == 20
    assert len({line.find("bf16") for line in table if "bf16" in line}) == 1, "precisions stand in one column"
    assert ("GPU        none: " in text) != torch.cuda.is_available()
    assert not (tmp_path / "home").exists(), "looking must not write"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "sana", (("transformers", "surely-not-installed"), "text"))
    told = doctor._extra("sana")
    assert told == {"for": "text", "missing": ["surely-not-installed"], "install": "pip install 'sanawm-env[sana]'"}


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: {line.split(">=")[0] for line in lines} for name, lines in project["optional-dependencies"].items()}
    del extras["dev"]
    assert {name: set(packages) for name, (packages, _) in doctor.EXTRAS.items()} == extras


def test_speeds_are_of_the_newest_line_at_full_size(tmp_path: Path) -> None:
    table = tmp_path / "sana_wm.jsonl"

    def line(size: str, milliseconds: float, **other: Any) -> str:
        rows = {"distilled.decoded": {"chunk_ms": {"p50": milliseconds}}, "refiner.block": {"ms": {"p50": 700.0}}}
        told = {"settings": {"size": size}, "dtype": "bfloat16", "gpu": "a card", "cpu": "x", "rows": rows | other}
        return json.dumps(told | {"time": f"at {milliseconds:g}", "commit": "c"}) + "\n"

    table.write_text(line("full", 900.0) + line("full", 500.0) + line("tiny", 1.0) + "{cut sho")
    told = doctor._speeds(table)
    assert told is not None and told["time"] == "at 500"
    assert told["rows"] == {"distilled.decoded": 0.5, "refiner.block": 0.7}
    assert next(iter(doctor._speed_rows(told)))[:2] == ("0.500", "distilled.decoded")
    # A run leaves a line a part; those of another machine are not mixed in.
    part = {"rows": {"refiner.block": {"ms": {"p50": 600.0}}}, "settings": {"size": "full"}, "dtype": "bfloat16"}
    table.write_text(line("full", 500.0) + json.dumps(part | {"gpu": "a card", "cpu": "x"}) + "\n")
    assert doctor._speeds(table)["rows"] == {"distilled.decoded": 0.5, "refiner.block": 0.6}
    table.write_text(line("full", 500.0) + json.dumps(part | {"gpu": "another", "cpu": "x"}) + "\n")
    assert doctor._speeds(table)["rows"] == {"refiner.block": 0.6}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"rows": 3}', '{"settings": {"size": "full"}, "rows": {}}'])
def test_a_table_of_another_form_is_no_speed(tmp_path: Path, text: str) -> None:
    (tmp_path / "sana_wm.jsonl").write_text(text)
    assert doctor._speeds(tmp_path / "sana_wm.jsonl") is None
    assert doctor._speeds(tmp_path / "none.jsonl") is None
