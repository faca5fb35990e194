"""Fine-tuning released models: miniatures of the public layouts on disk, footage with prompts, adapters beside them."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.public_layouts import SIZE, write_many_step_release, write_release

import sanawm_env  # noqa: F401 - registers the environments
from sanawm_env import bundle, pretrained
from sanawm_env.adapters import Adapter
from sanawm_env.datasets.provenance import Provenance, StoreInfo
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import BundleError, ConfigError, StorageError
from sanawm_env.rooms import render, sample_scenes, sample_trajectories
from sanawm_env.training import run_stage
from sanawm_env.training.adapt import Adaptation
from sanawm_env.training.adapt_footage import Footage
from sanawm_env.training.adapt_settings import AdaptReleased
from sanawm_env.training.adapt_start import open_start
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.scaling import Scaling

FRAMES, FPS = 48, 16.0
PROMPTS = ("a long hall with a red door", "grass")
LENS = (70.0, 70.0, (SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2)


@functools.cache
def drive(seed: int) -> np.ndarray:
    """Poses [1, FRAMES + 1, 4, 4] of a drive through the room of a seed."""
    return sample_trajectories(sample_scenes([seed]), [seed], FRAMES, FPS).poses


def write_store(
    path: Path,
    prompts: tuple[str | None, ...] = PROMPTS,
    *,
    size: tuple[int, int] = SIZE,
    scale: float | None = 1.0,
) -> Path:
    """Drives through rooms as an annotated store has them: one frame a step, what they show in words."""
    info = StoreInfo(fps=FPS, frames_per_step=1, action_columns=("x",), action_units=("m",))
    lens = np.array(LENS, np.float32) * (size[0] / SIZE[0])
    with EpisodeWriter(path, info) as writer:
        for number, prompt in enumerate(prompts):
            seed = 7 + number
            scenes, poses = sample_scenes([seed]), drive(seed)
            frames = render(scenes, torch.from_numpy(poses).float(), torch.tensor(lens), size).rgb[0].numpy()
            steps = np.zeros(FRAMES, bool)
            told = {"prompt": prompt} if prompt is not None else {}
            rows = {
                "start_frames": frames[0],
                "start_poses": poses[0, 0],
                "start_intrinsics": lens,
                "frames": frames[1:],
                "poses": poses[0, 1:],
                "intrinsics": np.tile(lens, (FRAMES, 1)),
                "actions": np.zeros((FRAMES, 1), np.float32),
                "rewards": np.zeros(FRAMES),
                "terminated": steps,
                "truncated": np.arange(FRAMES) == FRAMES - 1,
                "valid": ~steps,
            }
            writer.add(rows, seed=seed, provenance=Provenance(units_per_metre=scale, synthetic=False, extra=told))
    return path


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A miniature release of each variant, with its text encoder."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("distilled", "teacher", "bidirectional")}
    return {
        "distilled": write_release(folders["distilled"]),
        "teacher": write_many_step_release(folders["teacher"], "ChunkCausalGDN"),
        "bidirectional": write_many_step_release(folders["bidirectional"], "BidirectionalGDN"),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("store") / "footage.zarr")


def released(releases: dict[str, Path], variant: str) -> dict[str, Any]:
    """What `open_sana_wm` is asked for."""
    folder = releases[variant]
    told = {"source": str(folder), "variant": variant, "text_encoder": str(folder / "gemma2")}
    return told | {"size": SIZE, "precision": "fp32"}


def settings(store: Path, out: Path, asked: dict[str, Any], **changes: Any) -> AdaptReleased:
    few: dict[str, Any] = {"steps": 2, "latents": 7, "warmup": 1, "validation": 0.0, "log_seconds": 100.0, "lr": 5e-3}
    few |= {"scaling": Scaling(checkpointed=True, accumulate=2), "rank": 4, "alpha": 4.0}
    return AdaptReleased(**{"data": str(store), "out": out, "sana_wm": asked} | few | changes)


def stage(chosen: AdaptReleased) -> Adaptation:
    ranks = Ranks()
    ranks.device = torch.device("cpu")
    return Adaptation(chosen, open_start(chosen, ranks.device), ranks)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.denoiser.state_dict().items()}


@pytest.mark.parametrize(
    ("variant", "precision"),
    [("distilled", "fp32"), ("distilled", "bf16"), ("teacher", "bf16"), ("bidirectional", "fp32")],
)
def test_every_variant_learns_and_its_weights_stay(
    variant: str, precision: str, releases: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    asked = released(releases, variant) | {"precision": precision}
    one = stage(settings(store, tmp_path, asked, lr=3e-2, ema=0.5))
    before, clips = weights(one.model), one.draw(0)

    def loss() -> torch.Tensor:
        torch.manual_seed(7)  # the same levels and noise
        return one.tuning.loss(clips, 0)

    first = float(loss().detach())
    for _ in range(20):
        one.run.descend(loss())
    assert float(loss().detach()) < 0.9 * first
    one.tuning.trained.detach()
    after = weights(one.model)
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert all(x.dtype == torch.float32 for x in one.tuning.trained.parameters())


@pytest.mark.parametrize("variant", ["distilled", "teacher"])
def test_text_reaches_the_loss(variant: str, releases: dict[str, Path], store: Path, tmp_path: Path) -> None:
    one = stage(settings(store, tmp_path, released(releases, variant)))
    assert one.text is not None
    clips, losses = one.draw(0), []
    for prompt in PROMPTS:
        clips.text = one.text.of([prompt])
        torch.manual_seed(7)
        losses.append(float(one.tuning.loss(clips, 0).detach()))
    assert losses[0] != losses[1]
    clips.text = {}
    with pytest.raises(ConfigError, match="reads text, the clips have none; embed a prompt"):
        one.tuning.loss(clips, 0)


def test_text_is_encoded_once_and_dropped_for_guidance_alone(
    releases: dict[str, Path], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"text_dropout": 0.5, "batch": 16, "cache": tmp_path / "cache"}
    guided = stage(settings(store, tmp_path / "teacher", released(releases, "teacher"), **told))
    assert len(list((tmp_path / "cache" / "prompts").iterdir())) == 3  # two prompts and what guidance moves away from
    monkeypatch.setattr("sanawm_env.prompts.load_encoder", lambda *_, **__: pytest.fail("the encoder was loaded"))
    again = stage(settings(store, tmp_path / "again", released(releases, "teacher"), **told))
    assert guided.text is not None and again.text is not None
    text, away = guided.draw(0).text["hidden"], guided.text.of([None])["hidden"][0]
    dropped = sum(torch.equal(row, away) for row in text)
    assert 3 <= dropped <= 13
    assert torch.equal(text, again.draw(0).text["hidden"])
    monkeypatch.undo()
    student = stage(settings(store, tmp_path / "student", released(releases, "distilled"), **told))
    assert student.text is not None and student.text.negative is None
    known = student.text.of(PROMPTS)["hidden"]
    assert all(any(torch.equal(row, one) for one in known) for row in student.draw(0).text["hidden"])


def test_an_adapter_is_left_that_environments_take(releases: dict[str, Path], store: Path, tmp_path: Path) -> None:
    asked = released(releases, "distilled")
    told = {"data": str(store), "out": tmp_path, "sana_wm": asked, "device": "cpu", "latents": 7, "steps": 2}
    told |= {"lr": 5e-2, "ema": 0.1, "rank": 4, "warmup": 1, "validation": 0.5, "validation_frames": 24}
    figures = run_stage("adapt", told | {"scaling": {"accumulate": 1}})
    path = tmp_path / "adapter.safetensors"
    assert figures["adapter"] == str(path) and set(figures["gain"]) == {"psnr", "psnr_8"}
    assert not (tmp_path / "bundle").exists()
    with safe_open(path, "pt") as file:
        assert "base_model.model.blocks.0.cross_attn.kv_linear.lora_A.weight" in file.keys()  # noqa: SIM118 - no mapping
        said = file.metadata()
    provenance = json.loads(said["provenance"])
    assert said["base"] == "sana-wm-distilled" and provenance["gain"] == figures["gain"]
    assert str(tmp_path) not in said["provenance"] and str(releases["distilled"].parent) not in said["provenance"]

    given = dict(asked) | {"image": np.full((*SIZE, 3), 90, np.uint8), "prompt": PROMPTS[0], "device": "cpu"}
    given |= {"prompt_cache": tmp_path / "prompts", "disable_env_checker": True}
    shown, prints = [], []
    for adapter in (None, path, {"path": str(path), "scale": 0.0}, Adapter(path=path, scale=2.0)):
        env = gymnasium.make("sanawm_env/SanaWM-v0", adapter=adapter, **given)
        env.reset(seed=0)
        shown.append(env.step([0.4, 0.1])[4]["frames"])
        prints.append(env.unwrapped.model.fingerprint)
    assert not np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[1], shown[3])
    np.testing.assert_array_equal(shown[0], shown[2])
    assert len(set(prints)) == 4  # so that no snapshot of one is taken for one of another


def test_a_bundle_can_be_made_with_the_adapter(releases: dict[str, Path], store: Path, tmp_path: Path) -> None:
    asked = released(releases, "distilled")
    one = stage(settings(store, tmp_path / "out", asked, ema=0.1, lr=5e-2))
    one.train()
    path = tmp_path / "out" / "adapter.safetensors"
    source, plain = asked["source"], tmp_path / "plain"
    made = pretrained.convert(source, tmp_path / "made", variant="distilled", size=SIZE, adapter=path)
    pretrained.convert(source, plain, variant="distilled", size=SIZE)
    told = {"variant": "distilled", "device": "cpu", "precision": "fp32", "size": SIZE}
    inside = bundle.load(made, device="cpu", precision="fp32").denoiser.state_dict()
    beside = pretrained.from_pretrained(source, adapter=path, **told).denoiser.state_dict()
    names = [name for name, x in beside.items() if not torch.equal(x, one.model.denoiser.state_dict()[name])]
    assert len(names) == len(one.tuning.trained.names)
    for name, x in beside.items():
        torch.testing.assert_close(inside[name], x, rtol=1e-2, atol=1e-2)  # kept in bf16
    assert bundle.description(made)["provenance"]["adapter"]["base"] == "sana-wm-distilled"
    other = {"path": str(path), "any_base": True}
    again = pretrained.from_pretrained(plain, adapter=other, **told).denoiser.state_dict()
    for name, x in beside.items():
        torch.testing.assert_close(again[name], x, rtol=1e-2, atol=1e-2)


def test_adapters_of_another_model_are_refused(releases: dict[str, Path], store: Path, tmp_path: Path) -> None:
    asked = released(releases, "teacher")
    stage(settings(store, tmp_path, asked, steps=1)).train()
    path = tmp_path / "adapter.safetensors"
    told: dict[str, Any] = {"device": "cpu", "precision": "fp32", "size": SIZE}
    distilled = {"source": str(releases["distilled"]), "variant": "distilled"}
    with pytest.raises(BundleError, match="beside sana-wm-teacher, the model is sana-wm-distilled; give"):
        pretrained.from_pretrained(**distilled, adapter=path, **told)
    student = pretrained.from_pretrained(**distilled, adapter=Adapter(path=path, any_base=True), **told)
    assert student.fingerprint != pretrained.from_pretrained(**distilled, **told).fingerprint
    with safe_open(path, "pt") as file:
        said = file.metadata()
    save_file(load_file(path), tmp_path / "other.safetensors", metadata=said | {"base_sha256": "0" * 64})
    with pytest.raises(
        BundleError, match=r"beside sana-wm-teacher 000000000000, the model is sana-wm-teacher [0-9a-f]"
    ):
        pretrained.from_pretrained(asked["source"], variant="teacher", adapter=tmp_path / "other.safetensors", **told)
    wrong = {name.replace("blocks.0.", "blocks.9."): x for name, x in load_file(path).items()}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(BundleError, match=r"does not fit: 7 names are no linear layers .*blocks.9.attn.proj"):
        pretrained.from_pretrained(asked["source"], variant="teacher", adapter=tmp_path / "wrong.safetensors", **told)


def test_a_training_that_was_cut_off_ends_with_the_same_adapter(
    releases: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    asked, told = released(releases, "teacher"), {"cache": tmp_path / "cache"}
    stage(settings(store, tmp_path / "whole", asked, **told)).train()
    for _ in range(2):
        stage(settings(store, tmp_path / "parts", asked, **told, max_steps=1)).train()
    whole, parts = (load_file(tmp_path / one / "adapter.safetensors") for one in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(x, parts[name]) for name, x in whole.items())
    with pytest.raises(ConfigError, match="holds a training with prompt None, asked for is 'sky'"):
        stage(settings(store, tmp_path / "parts", asked, **told, prompt="sky"))


def test_what_the_store_does_not_say_is_asked_for(releases: dict[str, Path], tmp_path: Path) -> None:
    asked, out = released(releases, "distilled"), tmp_path / "out"
    silent = write_store(tmp_path / "silent.zarr", (None, "grass"))
    with pytest.raises(StorageError, match=r"1 of 2 episodes have no prompt \(episode 0 is one\)"):
        stage(settings(silent, out, asked))
    one = stage(settings(silent, out, asked, prompt="stone"))
    assert [one.sources[0].prompt_of(number) for number in range(2)] == ["stone", "grass"]
    loose = write_store(tmp_path / "loose.zarr", PROMPTS[:1], scale=None)
    with pytest.raises(StorageError, match=r"poses without a scale.* or pass units="):
        stage(settings(loose, tmp_path / "other", asked))
    half, plain = (stage(settings(loose, tmp_path / str(units), asked, units=units)) for units in (0.5, 1.0))
    poses = [one.clips[0].draw(np.arange(1)).poses[0, -1, :3, 3] for one in (half, plain)]
    torch.testing.assert_close(2 * poses[0], poses[1])


def test_pictures_are_brought_to_the_size_of_the_model(releases: dict[str, Path], tmp_path: Path) -> None:
    asked = released(releases, "distilled")
    model = open_start(settings(tmp_path, tmp_path, asked), torch.device("cpu")).model
    larger = write_store(tmp_path / "larger.zarr", PROMPTS[:1], size=(96, 144))
    same = write_store(tmp_path / "same.zarr", PROMPTS[:1])
    big, small = (Footage(path, model).read(0) for path in (larger, same))
    assert big.frames.shape == small.frames.shape
    np.testing.assert_allclose(big.intrinsics, small.intrinsics, atol=0.6)
    error = big.frames.astype(float) - small.frames
    assert np.abs(error).mean() < 8.0
    tall = write_store(tmp_path / "tall.zarr", PROMPTS[:1], size=(192, 96))
    with pytest.raises(StorageError, match=r"of 192x96, the bundle 'sana-wm-distilled' of 64x96: they keep 33%"):
        Footage(tall, model)


def test_models_that_cannot_be_adapted(releases: dict[str, Path], store: Path, tmp_path: Path) -> None:
    asked = released(releases, "distilled")
    with pytest.raises(ConfigError, match="sana_wm holds refiner=True, which a model that is adapted cannot have"):
        open_start(settings(store, tmp_path, asked | {"refiner": True}), torch.device("cpu"))
    with pytest.raises(ConfigError, match="quantised to nvfp4"):
        open_start(settings(store, tmp_path, asked | {"precision": "nvfp4"}), torch.device("cpu"))
    with pytest.raises(ConfigError, match="method is 'full' and the weights are bfloat16"):
        open_start(settings(store, tmp_path, asked | {"precision": "bf16"}, method="full"), torch.device("cpu"))
    made = pretrained.convert(asked["source"], tmp_path / "made", variant="distilled", size=SIZE)
    plain = dataclasses.replace(settings(store, tmp_path, asked), sana_wm=None, bundle=str(made))
    with pytest.raises(ConfigError, match="reads text; name its release, or its own folder, under sana_wm"):
        open_start(plain, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"weights are to be sharded, but adapters leave them"):
        settings(store, tmp_path, asked, scaling=Scaling(sharded=True))
    for latents, message in ((5, r"allowed are 1 \+ 3 k"), (4, "latents is 4, one chunk; .* at least 7")):
        with pytest.raises(ConfigError, match=message):
            stage(settings(store, tmp_path / "out", asked, latents=latents))
