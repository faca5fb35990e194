"""Fine-tuning on episode stores: what is trained, what is merged, where clips come from, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sanawm_env import bundle
from sanawm_env.adapters import adapted
from sanawm_env.clips import generate
from sanawm_env.datasets.provenance import Provenance
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import ConfigError, SceneError, StorageError
from sanawm_env.model.chunks import clip_chunks
from sanawm_env.model.config import tiny_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.lora import LAYERS, LowRank, adapted_layers, merging
from sanawm_env.rooms import render, sample_scenes, sample_trajectories
from sanawm_env.training import run_stage
from sanawm_env.training.adapt import Adaptation
from sanawm_env.training.adapt_footage import Footage
from sanawm_env.training.adapt_latents import ClipCache, encoded
from sanawm_env.training.adapt_settings import AdaptTraining
from sanawm_env.training.adapt_start import open_start
from sanawm_env.training.latents import clip_conditioning
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.rooms_drives import RecordRooms, record
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.episodes import StoreVectorEpisodes

FRAMES = 24


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_model: WorldModel) -> Path:
    """A tiny bundle in 32 bits, so that what is written is what was trained."""
    return bundle.save(tmp_path_factory.mktemp("start") / "tiny", tiny_model, {"origin": "random"}, bits=32)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, start: Path) -> Path:
    out = tmp_path_factory.mktemp("night") / "night.zarr"
    record(RecordRooms(out=out, episodes=4, frames=FRAMES, style="night", bundle=str(start), device="cpu"))
    return out


def settings(night: Path, out: Path, start: Path, **changes: Any) -> AdaptTraining:
    few: dict[str, Any] = {"steps": 3, "batch": 2, "latents": 5, "warmup": 1, "validation": 0.25, "log_seconds": 100.0}
    given = {"data": str(night), "out": out, "bundle": str(start), "rank": 4, "alpha": 4.0} | few | changes
    return AdaptTraining(**given)


def stage(chosen: AdaptTraining) -> Adaptation:
    ranks = Ranks()
    ranks.device = torch.device("cpu")
    return Adaptation(chosen, open_start(chosen, ranks.device), ranks)


def rewritten(source: Path, target: Path, *, fps: float = 10.0, size: int = 0, scale: float | None = 1.0) -> Path:
    """The first episode of a store with another rate, another size or another scale."""
    store = EpisodeStore(source)
    arrays = {key: x for key, x in store.read(0).items() if key in AS_WRITTEN}
    if size:
        arrays |= {key: arrays[key][..., :size, :, :] for key in ("frames", "start_frames")}
    info = dataclasses.replace(store.info, fps=fps)
    with EpisodeWriter(target, info) as writer:
        writer.add(arrays, seed=0, provenance=Provenance(units_per_metre=scale))
    return target


AS_WRITTEN = (
    *("frames", "poses", "intrinsics", "actions", "rewards", "terminated", "truncated", "valid"),
    *("start_frames", "start_poses", "start_intrinsics"),
)


def test_the_listed_layers_alone_are_trained(night: Path, start: Path, tmp_path: Path) -> None:
    one = stage(settings(night, tmp_path, start))
    trained = one.tuning.trained
    assert isinstance(trained, LowRank)
    kinds = {name.split(".", 2)[2] for name in trained.names}
    assert kinds == {"attn.qkv", "attn.proj", "mlp.inverted_conv.conv", "mlp.point_conv.conv"}  # no text: no others
    assert len(trained.names) == 4 * one.config.denoiser.depth
    one.tuning.loss(one.draw(0), 0).backward()
    assert all(x.grad is None for x in one.tuning.denoiser.parameters())
    assert all(bool((x.grad.abs() > 0).any()) for x in trained.up if x.grad is not None)
    assert all(x.grad is not None for x in trained.parameters())


@pytest.mark.parametrize("prediction", ["clean", "velocity"])
def test_steps_lower_the_loss_on_one_clip(prediction: str, night: Path, start: Path, tmp_path: Path) -> None:
    model = bundle.load(start, device="cpu", precision="fp32")
    denoiser = dataclasses.replace(model.config.denoiser, prediction=prediction)
    other = WorldModel.random(dataclasses.replace(model.config, denoiser=denoiser))
    folder = bundle.save(tmp_path / "start", other, {}, bits=32)
    one = stage(settings(night, tmp_path / "out", folder, lr=2e-2, ema=0.5, imagined=0, mixture_share=0.0))
    clips = one.clips[0].draw(np.array([0, 0]))

    def loss() -> torch.Tensor:
        torch.manual_seed(7)  # the same levels and noise
        return one.tuning.loss(clips, 0)

    before = float(loss().detach())
    for _ in range(12):
        one.run.descend(loss())
    assert float(loss().detach()) < 0.9 * before


def test_all_weights_are_trained_without_adapters(night: Path, start: Path, tmp_path: Path) -> None:
    figures = run_stage("adapt", mapping(settings(night, tmp_path, start, method="full", lr=1e-3)))
    assert figures["steps"] == 3 and not (tmp_path / "adapter.safetensors").exists()
    plain, after = (bundle.load(one, device="cpu", precision="fp32").denoiser for one in (start, tmp_path / "bundle"))
    changed = [name for name, x in after.state_dict().items() if not torch.equal(x, plain.state_dict()[name])]
    assert any("k_proj_cam" in name for name in changed) and any("qkv" in name for name in changed)


def mapping(chosen: AdaptTraining) -> dict[str, Any]:
    told = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    return told | {"device": "cpu"}


def test_a_merged_bundle_is_base_and_adapter(night: Path, start: Path, tmp_path: Path) -> None:
    one = stage(settings(night, tmp_path, start, lr=5e-2, ema=0.1))
    figures = one.train()
    trained, denoiser = one.tuning.trained, one.tuning.denoiser  # given back plain, and to be adapted anew
    assert isinstance(trained, LowRank)
    again = LowRank(denoiser, trained.names, 4, 4.0)
    again.load_state_dict(trained.state_dict())
    merged = bundle.load(tmp_path / "bundle", device="cpu", precision="fp32")
    clips = one.clips[0].draw(np.array([0, 1]))
    given, chunks = clip_conditioning(one.config, clips.poses, clips.intrinsics, {}), clip_chunks(5, 2)
    level = torch.full((2, 5), 1000.0)
    with torch.no_grad():
        memory = denoiser.memory(2, one.config.grid, device=torch.device("cpu"), dtype=torch.float32)
        beside, _ = denoiser(clips.latents, level, given, chunks, memory)
        inside, _ = merged.denoiser(clips.latents, level, given, chunks, memory)
        plain, _ = one.model.denoiser(clips.latents, level, given, chunks, memory)
    torch.testing.assert_close(inside, beside, atol=1e-4, rtol=1e-4)
    assert float((plain - inside).abs().max()) > 100 * float((beside - inside).abs().max())
    assert figures["adapter_bytes"] == sum(x.nbytes for x in load_file(tmp_path / "adapter.safetensors").values())
    with safe_open(tmp_path / "adapter.safetensors", "pt") as file:
        assert "base_model.model.blocks.0.attn.qkv.lora_A.weight" in file.keys()  # noqa: SIM118 - no mapping
    told = bundle.description(tmp_path / "bundle")["provenance"]
    assert told["origin"] == "random" and told["adapted"][0]["data"][0]["episodes"] == 4
    assert told["adapted"][0]["gain"] == figures["gain"] and set(figures["gain"]) == {"psnr", "psnr_8"}
    assert str(tmp_path) not in json.dumps(told)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_training_that_was_cut_off_ends_with_the_same_weights(
    method: str, night: Path, start: Path, tmp_path: Path
) -> None:
    told = {"method": method, "cache": tmp_path / "cache", "validation": 0.25}
    stage(settings(night, tmp_path / "whole", start, **told)).train()
    for most in (1, 2):
        stage(settings(night, tmp_path / "parts", start, **told, max_steps=most)).train()
    whole, parts = (
        bundle.load(tmp_path / one / "bundle", device="cpu", precision="fp32") for one in ("whole", "parts")
    )
    for name, x in whole.denoiser.state_dict().items():
        assert torch.equal(x, parts.denoiser.state_dict()[name]), name


def test_another_job_does_not_go_on(night: Path, start: Path, tmp_path: Path) -> None:
    stage(settings(night, tmp_path, start))
    with pytest.raises(ConfigError, match="holds a training with rank 4, asked for is 8"):
        stage(settings(night, tmp_path, start, rank=8))


def test_latents_are_encoded_once(night: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bundle.load(start, device="cpu", precision="fp32")
    footage = Footage(str(night), model)
    cache = ClipCache(tmp_path, footage, latents=5, every=4)
    assert cache.encode([0, 2]) == 2 and cache.encode([0, 1, 2]) == 1
    cache.open([0, 1])
    assert len(cache) == 2 * 3  # clips of 17 of 25 frames, from 0, 4 and 8
    clips = cache.draw(np.array([4]))
    episode = footage.read(1)
    wanted = encoded(model, torch.from_numpy(episode.frames[4:21])[None])
    torch.testing.assert_close(clips.latents, wanted, atol=0.02, rtol=0.01)  # kept in bf16
    assert torch.allclose(clips.poses[0, 0], torch.eye(4), atol=1e-6)
    moved = np.linalg.inv(episode.poses[4]) @ episode.poses[20]
    np.testing.assert_allclose(clips.poses[0, -1].numpy(), moved, atol=1e-5)
    monkeypatch.setattr(Footage, "read", None)  # nothing of the store is read again
    assert ClipCache(tmp_path, footage, latents=5, every=4).encode([0, 1, 2]) == 0
    assert ClipCache(tmp_path, footage, latents=7, every=4).folder != cache.folder


def test_encoding_that_was_cut_off_leaves_whole_files_alone(night: Path, start: Path, tmp_path: Path) -> None:
    footage = Footage(str(night), bundle.load(start, device="cpu", precision="fp32"))
    cache, read = ClipCache(tmp_path, footage, latents=5, every=8), footage.read

    def interrupted(number: int) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return read(number)

    footage.read = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cache.encode(range(4))
    assert [one.name for one in cache.folder.iterdir()] == [cache.path(0).name]
    footage.read = read  # type: ignore[method-assign]
    assert cache.encode(range(4)) == 3


def test_clips_keep_out_of_frames_after_the_end(night: Path, start: Path, tmp_path: Path) -> None:
    store = EpisodeStore(night)
    arrays = {key: x for key, x in store.read(0).items() if key in AS_WRITTEN}
    arrays["valid"] = np.arange(FRAMES) < 18
    with EpisodeWriter(tmp_path / "ended.zarr", store.info) as writer:
        writer.add(arrays, seed=0, provenance=Provenance(units_per_metre=1.0))
    footage = Footage(str(tmp_path / "ended.zarr"), bundle.load(start, device="cpu", precision="fp32"))
    assert len(footage.read(0).frames) == 19
    cache = ClipCache(tmp_path / "cache", footage, latents=5, every=1)
    cache.encode([0])
    cache.open([0])
    assert len(cache) == 3  # 17 frames of 19
    with pytest.raises(StorageError, match="as long as a clip of 9 latents, 33 frames; pass a smaller"):
        longer = ClipCache(tmp_path / "cache", footage, latents=9, every=1)
        longer.encode([0])
        longer.open([0])


def test_latents_of_the_same_bundle_are_taken_from_the_store(start: Path, tmp_path: Path) -> None:
    worlds = SanaWMVectorEnv(1, str(start), task="drive", latents=True, frames="all", device="cpu", precision="fp32")
    env = StoreVectorEpisodes(worlds, tmp_path / "dream.zarr", keep="both")
    env.reset(seed=[3])
    for _ in range(3):
        env.step(np.array([[0.1, 0.1]]))
    env.close()
    footage = Footage(str(tmp_path / "dream.zarr"), bundle.load(start, device="cpu", precision="fp32"))
    cache = ClipCache(tmp_path / "cache", footage, latents=5, every=8)
    cache.encode([0])
    cache.open([0])
    stored = footage.source.read(0)
    first = np.concatenate([stored["start_latents"][None], *stored["latents"]])[:5]
    assert len(cache) == 2
    np.testing.assert_allclose(cache.draw(np.array([0])).latents[0].numpy(), first, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 24}, "pictures of 24x40, the bundle 'tiny' of 32x40: they would have to be enlarged 1.33 times"),
        ({"fps": 15.0}, "has 15 frames/s, the bundle 'tiny' 10; allowed are whole multiples"),
        ({"scale": None}, "poses without a scale"),
    ],
)
def test_stores_that_do_not_fit_are_refused(
    change: dict[str, Any], message: str, night: Path, start: Path, tmp_path: Path
) -> None:
    other = rewritten(night, tmp_path / "other.zarr", **change)
    with pytest.raises(StorageError, match=message):
        stage(settings(other, tmp_path / "out", start))
    assert not (tmp_path / "out").exists()


def test_a_faster_store_is_thinned_out(night: Path, start: Path, tmp_path: Path) -> None:
    model = bundle.load(start, device="cpu", precision="fp32")
    slow = Footage(str(night), model).read(0)
    fast = Footage(str(rewritten(night, tmp_path / "fast.zarr", fps=20.0)), model).read(0)
    np.testing.assert_array_equal(fast.poses, slow.poses[::2])
    assert len(fast.frames) == 13


def test_what_is_learned_outlives_a_bundle_of_few_bits(night: Path, start: Path, tmp_path: Path) -> None:
    """The steps between weights of 8 bits are wider than what a short training moves them by."""
    few = bundle.save(tmp_path / "few", bundle.load(start, device="cpu", precision="fp32"), {}, bits=8)
    one = stage(settings(night, tmp_path / "out", few, lr=1e-3, ema=0.1))
    one.train()
    plain, read = one.model, bundle.load(tmp_path / "out" / "bundle", device="cpu", precision="fp32")
    exact = adapted(plain, tmp_path / "out" / "adapter.safetensors").denoiser.state_dict()
    moved = lost = 0.0
    for name, x in read.denoiser.state_dict().items():
        moved += float((exact[name] - plain.denoiser.state_dict()[name]).square().sum())
        lost += float((exact[name] - x).square().sum())
    assert moved > 0 and lost < 0.01 * moved


def dreamt(source: Path, target: Path, start: Path) -> Path:
    """The first two episodes of a store as the model itself shows them: nothing that it learns can make it better."""
    store, model = EpisodeStore(source), bundle.load(start, device="cpu", precision="fp32")
    with EpisodeWriter(target, store.info) as writer:
        for number in (0, 1):
            arrays = {key: x for key, x in store.read(number).items() if key in AS_WRITTEN}
            path = np.concatenate([arrays["start_poses"][None], arrays["poses"]])[None]
            shown = generate(model, arrays["start_frames"][None], path, seeds=[0]).frames
            assert shown is not None
            arrays["frames"] = shown[0, 1:].numpy()
            writer.add(arrays, seed=number, provenance=Provenance(units_per_metre=1.0))
    return target


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_forgets_too_much_is_weakened(method: Any, night: Path, start: Path, tmp_path: Path) -> None:
    forgetful = {"method": method, "replay": str(dreamt(night, tmp_path / "own.zarr", start)), "replay_share": 0.0}
    forgetful |= {"lr": 0.01 if method == "lora" else 0.0005, "ema": 0.1}
    whole = run_stage("adapt", mapping(settings(night, tmp_path / "a", start, forget=None, **forgetful)))
    lost = -whole["gain"]["replay_psnr"]
    assert whole["strength"] == 1.0 and lost > 1.0
    kept = run_stage("adapt", mapping(settings(night, tmp_path / "b", start, forget=lost / 2, **forgetful)))
    assert kept["strength"] < 1.0 and -kept["gain"]["replay_psnr"] <= lost / 2
    plain, far, near = (
        bundle.load(path, device="cpu", precision="fp32").denoiser.state_dict()
        for path in (start, tmp_path / "a" / "bundle", tmp_path / "b" / "bundle")
    )
    for name, x in plain.items():
        torch.testing.assert_close(near[name], x.lerp(far[name], kept["strength"]), atol=1e-4, rtol=1e-4)


def test_what_forgets_too_much_at_any_strength_is_told(night: Path, start: Path, tmp_path: Path) -> None:
    given = {"replay": str(dreamt(night, tmp_path / "own.zarr", start)), "replay_share": 0.0, "lr": 0.5, "ema": 0.1}
    with pytest.warns(UserWarning, match="0.05 of what was learned still forgets .* allowed are 0.01"):
        told = run_stage("adapt", mapping(settings(night, tmp_path / "out", start, forget=0.01, **given)))
    assert told["strength"] == 0.05


def test_replayed_episodes_are_drawn_and_measured(night: Path, start: Path, tmp_path: Path) -> None:
    record(RecordRooms(out=tmp_path / "day.zarr", episodes=2, frames=FRAMES, bundle=str(start), device="cpu"))
    one = stage(settings(night, tmp_path, start, replay=str(tmp_path / "day.zarr"), replay_share=0.5, batch=16))
    drawn = one.draw(0)
    day = one.clips[1].draw(np.arange(len(one.clips[1]))).latents
    again = sum(bool((day == clip).flatten(1).all(1).any()) for clip in drawn.latents)
    assert len(drawn.latents) == 16 and 4 <= again <= 12
    assert set(one.before) == {"psnr", "psnr_8", "replay_psnr", "replay_psnr_8"}


def test_adapters_of_layers_that_are_not_there() -> None:
    denoiser = WorldModel.random(tiny_config()).denoiser
    with pytest.raises(ConfigError, match=r"did you mean 'attn.qkv'"):
        adapted_layers(denoiser, ["attn.qvk"])
    with pytest.raises(ConfigError, match="none of the layers"):
        adapted_layers(denoiser, ["cross_attn.proj"])
    with pytest.raises(ConfigError, match="rank is 0"):
        LowRank(denoiser, adapted_layers(denoiser), 0, 1.0)


def test_text_is_cross_attended_by_adapted_layers() -> None:
    """A model with text has every layer of the list, and its adapter is read back by the released names."""
    config = dataclasses.replace(tiny_config().denoiser, caption_channels=12, caption_length=4)
    denoiser = Denoiser(config)
    names = adapted_layers(denoiser)
    assert {name.split(".", 2)[2] for name in names} == set(LAYERS)
    pair = LowRank(denoiser, names, 2, 4.0)
    with torch.no_grad():
        for up in pair.up:
            up.normal_()
    read = merging(denoiser, denoiser.state_dict().__getitem__, pair.tensors(), torch.device("cpu"))
    weight = denoiser.blocks[0].mlp.inverted_conv.conv.weight
    index = names.index("blocks.0.mlp.inverted_conv.conv")
    torch.testing.assert_close(
        read("blocks.0.mlp.inverted_conv.conv.weight"),
        weight + 2.0 * (pair.up[index] @ pair.down[index])[:, :, None, None],
    )


def test_recording_goes_on_and_styles_keep_the_paths(night: Path, start: Path, tmp_path: Path) -> None:
    told = {"frames": FRAMES, "bundle": str(start), "device": "cpu", "style": "night"}
    out = tmp_path / "again.zarr"
    assert record(RecordRooms(out=out, episodes=1, **told))["recorded"] == 1
    assert record(RecordRooms(out=out, episodes=2, **told)) == {"store": str(out), "episodes": 2, "recorded": 1}
    one, other = EpisodeStore(out)[1], EpisodeStore(night)[1]
    np.testing.assert_array_equal(one["poses"], other["poses"])
    seed, world = 200_000_001, bundle.load(start).config
    poses = sample_trajectories(sample_scenes([seed]), [seed], FRAMES, world.fps).poses
    size = (world.height, world.width)
    seen = render(sample_scenes([seed], style="night"), torch.from_numpy(poses).float(), world.intrinsics, size).rgb[0]
    error = one["frames"].astype(float) - seen[1:].numpy()
    assert np.abs(error).mean() < 4.0  # of the picture codec
    assert EpisodeStore(out).info.fps == world.fps
    with pytest.raises(SceneError, match=r"style is 'nigth'; did you mean 'night'"):
        record(RecordRooms(out=tmp_path / "wrong.zarr", episodes=1, **(told | {"style": "nigth"})))
