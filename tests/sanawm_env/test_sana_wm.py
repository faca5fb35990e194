"""The released SANA-WM as an environment: a streaming release in miniature, its encoders, its refiner, one `make`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from diffusers.pipelines.sana_wm.pipeline_sana_wm import DEFAULT_CHI_PROMPT
from gymnasium.utils.env_checker import check_env
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.public_layouts import SIZE, write_many_step_release, write_release

import sanawm_env  # noqa: F401 - registers the environments
from sanawm_env.clips import generate
from sanawm_env.errors import BackendError, BundleError, ConfigError, SceneError
from sanawm_env.model.quantised import Quantisation, exact_names
from sanawm_env.planned_env import PlannedEnv
from sanawm_env.quantise import quantised, quantised_refiner
from sanawm_env.sana_wm import load_refiner, open_sana_wm
from sanawm_env.state import WorldState
from sanawm_env.world import step


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "first.png"
    draw = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(draw).save(path)
    return path


@pytest.fixture
def options(release: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "source": str(release),
        "text_encoder": release / "gemma2",
        "prompt_cache": tmp_path / "prompts",
        "size": SIZE,
        "device": "cpu",
        "precision": "fp32",
        "disable_env_checker": True,
    }


@pytest.fixture(scope="module")
def many_step(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A miniature release of each variant that generates whole clips."""
    kinds = {"bidirectional": "BidirectionalGDN", "teacher": "ChunkCausalGDN"}
    return {name: write_many_step_release(tmp_path_factory.mktemp(name), kind) for name, kind in kinds.items()}


