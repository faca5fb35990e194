"""Variants of a bundle lie beside it, share its autoencoder, and are asked for by name."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import sanawm_env
from sanawm_env import bundle
from sanawm_env.errors import BundleError, ConfigError
from sanawm_env.model.checkpoint import is_matrix
from sanawm_env.model.config import Schedule
from sanawm_env.planned_env import PlannedEnv
from sanawm_env.training.clip_stage import many_steps, turned
from sanawm_env.world import WorldModel

STEPS = Schedule(steps=4, shift=2.0, guidance=1.0)


def other(model: WorldModel, seed: int) -> WorldModel:
    """Another denoiser over the same autoencoder."""
    return WorldModel(model.config, WorldModel.random(model.config, seed=seed).denoiser, model.autoencoder)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: WorldModel) -> Path:
    own = bundle.save(tmp_path / "tiny", tiny_model, {})
    stored = bundle.load(own, device="cpu", precision="fp32")
    for variant in ("teacher", "bidirectional"):
        made = turned(other(stored, 1), variant, **many_steps(STEPS))  # type: ignore[arg-type]
        bundle.save(tmp_path / f"tiny-{variant}", made, {}, shared=own)
    return own


def test_variants_share_an_autoencoder(folder: Path) -> None:
    mine, theirs = bundle.description(folder), bundle.description(folder.with_name("tiny-teacher"))
    assert not list(folder.with_name("tiny-teacher").glob("autoencoder*"))
    lent = {name: x for name, x in theirs["files"].items() if name.startswith("autoencoder")}
    assert {name: x["of"] for name, x in lent.items()} == dict.fromkeys(lent, "tiny")
    assert all(mine["files"][name]["sha256"] == x["sha256"] for name, x in lent.items())
    plain, teacher = (bundle.load(folder, device="cpu", precision="fp32", variant=v) for v in (None, "teacher"))  # type: ignore[arg-type]
    assert (plain.config.variant, teacher.config.variant) == ("distilled", "teacher")
    assert (teacher.config.name, teacher.config.timesteps) == ("tiny-teacher", (1000, 857, 667, 400))
    for name, x in plain.autoencoder.state_dict().items():
        assert torch.equal(x, teacher.autoencoder.state_dict()[name])
    assert bundle.load(folder, device="cpu", precision="fp32", variant="distilled") is plain
    assert plain.fingerprint != teacher.fingerprint == bundle.fingerprint(folder.with_name("tiny-teacher"))


def test_the_shipped_teacher_steps_out_of_the_box() -> None:
    env = gymnasium.make("sanawm_env/Rooms-v0", variant="teacher")
    first, _ = env.reset(seed=3)
    *_, info = env.step(np.array([0.4, 0.2], np.float32))
    default = gymnasium.make("sanawm_env/Rooms-v0")
    same, _ = default.reset(seed=3)
    *_, other = default.step(np.array([0.4, 0.2], np.float32))
    env.close()
    default.close()
    taught, plain = info["frames"].astype(float), other["frames"].astype(float)
    assert np.array_equal(first, same) and taught.shape == plain.shape
    # The same room from the same poses, not the same picture, and far from one that is not the room's.
    assert 0 < np.abs(taught - plain).mean() < 8 < np.abs(taught - plain[:, :, ::-1]).mean()


def test_where_files_lie_changes_no_fingerprint(folder: Path, tmp_path: Path) -> None:
    teacher = bundle.load(folder, device="cpu", precision="fp32", variant="teacher")
    alone = bundle.save(tmp_path / "alone" / "tiny", teacher, {}, bits=32)
    beside = bundle.save(tmp_path / "alone" / "again", teacher, {}, bits=32, shared=alone)
    assert bundle.fingerprint(alone) == bundle.fingerprint(beside)


def test_few_bits_tell_how_far_a_variant_went(tmp_path: Path, tiny_model: WorldModel) -> None:
    own = bundle.save(tmp_path / "tiny", tiny_model, {})
    stored = bundle.load(own, device="cpu", precision="fp32")
    draw = torch.Generator().manual_seed(0)
    moved = {
        name: x + 0.01 * torch.randn(x.shape, generator=draw) * x.abs().mean() if x.is_floating_point() else x.clone()
        for name, x in stored.denoiser.state_dict().items()
    }
    denoiser = copy.deepcopy(stored.denoiser)
    denoiser.load_state_dict(moved)
    further = WorldModel(replace(stored.config, variant="teacher"), denoiser, stored.autoencoder)
    error, size = {}, {}
    for bits, shared in ((8, None), (4, own)):
        folder = bundle.save(tmp_path / f"tiny-teacher{bits}", further, {}, bits=bits, shared=shared)
        read = bundle.load(folder, device="cpu", precision="fp32").denoiser.state_dict()
        matrices = [name for name, x in moved.items() if is_matrix(x)]
        assert matrices and all(torch.equal(read[name], moved[name]) for name in moved if name not in matrices)
        error[bits] = sum(float((read[name] - moved[name]).square().sum()) for name in matrices)
        assert bundle.description(folder)["bits"] == 8, "for whoever writes the weights whole, as quantising does"
        size[bits] = sum(path.stat().st_size for path in folder.glob("d*.safetensors"))
    stored_elements = sum(moved[name].numel() for name in matrices)
    assert error[4] < 0.1 * error[8] and size[8] - size[4] > 0.5 * stored_elements
    # A difference is to weights that are there themselves, and of the same shapes.
    with pytest.raises(BundleError, match="holds no plain weights of its own"):
        bundle.save(tmp_path / "next", further, {}, shared=tmp_path / "tiny-teacher4")
    other = replace(tiny_model.config, denoiser=replace(tiny_model.config.denoiser, depth=1))
    small = WorldModel(other, WorldModel.random(other, seed=0).denoiser, stored.autoencoder)
    with pytest.raises(BundleError, match=r"of another kind \(unexpected"):
        bundle.save(tmp_path / "next", small, {}, shared=own)
    assert not (tmp_path / "next").exists()


def test_the_environment_of_a_variant(folder: Path) -> None:
    seen = {}
    for variant in ("distilled", "teacher"):
        env = gymnasium.make("sanawm_env/Rooms-v0", bundle=str(folder), variant=variant, device="cpu", task="drive")
        env.reset(seed=3)
        seen[variant] = env.step(env.action_space.sample() * 0 + 0.1)[0]
        assert env.unwrapped.model.config.variant == variant  # type: ignore[attr-defined]
    assert not np.array_equal(seen["distilled"], seen["teacher"])
    batch = gymnasium.make_vec("sanawm_env/Rooms-v0", num_envs=2, bundle=str(folder), variant="teacher", device="cpu")
    assert batch.unwrapped.model.config.variant == "teacher"  # type: ignore[attr-defined]
    batch.close()


def test_what_cannot_be_stepped_is_planned(folder: Path) -> None:
    with pytest.raises(ConfigError, match="PlannedEnv"):
        gymnasium.make("sanawm_env/Rooms-v0", bundle=str(folder), variant="bidirectional", device="cpu")
    env = PlannedEnv(folder, variant="bidirectional", device="cpu", actions=[[0.1, 0.0]], task="drive")
    _, info = env.reset(seed=0)
    assert info["trajectory"].shape == (9, 4, 4)
    model = bundle.load(folder, device="cpu", variant="teacher")
    released = WorldModel(replace(model.config, timesteps=(1000,)), model.denoiser, model.autoencoder)
    with pytest.raises(ConfigError, match="a teacher with levels to step at"):
        sanawm_env.SanaWMEnv(released)


def test_errors_of_variants_say_what_there_is(folder: Path, tiny_model: WorldModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'teacher'"):
        bundle.load(folder, variant="teachr")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="variant is 'teacher', but the model is loaded already"):
        bundle.open_model(tiny_model, None, "auto", variant="teacher")
    lonely = bundle.save(tmp_path / "lonely", tiny_model, {})
    with pytest.raises(BundleError, match=r"no variant 'teacher' .*lonely-teacher holds none\), only distilled"):
        bundle.load(lonely, variant="teacher")
    (tmp_path / "tiny-teacher" / "bundle.json").rename(tmp_path / "kept.json")
    with pytest.raises(BundleError, match="only distilled, bidirectional"):
        bundle.load(folder, variant="teacher")


def test_a_shared_autoencoder_must_be_there_and_the_same(folder: Path, tiny_model: WorldModel, tmp_path: Path) -> None:
    stranger = WorldModel.random(tiny_model.config, seed=5)
    with pytest.raises(BundleError, match="another autoencoder"):
        bundle.save(tmp_path / "stranger", stranger, {}, shared=folder)
    with pytest.raises(BundleError, match="folder beside"):
        bundle.save(tmp_path / "deep" / "teacher", tiny_model, {}, shared=folder)
    assert not (tmp_path / "stranger").exists() and not (tmp_path / "deep").exists()
    path = tmp_path / "tiny-teacher" / "bundle.json"
    told = json.loads(path.read_text())
    name = next(name for name in told["files"] if name.startswith("autoencoder"))
    told["files"][name]["of"] = "../tiny"
    path.write_text(json.dumps(told))
    with pytest.raises(BundleError, match="name of a folder beside it"):
        bundle.load(folder, variant="teacher")
    told["files"][name]["of"] = "gone"
    path.write_text(json.dumps(told))
    with pytest.raises(BundleError, match="missing"):
        bundle.load(folder, variant="teacher")
