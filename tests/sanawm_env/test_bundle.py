"""Bundles: what is saved is loaded, and every kind of damage is one clear error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from sanawm_env import bundle, placement
from sanawm_env.errors import BackendError, BundleError, ConfigError, StorageError
from sanawm_env.model.config import tiny_config
from sanawm_env.world import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.random(tiny_config())


@pytest.fixture
def folder(tmp_path: Path, model: WorldModel) -> Path:
    return bundle.save(tmp_path / "tiny", model, {"steps": 3}, bits=32)


def weights(model: WorldModel) -> dict[str, torch.Tensor]:
    return {**model.denoiser.state_dict(), **model.autoencoder.state_dict()}


def test_round_trip(folder: Path, model: WorldModel) -> None:
    loaded = bundle.load(folder, device="cpu", precision="fp32")
    assert loaded.config == model.config
    assert all(torch.equal(x, weights(model)[name]) for name, x in weights(loaded).items())
    assert len(loaded.fingerprint) == 64
    told = bundle.description(folder)
    assert told["provenance"] == {"steps": 3}
    assert (told["fps"], told["strides"], told["licence"]) == (10.0, {"temporal": 4, "spatial": 8}, "Apache-2.0")


def test_eight_bits_are_close_and_small(tmp_path: Path, model: WorldModel, folder: Path) -> None:
    small = bundle.save(tmp_path / "small", model, {})
    loaded = bundle.load(str(small), device="cpu", precision="fp32")
    for name, x in weights(loaded).items():
        reference = weights(model)[name]
        assert (x - reference).abs().max() <= reference.abs().max() / 127 + 1e-7
    sizes = [sum(path.stat().st_size for path in at.glob("*.safetensors")) for at in (small, folder)]
    assert sizes[0] < sizes[1]


def test_a_process_loads_once_and_each_precision_apart(folder: Path) -> None:
    first = bundle.load(folder, device="cpu", precision="fp32")
    assert bundle.load(str(folder), device="cpu", precision="fp32") is first
    half = bundle.load(folder, device="cpu", precision="bf16")
    assert half is not first
    assert (half.dtype, first.dtype) == (torch.bfloat16, torch.float32)
    assert half.fingerprint == first.fingerprint


def test_provenance_does_not_change_the_fingerprint(tmp_path: Path, folder: Path, model: WorldModel) -> None:
    other = bundle.save(tmp_path / "other", model, {"steps": 4}, bits=32)
    prints = [bundle.load(at, device="cpu", precision="fp32").fingerprint for at in (folder, other)]
    assert prints[0] == prints[1]


def damage(folder: Path, kind: str) -> str:
    path = sorted(folder.glob("denoiser-*.safetensors"))[0]
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        os.truncate(path, path.stat().st_size - 10)
    else:
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    return path.name


@pytest.mark.parametrize(("kind", "said"), [("missing", "is missing"), ("truncated", "bytes"), ("flipped", "SHA-256")])
def test_damage_names_the_file(folder: Path, kind: str, said: str) -> None:
    name = damage(folder, kind)
    with pytest.raises(BundleError, match=f"{name}.*{said}.*again") as error:
        bundle.load(folder, device="cpu", precision="fp32")
    assert str(error.value).count("\n") <= 1


def test_unknown_names_folders_and_precisions(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BundleError, match=r"'romms' is unknown"):
        bundle.load("romms")
    with pytest.raises(BundleError, match="is no bundle"):
        bundle.load(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'bf16'"):
        bundle.load(folder, precision="bf-16")  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "mps", "meta", "", 0, None])
def test_devices_are_cpu_or_cuda(folder: Path, device: object) -> None:
    if device is None:
        assert placement.find_device(None).type in ("cpu", "cuda")
        return
    with pytest.raises(ConfigError, match=rf"device is {device!r}; allowed is 'cpu', 'cuda' \(a GPU\), 'cuda:N'"):
        bundle.load(folder, device=device)  # type: ignore[arg-type]


def test_a_gpu_that_torch_does_not_see(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert placement.find_device(None) == torch.device("cpu")
    for device in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(BackendError, match=r"torch sees 0 CUDA device.*device=\"cpu\", or a CUDA build of torch"):
            bundle.load(folder, device=device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert placement.find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BackendError, match=r"'cuda:2', torch sees 2 CUDA device\(s\); use 'cuda:0' \.\. 'cuda:1'"):
        placement.find_device("cuda:2")


def test_where_no_bundle_is_embedded_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "EMBEDDED", tmp_path)
    with pytest.raises(BundleError, match=r"'rooms' is unknown; none is known\.$"):
        bundle.load()


def rewrite(folder: Path, **changes: object) -> None:
    told = json.loads((folder / bundle.DESCRIPTION).read_text())
    (folder / bundle.DESCRIPTION).write_text(json.dumps(told | changes))


def test_descriptions_that_cannot_be_used(folder: Path) -> None:
    told = json.loads((folder / bundle.DESCRIPTION).read_text())
    rewrite(folder, config=told["config"] | {"colour": 1})
    with pytest.raises(BundleError, match=r"cannot build.*colour"):
        bundle.load(folder, device="cpu")
    rewrite(folder, format=99)
    with pytest.raises(BundleError, match="format 99"):
        bundle.load(folder, device="cpu")
    (folder / bundle.DESCRIPTION).write_text("{")
    with pytest.raises(BundleError, match="damaged"):
        bundle.load(folder, device="cpu")


def test_weights_of_another_configuration(folder: Path) -> None:
    told = json.loads((folder / bundle.DESCRIPTION).read_text())
    narrower = told["config"]["autoencoder"] | {"decoder_layers": [1, 1, 2]}
    rewrite(folder, config=told["config"] | {"autoencoder": narrower})
    with pytest.raises(BundleError, match="autoencoder's weights do not fit"):
        bundle.load(folder, device="cpu", precision="fp32")


def test_saving_is_whole_or_nothing(
    tmp_path: Path, folder: Path, model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match="exists already"):
        bundle.save(folder, model, {})

    def full_disk(*_: object, **__: object) -> list[str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "write_weights", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        bundle.save(tmp_path / "new", model, {})
    with pytest.raises(StorageError, match="No space left"):
        bundle.save(folder, model, {}, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert bundle.description(folder)["provenance"] == {"steps": 3}


def test_replacing_a_bundle(tmp_path: Path, folder: Path, model: WorldModel) -> None:
    bundle.save(folder, model, {"steps": 5}, replace=True)
    assert bundle.description(folder)["provenance"] == {"steps": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