@pytest.mark.parametrize(
    ("variant", "refiner"), [("bidirectional", False), ("bidirectional", True), ("teacher", False)]
)
def test_the_other_variants_replay_a_planned_clip(
    options: dict[str, Any],
    picture: Path,
    many_step: dict[str, Path],
    variant: str,
    refiner: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = {"image": picture, "prompt": "a kitchen", "source": str(many_step[variant]), "refiner": refiner}
    told = {**options, **start, "variant": variant}
    env = gymnasium.make("sanawm_env/SanaWM-v0", actions=[[0.4, 0.1]], **told)
    assert type(env.unwrapped) is PlannedEnv
    monkeypatch.setattr("sanawm_env.prompts.load_encoder", lambda *_, **__: pytest.fail("the encoder was loaded"))
    first, info = env.reset(seed=3)
    _, _, _, truncated, after = env.step([0.4, 0.1])
    assert truncated and after["followed"] and after["frames"].shape == (24, *SIZE, 3)
    planned = env.unwrapped._episodes
    frames = generate(
        env.unwrapped.model,
        planned.config.scene.image[None],
        info["trajectory"][None],
        seeds=[3],
        intrinsics=info["intrinsics"][None],
        text=planned.config.prompts(["a kitchen"]),
        negative=planned.config.prompts.read_negative(1),
    ).frames
    np.testing.assert_array_equal(np.concatenate([first[None], after["frames"]]), frames[0].numpy())


def test_gymnasium_has_nothing_to_warn_of_in_a_replay(
    options: dict[str, Any], picture: Path, many_step: dict[str, Path]
) -> None:
    told = {**options, "source": str(many_step["teacher"]), "image": picture, "variant": "teacher"}
    env = gymnasium.make("sanawm_env/SanaWM-v0", actions=[[0.4, 0.1], [0.2, 0.0]], **told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


@pytest.mark.parametrize("refiner", [False, True])
def test_one_line_makes_an_environment(options: dict[str, Any], picture: Path, refiner: bool) -> None:
    env = gymnasium.make(
        "sanawm_env/SanaWM-v0",
        image=str(picture),
        prompt="a kitchen with red chairs",
        intrinsics=[90.0, 90.0, 49.5, 39.5],
        refiner=refiner,
        **options,
    )
    first, info = env.reset(seed=3)
    assert first.shape == (*SIZE, 3) and not info["calibrated"] and info["room"] == -1
    assert info["intrinsics"][:2] == pytest.approx([90 * 96 / 100, 90 * 77 / 80])
    taken = env.unwrapped.get_state()
    shown = [env.step([0.5, 0.1])[4]["frames"] for _ in range(3)]
    assert all(frames.shape == (24, *SIZE, 3) for frames in shown)
    assert (env.unwrapped.get_state().world.refiner is not None) == refiner
    env.unwrapped.set_state(taken)
    again = [env.step([0.5, 0.1])[4]["frames"] for _ in range(3)]
    assert all(np.array_equal(one, other) for one, other in zip(shown, again, strict=True))
    _, info = env.reset(seed=3)
    branch = env.unwrapped.fork(2)
    assert np.array_equal(branch.step([[0.5, 0.1]] * 2)[0][1], shown[0][-1])


def test_another_prompt_is_another_world(options: dict[str, Any], picture: Path) -> None:
    seen = []
    for prompt in ("a kitchen", "red chairs"):
        env = gymnasium.make("sanawm_env/SanaWM-v0", image=picture, prompt=prompt, **options)
        env.reset(seed=0)
        env.step([0.5, 0.0])
        seen.append(env.unwrapped.get_state().world)
    assert not torch.equal(seen[0].text["hidden"], seen[1].text["hidden"])
    assert any(not torch.equal(x, seen[1].tensors()[name]) for name, x in seen[0].tensors().items() if "memory" in name)


def test_prompts_come_from_the_cache_and_not_in_reset(
    options: dict[str, Any], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = gymnasium.make("sanawm_env/SanaWM-v0", image=picture, prompt="a kitchen", **options)
    entries = list(options["prompt_cache"].glob("*.safetensors"))
    assert len(entries) == 1
    monkeypatch.setattr("sanawm_env.prompts.load_encoder", lambda *_, **__: pytest.fail("the encoder was loaded"))
    env.reset(seed=0)
    env.reset(seed=1)
    assert list(options["prompt_cache"].glob("*.safetensors")) == entries


def test_the_instruction_is_the_checkpoints(release: Path, options: dict[str, Any], tmp_path: Path) -> None:
    told = {key: x for key, x in options.items() if key != "disable_env_checker"}
    _, usual = open_sana_wm(**told)
    assert usual is not None and usual.denoiser is not None and usual.refiner is None
    assert usual.denoiser.recipe.instruction == "\n".join(DEFAULT_CHI_PROMPT)
    (tmp_path / "config.yaml").write_text("text_encoder: {chi_prompt: ['User Prompt: ']}")
    _, own = open_sana_wm(**told, instruction=tmp_path)
    assert own is not None and own.denoiser is not None
    assert own.denoiser.recipe.instruction == "User Prompt: "


def test_a_state_survives_a_new_process(options: dict[str, Any], picture: Path, tmp_path: Path) -> None:
    """Everything a world carries, prompt and refiner window included, lies in its file."""
    env = gymnasium.make("sanawm_env/SanaWM-v0", image=picture, prompt="a kitchen", refiner=True, **options)
    env.reset(seed=1)
    env.step([0.4, 0.0])
    world, model = env.unwrapped.get_state().world, env.unwrapped.model
    world.save(tmp_path / "world")
    fresh, _ = open_sana_wm(**{key: x for key, x in options.items() if key != "disable_env_checker"}, refiner=True)
    path = torch.eye(4, dtype=torch.float64).expand(1, 24, 4, 4)
    loaded = WorldState.load(tmp_path / "world", fresh)
    assert torch.equal(step(model, world, path)[1].frames, step(fresh, loaded, path)[1].frames)


def test_what_does_not_fit_is_named(options: dict[str, Any], picture: Path, release: Path, tmp_path: Path) -> None:
    def make(**changes: Any) -> Any:
        return gymnasium.make("sanawm_env/SanaWM-v0", **{**options, "image": picture, **changes})

    with pytest.raises(ConfigError, match="variant is 'bidirektional'; did you mean 'bidirectional'"):
        make(variant="bidirektional")
    with pytest.raises(ConfigError, match=r"variant is 'teacher', but .* holds the streaming model"):
        make(variant="teacher")
    with pytest.raises(SceneError, match="beside image"):
        make(scene=tmp_path)
    with pytest.raises(SceneError, match=r"'none\.png' cannot be read"):
        make(image="none.png")
    with pytest.raises(ConfigError, match="did you mean 'horizon'"):
        make(horizn=3)
    told = {key: x for key, x in options.items() if key != "disable_env_checker"}
    with pytest.raises(BundleError, match="has no refiner_diffusers/transformer"):
        open_sana_wm(**told | {"source": _without_refiner(release, tmp_path)}, refiner=True)
    mixed = _without_refiner(release, tmp_path / "mixed")
    (mixed / "refiner").mkdir()
    (mixed / "refiner" / "transformer").symlink_to(release / "refiner_diffusers" / "transformer")
    with pytest.raises(BundleError, match="that of a bidirectional checkpoint, whose weights are others"):
        open_sana_wm(**told | {"source": mixed}, refiner=True)


def _without_refiner(release: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for name in ("sana_dit", "ltx2_causal_vae"):
        (target / name).symlink_to(release / name)
    return target


def test_damaged_refiners_are_refused(options: dict[str, Any], release: Path, tmp_path: Path) -> None:
    model, _ = open_sana_wm(**{key: x for key, x in options.items() if key != "disable_env_checker"})
    source = release / "refiner_diffusers" / "transformer"
    weights = load_file(source / "diffusion_pytorch_model.safetensors")
    weights["extra"] = torch.zeros(1)
    del weights["proj_in.bias"]
    (tmp_path / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text())))
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(BundleError, match=r"missing \(1\): proj_in\.bias; unexpected \(1\): extra"):
        load_refiner(tmp_path, model)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(BundleError, match="cannot be read"):
        load_refiner(tmp_path, model)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BundleError, match=r"expected config\.json and \*\.safetensors"):
        load_refiner(tmp_path, model)


def test_of_the_refiners_audio_half_the_names_are_checked_and_nothing_is_kept(
    options: dict[str, Any], release: Path, tmp_path: Path
) -> None:
    model, _ = open_sana_wm(**{key: x for key, x in options.items() if key != "disable_env_checker"})
    source = release / "refiner_diffusers" / "transformer"
    weights = load_file(source / "diffusion_pytorch_model.safetensors")
    heard = [name for name in weights if "audio" in name or "av_cross_attn" in name or "a2v" in name]
    kept = load_refiner(source, model).transformer.state_dict()
    assert kept.keys() == weights.keys() - set(heard) and 0 < len(kept) < len(weights)
    assert all(torch.equal(x, weights[name]) for name, x in kept.items())
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    del weights["transformer_blocks.0.audio_attn1.to_q.weight"]
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(BundleError, match=r"missing \(1\): transformer_blocks\.0\.audio_attn1\.to_q\.weight"):
        load_refiner(tmp_path, model)


def test_an_adapter_may_adapt_the_audio_half_too(options: dict[str, Any], release: Path, tmp_path: Path) -> None:
    model, _ = open_sana_wm(**{key: x for key, x in options.items() if key != "disable_env_checker"})
    source, adapter = release / "refiner_diffusers" / "transformer", tmp_path / "adapter.safetensors"
    pairs = {
        f"transformer_blocks.1.{layer}.lora_{side}.weight": torch.ones(shape)
        for layer, width in (("attn1.to_q", 32), ("audio_attn1.to_q", 16))
        for side, shape in (("A", (2, width)), ("B", (width, 2)))
    }
    save_file(pairs, adapter)
    plain, adapted = (load_refiner(source, model, lora=lora).transformer for lora in (None, adapter))
    before, after = (net.transformer_blocks[1].attn1.to_q.weight for net in (plain, adapted))
    torch.testing.assert_close(after, before + 2)
    save_file({name.replace("audio", "smell"): x for name, x in pairs.items()}, adapter)
    with pytest.raises(BundleError, match=r"transformer_blocks\.1\.smell_attn1\.to_q"):
        load_refiner(source, model, lora=adapter)


def test_the_refiner_has_the_precision_of_the_denoiser_or_its_own(options: dict[str, Any]) -> None:
    told = {key: x for key, x in options.items() if key != "disable_env_checker"}
    low = "nvfp4 weight-only (reference)"
    for precision, own, expected in (
        ("nvfp4", None, f"{low}; refiner: {low}"),
        ("nvfp4", "fp32", f"{low}; refiner: fp32"),
        ("fp32", "nvfp4", f"fp32; refiner: {low}"),
    ):
        model, _ = open_sana_wm(**told | {"precision": precision, "refiner_precision": own}, refiner=True)
        assert model.refiner is not None and model.execution == expected


def test_precisions_that_a_refiner_cannot_have(options: dict[str, Any]) -> None:
    told = {key: x for key, x in options.items() if key != "disable_env_checker"}
    with pytest.raises(ConfigError, match=r"refiner_precision is 'nvfp4', but no refiner is asked for; pass refiner"):
        open_sana_wm(**told, refiner_precision="nvfp4")
    with pytest.raises(ConfigError, match="precision is 'fp4'; did you mean 'nvfp4'"):
        open_sana_wm(**told, refiner=True, refiner_precision="fp4")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="'fp8' cannot run on cpu"):
        open_sana_wm(**told, refiner=True, refiner_precision="fp8")


