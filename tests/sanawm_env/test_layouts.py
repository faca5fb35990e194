"""Checkpoints that cannot be read: what does not fit, is damaged or is no SANA-WM is named, and nothing is built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.public_layouts import (
    Weights,
    load,
)

from sanawm_env.errors import BundleError, ConfigError


@pytest.fixture
def copied(layouts: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(layouts / name, tmp_path / name))

    return copy


def change(path: Path, alter: Callable[[Weights], None]) -> None:
    weights = load_file(path)
    weights = {name: x.clone() for name, x in weights.items()}
    alter(weights)
    save_file(weights, path)


def take_away(weights: Weights) -> None:
    del weights["blocks.1.attn.qkv.weight"], weights["final_layer.linear.bias"]


def add(weights: Weights) -> None:
    weights["blocks.1.attn.extra"] = torch.zeros(2)


def reshape(weights: Weights) -> None:
    weights["blocks.2.plucker_proj.weight"] = torch.zeros(32, 16)


def poison(weights: Weights) -> None:
    weights["t_block.1.weight"][3, 4] = float("nan")
    weights["blocks.0.attn.A_log"][1] = float("inf")


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (take_away, r"denoiser: missing \(2\): blocks\.1\.attn\.qkv\.weight, final_layer\.linear\.bias\. Nothing"),
        (add, r"denoiser: unexpected \(1\): blocks\.1\.attn\.extra"),
        (reshape, r"wrong shape \(1\): blocks\.2\.plucker_proj\.weight has \(32, 16\), expected \(32, 32\)"),
        (poison, r"2 tensors of .* hold NaN or infinity \(denoiser\.t_block\.1\.weight, denoiser\.blocks\.0\.attn\.A_"),
    ],
)
def test_weights_that_do_not_fit(
    layouts: Path, copied: Callable[[str], Path], alter: Callable[[Weights], None], said: str
) -> None:
    folder = copied("original")
    change(next((folder / "dit").iterdir()), alter)
    with pytest.raises(BundleError, match=said):
        load(folder, layouts, "original")


def test_one_error_lists_both_parts(layouts: Path, copied: Callable[[str], Path]) -> None:
    folder = copied("original")
    change(next((folder / "dit").iterdir()), add)
    change(next((folder / "vae").glob("*.safetensors")), lambda weights: weights.pop("latents_std"))  # type: ignore[arg-type, return-value]
    with pytest.raises(BundleError, match=r"unexpected \(1\).*autoencoder: missing \(1\): vae\.latents_std"):
        load(folder, layouts, "original")


@pytest.mark.parametrize("name", ["original", "diffusers", "streaming"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_named(layouts: Path, copied: Callable[[str], Path], name: str, kept: float) -> None:
    folder = copied(name)
    weights = {"original": "dit", "diffusers": "transformer", "streaming": "sana_dit"}[name]
    path = max((folder / weights).iterdir(), key=lambda file: file.stat().st_size)
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(BundleError, match=rf"{path.name} cannot be read .*truncated or damaged") as error:
        load(folder, layouts, name)
    assert len(str(error.value)) < 600


def test_a_missing_shard_is_named(layouts: Path, copied: Callable[[str], Path]) -> None:
    folder = copied("diffusers")
    lost = sorted((folder / "transformer").glob("*-of-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(BundleError, match=rf"lacks 1 of \d+ weight files \(transformer/{lost.name}\)"):
        load(folder, layouts, "diffusers")


class Payload:
    """What a forged checkpoint would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_a_pickled_object_is_refused_and_never_built(
    layouts: Path, copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copied("streaming")
    path = folder / "sana_dit" / "model.pt"
    held = torch.load(path, weights_only=True)
    for old_format in (False, True):
        torch.save(held | {"config": Payload()}, path, _use_new_zipfile_serialization=not old_format)
        with pytest.raises(BundleError, match=r"holds a pickled object that is not a tensor \(\w+\.mkdir\)"):
            load(folder, layouts, "streaming")
    assert not (tmp_path / "ran").exists()


def test_old_and_bare_streaming_files(layouts: Path, copied: Callable[[str], Path]) -> None:
    folder = copied("streaming")
    path = folder / "sana_dit" / "model.pt"
    held = torch.load(path, weights_only=True)
    expected = load(layouts / "streaming", layouts, "streaming").fingerprint
    torch.save(held["generator"], path, _use_new_zipfile_serialization=False)
    assert load(folder, layouts, "streaming").fingerprint == expected
    torch.save({"step": 3}, path)
    with pytest.raises(BundleError, match="holds no tensors"):
        load(folder, layouts, "streaming")


def test_variants_and_sources_that_do_not_fit(layouts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="variant is 'distiled'; did you mean 'distilled'"):
        load(layouts / "streaming", layouts, "streaming", variant="distiled")
    with pytest.raises(ConfigError, match="holds the streaming model; pass 'distilled'"):
        load(layouts / "streaming", layouts, "streaming", variant="teacher")
    with pytest.raises(ConfigError, match=r"describes a teacher model .*; pass 'teacher'"):
        load(layouts / "teacher", layouts, "teacher", variant="bidirectional")
    with pytest.raises(BundleError, match=r"holds no autoencoder .*pass autoencoder='Efficient-Large-Model/"):
        load(layouts / "teacher", layouts, "teacher", autoencoder=None)
    with pytest.raises(BundleError, match=r"looks ahead .*pass autoencoder='\S+_streaming'"):
        load(layouts / "diffusers", layouts, "diffusers", variant="distilled")
    with pytest.raises(BundleError, match=r"is no SANA-WM checkpoint: .*found are no files"):
        load(tmp_path, layouts, "streaming")
    with pytest.raises(BundleError, match="is neither a folder nor a Hub id"):
        load(tmp_path / "nothing", layouts, "streaming")
    with pytest.raises(ConfigError, match=r"revision is 'main', but .* is a folder"):
        load(layouts / "streaming", layouts, "streaming", revision="main")


@pytest.mark.parametrize("place", ["original", "original/vae", "streaming"])
def test_the_autoencoder_may_come_from_elsewhere(layouts: Path, place: str) -> None:
    model = load(layouts / "teacher", layouts, "teacher", autoencoder=layouts / place)
    assert model.config.autoencoder.decoder_causal == (place == "streaming")


def test_config_files_that_cannot_be_used(layouts: Path, copied: Callable[[str], Path]) -> None:
    folder = copied("original")
    (folder / "config.yaml").write_text("model: [1, 2")
    with pytest.raises(BundleError, match=r"config\.yaml cannot be read"):
        load(folder, layouts, "original")
    (folder / "config.yaml").write_text("- model")
    with pytest.raises(BundleError, match="expected a group of settings"):
        load(folder, layouts, "original")
    (folder / "config.yaml").write_text("model: 3")
    with pytest.raises(BundleError, match="model is 3, expected a group"):
        load(folder, layouts, "original")
    (folder / "config.yaml").unlink()
    with pytest.raises(BundleError, match=r"no config\.yaml"):
        load(folder, layouts, "original")
