"""Quantised bundles and models: made, loaded, stepped, and refused where something does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sanawm_env import bundle, bundle_files, cli
from sanawm_env.errors import BackendError, BundleError, ConfigError
from sanawm_env.model.config import tiny_config
from sanawm_env.model.quantised import LowPrecision, Quantisation
from sanawm_env.placement import Precision, place
from sanawm_env.quantise import Quantize, quantised, run
from sanawm_env.world import WorldModel, initial, step

LAYERS = 3 * 5


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = WorldModel.random(tiny_config(), seed=4)
    return bundle.save(tmp_path_factory.mktemp("plain") / "tiny", model, {"steps": 3}, bits=32)


@pytest.fixture
def folder(tmp_path: Path, plain: Path) -> Path:
    run(Quantize(bundle=str(plain), out=tmp_path / "low"))
    return tmp_path / "low"


def weights(model: WorldModel) -> dict[str, torch.Tensor]:
    return {**model.denoiser.state_dict(), **model.autoencoder.state_dict()}


def frames(model: WorldModel) -> torch.Tensor:
    """Of two steps forward."""
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 16, 1, 1)
    poses[0, :, 2, 3] = torch.arange(1, 17) * 0.05
    picture = torch.arange(32 * 40 * 3).reshape(1, 32, 40, 3) % 251
    state, _ = initial(model, picture.to(torch.uint8), seeds=[3])
    parts = []
    for path in poses.split(8, dim=1):
        state, shown = step(model, state, path)
        assert shown.frames is not None
        parts.append(shown.frames)
    return torch.cat(parts, dim=1)


def rewrite(folder: Path, **changes: Any) -> None:
    told = json.loads((folder / bundle.DESCRIPTION).read_text())
    (folder / bundle.DESCRIPTION).write_text(json.dumps(told | changes))


def told_of(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = bundle.description(folder)["quantisation"]
    return told


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_a_bundle_holds_what_quantising_on_loading_gives(tmp_path: Path, plain: Path, precision: LowPrecision) -> None:
    report = run(Quantize(bundle=str(plain), out=tmp_path / "low", precision=precision, layers="max"))
    assert report["layers"] == 3 * 11 and 0 < report["share_of_bf16"] < 1
    simulate = precision == "fp8"
    stored = bundle.load(tmp_path / "low", device="cpu", simulate=simulate)
    loaded = bundle.load(plain, device="cpu", precision=precision, layers="max", simulate=simulate)
    assert stored.denoiser.quantisation == loaded.denoiser.quantisation
    for name, x in weights(stored).items():
        other = weights(loaded)[name]
        assert x.dtype == other.dtype and torch.equal(x.float(), other.float()), name
    assert torch.equal(frames(stored), frames(loaded))
    told = bundle.description(tmp_path / "low")
    assert (told["format"], told["quantisation"]["list"]) == (2, "max")
    assert told["provenance"]["source"] == {"steps": 3}
    assert told["provenance"]["quantised_from"]["weights_sha256"] == loaded.fingerprint != stored.fingerprint


def test_a_plain_bundle_is_written_as_before(plain: Path) -> None:
    told = bundle.description(plain)
    assert told["format"] == 1 and "quantisation" not in told
    assert bundle.load(plain, device="cpu", precision="fp32").execution == "fp32"


def test_what_was_quantised_loads_as_it_is_or_not_at_all(folder: Path, plain: Path) -> None:
    low = bundle.load(folder, device="cpu")
    assert bundle.load(folder, device="cpu", precision="nvfp4", layers="default") is low
    assert low.execution == "nvfp4 weight-only (reference)"
    for options in ({"precision": "bf16"}, {"precision": "fp8"}, {"layers": "max"}):
        with pytest.raises(ConfigError, match=r"but holds nvfp4 weights of the list 'default'; pass 'auto'"):
            bundle.load(folder, device="cpu", **options)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="holds nvfp4 weights already"):
        run(Quantize(bundle=str(folder), out=folder.with_name("again")))
    with pytest.raises(ConfigError, match="is nvfp4 already"):
        quantised(low, Quantisation(precision="nvfp4"))
    with pytest.raises(BundleError, match="exists already"):
        run(Quantize(bundle=str(plain), out=folder))
    run(Quantize(bundle=str(plain), out=folder, precision="fp8", replace=True))
    assert told_of(folder)["precision"] == "fp8"


def test_precisions_that_do_not_exist(plain: Path) -> None:
    with pytest.raises(ConfigError, match="precision is 'nvfp8'; did you mean"):
        bundle.load(plain, precision="nvfp8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="layers is 'maximal'; did you mean 'max'"):
        bundle.load(plain, precision="nvfp4", layers="maximal")  # type: ignore[arg-type]
    for precision in ("auto", "bf16", "fp32"):
        with pytest.raises(ConfigError, match=f"layers is 'max' with precision '{precision}', which quantises nothing"):
            place("cpu", precision, layers="max")
        with pytest.raises(ConfigError, match="simulate is True with precision"):
            place("cpu", precision, simulate=True)


@pytest.mark.parametrize("precision", ["auto", "fp8"])
def test_fp8_is_never_simulated_unasked(tmp_path: Path, plain: Path, precision: Precision) -> None:
    report = run(Quantize(bundle=str(plain), out=tmp_path / "low", precision="fp8"))
    if not torch.cuda.is_available():
        assert report["runs_here_as"].startswith("precision 'fp8' cannot run on cpu")
    with pytest.raises(BackendError, match=r"'fp8' cannot run on cpu.*\nUse 'bf16' or 'nvfp4'"):
        bundle.load(tmp_path / "low", device="cpu", precision=precision)
    asked = bundle.load(tmp_path / "low", device="cpu", precision=precision, simulate=True)
    assert asked.execution == "fp8 simulated (reference)"


def test_layers_that_are_not_those_of_the_list(folder: Path) -> None:
    told = told_of(folder)
    assert len(told["layers"]) == LAYERS
    first, *others = told["layers"]
    wrong = {
        rf"names 14 nvfp4 layers, its list 'default' has 15; missing: {first}; unexpected: none": others,
        r"missing: none; unexpected: final_layer\.linear;": [first, *others, "final_layer.linear"],
        rf"missing: {first}; unexpected: blocks\.0\.attn\.beta_proj;": ["blocks.0.attn.beta_proj", *others],
        r"names 16 .* has 15; missing: none; unexpected: none": [first, first, *others],
        r"describes no quantisation \(TypeError: layers is 7": 7,
    }
    for said, names in wrong.items():
        rewrite(folder, quantisation=told | {"layers": names})
        with pytest.raises(BundleError, match=said + r".*make the bundle again with `sanawm quantize`"):
            bundle.load(folder, device="cpu")


def test_descriptions_that_say_nothing(folder: Path) -> None:
    told = told_of(folder)
    for said in (None, [], {}, told | {"precision": "int4"}, told | {"list": "most"}):
        rewrite(folder, quantisation=said)
        with pytest.raises(BundleError, match="describes no quantisation"):
            bundle.load(folder, device="cpu")
    rewrite(folder, quantisation=told, format=1)
    with pytest.raises(BundleError, match="has format 1, this version reads 1, and 2 of quantised weights"):
        bundle.load(folder, device="cpu")


def replace_tensor(folder: Path, name: str, change: Any) -> None:
    """Changes one stored tensor, and the sums that guard its file."""
    told = bundle.description(folder)
    for file in [name for name in told["files"] if name.startswith("denoiser-")]:
        tensors = load_file(folder / file)
        if name in tensors:
            made = change(tensors.pop(name))
            save_file(tensors | ({} if made is None else {name: made}), folder / file)
            rewrite(folder, files=told["files"] | {file: bundle_files.told_of(folder / file)})
            return
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("tensor", "change", "said"),
    [
        ("weight_scale", lambda x: None, r"missing \(1\): blocks.0.attn.qkv.weight_scale"),
        ("weight_scale", lambda x: x.float(), "weight_scale holds float32, expected float8_e4m3fn"),
        ("weight", lambda x: x[:-1].contiguous(), r"wrong shape \(1\): blocks.0.attn.qkv.weight has"),
        ("weight", lambda x: x.view(torch.int8), "weight holds int8, expected uint8"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, tensor: str, change: Any, said: str) -> None:
    replace_tensor(folder, f"blocks.0.attn.qkv.{tensor}", change)
    with pytest.raises(BundleError, match=said):
        bundle.load(folder, device="cpu")


def test_a_flipped_bit_is_found(folder: Path) -> None:
    path = sorted(folder.glob("denoiser-*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"SHA-256"):
        bundle.load(folder, device="cpu")


@pytest.mark.parametrize("layers", ["default", "max"])
def test_rooms_in_nvfp4_is_finite_and_near_fp32(layers: str, nan_scratch: None) -> None:
    shown = {}
    for precision, told in (("fp32", {}), ("nvfp4", {"layers": layers})):
        model = bundle.load("rooms", device="cpu", precision=precision, **told)  # type: ignore[arg-type]
        env = gymnasium.make("sanawm_env/Rooms-v0", bundle=model)
        first, _ = env.reset(seed=5)
        pictures = [env.step([0.4, 0.1])[4]["frames"] for _ in range(2)]
        shown[precision] = np.concatenate([first[None] if first.ndim == 3 else first, *pictures]).astype(float)
        assert bool(torch.isfinite(env.unwrapped._episodes.now.world.memory[0]["state"]).all())
    error = np.square(shown["nvfp4"] - shown["fp32"]).mean()
    assert error > 0 and 10 * np.log10(255**2 / error) > 30, "dB between the two"


def test_an_environment_takes_the_precision(plain: Path) -> None:
    env = gymnasium.make("sanawm_env/Rooms-v0", bundle=str(plain), device="cpu", precision="nvfp4", task="drive")
    assert env.unwrapped.model.execution == "nvfp4 weight-only (reference)"
    with pytest.raises(BackendError, match="'fp8' cannot run on cpu"):
        gymnasium.make("sanawm_env/Rooms-v0", bundle=str(plain), device="cpu", precision="fp8", task="drive")


def test_the_command(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "low"
    assert cli.main(["quantize", str(plain), "--precision", "nvfp4", "--layers", "max", "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bundle"] == str(out) and report["runs_here_as"].startswith("nvfp4 weight-only")
    assert bundle.load(out, device="cpu").execution.startswith("nvfp4")
    assert cli.main(["quantize", str(plain), "--precision", "fp4", "--out", str(tmp_path / "no")]) == 2
    assert "did you mean 'nvfp4'" in capsys.readouterr().err
    assert cli.main(["quantize", str(plain)]) == 2
    assert "out" in capsys.readouterr().err