def test_a_low_refiner_is_the_stored_one_quantised_its_adapter_included(
    options: dict[str, Any], release: Path, tmp_path: Path
) -> None:
    source, adapter = release / "refiner_diffusers" / "transformer", tmp_path / "adapter.safetensors"
    told = {key: x for key, x in options.items() if key != "disable_env_checker"}
    model, _ = open_sana_wm(**told)
    drawn = torch.Generator().manual_seed(2)
    factors = {"A": (2, 128), "B": (32, 2)}
    save_file(
        {
            f"transformer_blocks.1.ff.net.2.lora_{side}.weight": torch.randn(shape, generator=drawn)
            for side, shape in factors.items()
        },
        adapter,
    )
    for lora in (None, adapter):
        loaded = load_refiner(source, model, lora=lora, precision="nvfp4").state_dict()
        made = quantised_refiner(load_refiner(source, model, lora=lora), Quantisation(precision="nvfp4"))
        assert loaded.keys() == made.state_dict().keys()
        # What is not quantised may be bf16 in one of them.
        assert all(torch.equal(loaded[name].float(), made.get_parameter(name).float()) for name in exact_names(made))
    # A device without 8-bit products simulates only what was asked for so: a model that is simulated already.
    simulated = Quantisation(precision="fp8", simulated=True)
    refined = quantised(model.with_refiner(load_refiner(source, model)), simulated)
    assert refined.execution == "fp8 simulated (reference); refiner: fp8 simulated (reference)"
    same = load_refiner(source, quantised(model, simulated))
    assert same.quantisation == simulated
    assert refined.refiner is not None and refined.refiner.quantisation == simulated
