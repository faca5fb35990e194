"""Released checkpoints: every public layout, written to disk with small random weights, loads as what it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.public_layouts import (
    SIZE,
    Weights,
    original_names,
    random_autoencoder,
    random_transformer,
    write_original,
)

from sanawm_env import bundle, cli
from sanawm_env.errors import BundleError, ConfigError, StateError
from sanawm_env.pretrained import convert, from_pretrained, plan
from sanawm_env.world import WorldModel, step

NAMES: dict[str, Literal["bidirectional", "teacher", "distilled"]] = {
    "original": "bidirectional",
    "diffusers": "bidirectional",
    "teacher": "teacher",
    "streaming": "distilled",
}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint in each public layout, all with the same denoiser."""
    root = tmp_path_factory.mktemp("layouts")
    transformer = random_transformer()
    weights = {name: x.clone() for name, x in transformer.state_dict().items()}
    transformer.save_pretrained(root / "diffusers" / "transformer", max_shard_size="200KB")
    assert len(list((root / "diffusers" / "transformer").glob("*-of-*.safetensors"))) > 1
    (root / "diffusers" / "model_index.json").write_text('{"_class_name": "SanaWMPipeline"}')
    (root / "diffusers" / "scheduler").mkdir()
    (root / "diffusers" / "scheduler" / "scheduler_config.json").write_text('{"shift": 8.0}')
    for name, attention in (("original", "BidirectionalGDN"), ("teacher", "ChunkCausalGDN")):
        write_original(root / name, name, attention)
    (root / "streaming" / "sana_dit").mkdir(parents=True)
    group = {f"model.{name}": x for name, x in original_names(weights).items()}
    other = {"critic": {"model.x": torch.zeros(3)}, "step": 1000}
    torch.save({"generator": group, **other}, root / "streaming" / "sana_dit" / "model.pt")
    looking_ahead = random_autoencoder(causal=False)
    for name in ("original", "diffusers"):
        looking_ahead.save_pretrained(root / name / "vae")
    random_autoencoder(causal=True).save_pretrained(root / "streaming" / "ltx2_causal_vae")
    return root


@pytest.fixture
def copied(layouts: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(layouts / name, tmp_path / name))

    return copy


def load(source: Path | str, layouts: Path, name: str, **options: Any) -> WorldModel:
    """The tiny world of a layout, on the CPU in fp32."""
    options = {"autoencoder": layouts / "original"} | options if name == "teacher" else options
    told: dict[str, Any] = {"variant": NAMES[name], "device": "cpu", "precision": "fp32", "size": SIZE}
    return from_pretrained(source, **(told | options))


def source_weights(layouts: Path, name: str) -> tuple[Weights, Weights]:
    folder = {"streaming": "streaming/ltx2_causal_vae"}.get(name, "original/vae")
    expected = {key: x for key, x in random_transformer().state_dict().items()}  # noqa: C416 - a plain dict of copies
    return expected, load_file(layouts / folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_loads_as_its_weights(layouts: Path, name: str) -> None:
    model = load(layouts / name, layouts, name)
    denoiser, autoencoder = source_weights(layouts, name)
    for stored, module in ((denoiser, model.denoiser), (autoencoder, model.autoencoder.vae)):
        loaded = module.state_dict()
        assert loaded.keys() == stored.keys()
        for key, x in stored.items():
            torch.testing.assert_close(loaded[key], x, rtol=0, atol=0, msg=key)
    assert not any(x.is_meta for x in (*model.denoiser.parameters(), *model.autoencoder.buffers()))
    assert len(model.fingerprint) == 64


@pytest.mark.parametrize("name", NAMES)
def test_the_world_of_each_variant(layouts: Path, name: str) -> None:
    config = load(layouts / name, layouts, name).config
    variant = NAMES[name]
    assert (config.variant, config.fps, config.grid) == (variant, 16.0, (2, 3))
    assert (config.temporal_stride, config.spatial_stride, config.chunk_latents) == (8, 32, 3)
    assert config.denoiser.behaviour == ("diffusers" if variant == "bidirectional" else "nvlabs_train")
    assert config.denoiser.window_chunks == (2 if variant == "distilled" else None)
    assert config.denoiser.caption_length == (300 if name == "diffusers" else 7)
    assert config.autoencoder.decoder_causal == (variant == "distilled")
    assert config.intrinsics == pytest.approx((76.8, 76.8, 47.5, 31.5))
    if variant == "distilled":
        assert config.timesteps == (1000, 960, 889, 727)
    else:
        assert config.schedule.shift == (8.0 if name == "diffusers" else 9.5)


def test_the_released_frame_size_is_the_default(layouts: Path) -> None:
    told = {"variant": "distilled", "device": "cpu"}
    config = from_pretrained(layouts / "streaming", **told).config  # type: ignore[arg-type]
    assert (config.height, config.width, config.grid) == (704, 1280, (22, 40))
    assert config.intrinsics == (1024.0, 1024.0, 639.5, 351.5)
    with pytest.raises(ConfigError, match="700x1280, allowed are multiples of the spatial stride, 32"):
        from_pretrained(layouts / "streaming", **told, size=(700, 1280))  # type: ignore[arg-type]


def test_layouts_and_precisions_share_the_fingerprint_of_their_weights(layouts: Path) -> None:
    plain = load(layouts / "streaming", layouts, "streaming")
    half = load(layouts / "streaming", layouts, "streaming", precision="bf16")
    assert {x.dtype for x in half.denoiser.parameters()} == {torch.bfloat16}
    assert plain.fingerprint == half.fingerprint
    assert plain.fingerprint != load(layouts / "teacher", layouts, "teacher").fingerprint


@pytest.mark.parametrize("name", ["original", "streaming"])
def test_clips_are_decoded_as_diffusers_does(layouts: Path, name: str) -> None:
    model = load(layouts / name, layouts, name)
    latents = torch.randn(1, 3, 16, 2, 3)
    theirs = random_autoencoder(causal=name == "streaming")
    raw = latents.transpose(1, 2) * theirs.latents_std.view(-1, 1, 1, 1) + theirs.latents_mean.view(-1, 1, 1, 1)
    with torch.no_grad():
        expected = theirs.decode(raw).sample
    torch.testing.assert_close(model.autoencoder.decode_clip(latents), expected, rtol=1e-4, atol=1e-4)


def test_a_decoder_that_looks_ahead_starts_a_stream_and_refuses_to_go_on(layouts: Path) -> None:
    autoencoder = load(layouts / "original", layouts, "original").autoencoder
    latents = torch.randn(1, 1, 16, 2, 3)
    empty = autoencoder.initial_cache(1, 2, 3)
    pixels, cache = autoencoder.decode(latents, empty)
    torch.testing.assert_close(pixels, autoencoder.decode_clip(latents))
    assert {name: x.shape for name, x in cache.items()} == {name: x.shape for name, x in empty.items()}
    with pytest.raises(StateError, match="looks ahead"):
        autoencoder.decode(latents, cache)


def one_step(model: WorldModel) -> torch.Tensor:
    """Frames of the first chunk of a world that has seen a picture and reads a prompt."""
    config, state = model.config, model.empty_state(1)
    draw = torch.Generator().manual_seed(5)
    state.text["hidden"].copy_(torch.randn(1, 7, 12, generator=draw))
    state.text["mask"].fill_(True)
    picture = torch.rand(1, 3, 1, *SIZE, generator=draw) * 2 - 1
    latents = model.autoencoder.encode(picture)
    assert state.decoder is not None
    _, cache = model.autoencoder.decode(latents.to(model.dtype), state.decoder)
    state = replace(state, first_latent=latents[:, 0], decoder=cache)
    poses = torch.eye(4).expand(1, config.frames_per_chunk, 4, 4).clone()
    poses[..., 2, 3] = torch.linspace(0.02, 0.4, config.frames_per_chunk)
    _, output = step(model, state, poses)
    assert output.frames is not None
    return output.frames


def test_a_converted_bundle_gives_the_same_frames(layouts: Path, tmp_path: Path) -> None:
    folder = convert(layouts / "streaming", tmp_path / "ours", variant="distilled", size=SIZE)
    ours = bundle.load(folder, device="cpu", precision="bf16")
    direct = load(layouts / "streaming", layouts, "streaming", precision="bf16")
    assert ours.config == direct.config
    frames = one_step(ours)
    assert frames.float().std() > 1
    assert torch.equal(frames, one_step(direct))
    told = bundle.description(folder)
    assert told["provenance"]["weights_sha256"] == direct.fingerprint
    assert str(layouts / "streaming") in told["licence"]
    again = load(folder, layouts, "streaming", precision="bf16")
    assert again is ours
    with pytest.raises(ConfigError, match="a bundle of a distilled model; pass 'distilled'"):
        load(folder, layouts, "streaming", variant="teacher")
    with pytest.raises(ConfigError, match=r"size is \(32, 32\), but .* is a bundle of 64x96 frames"):
        load(folder, layouts, "streaming", precision="bf16", size=(32, 32))
    with pytest.raises(ConfigError, match="is a bundle with its own"):
        load(folder, layouts, "streaming", autoencoder=layouts / "streaming")
    with pytest.raises(BundleError, match="is a bundle already"):
        convert(folder, tmp_path / "twice", variant="distilled")
    assert plan(folder, variant="distilled") == []


def test_converting_refuses_before_it_reads(layouts: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        convert(tmp_path / "nowhere", tmp_path / "there", variant="distilled")


def test_the_command_tells_the_plan_first(layouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", str(layouts / "streaming"), str(tmp_path / "ours"), "variant=distilled"]
    assert cli.main([*words, "height=64", "width=96"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("0.0 MB  to download")
    assert json.loads(printed[-1]) == {"bundle": str(tmp_path / "ours")}
    assert bundle.load(tmp_path / "ours", device="cpu").config.variant == "distilled"
    assert cli.main(words[:-1]) == 2
    assert "'variant' of Convert is missing" in capsys.readouterr().err


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


class Hub(ThreadingHTTPServer):
    """A hub on this machine that serves one folder as one repository, and counts the files it sends."""

    def __init__(self, folder: Path, repository: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.repository, self.commit = folder, repository, "0123456789" * 4
        self.sent: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        head, _, named = path.partition("/resolve/")
        revision, _, name = named.partition("/")
        if path in (f"/api/models/{hub.repository}", f"/api/models/{hub.repository}/revision/v1"):
            files = [file for file in hub.folder.rglob("*") if file.is_file()]
            listed = [{"rfilename": str(f.relative_to(hub.folder)), "size": f.stat().st_size} for f in files]
            told = {"id": hub.repository, "sha": hub.commit, "siblings": listed}
            self._send(json.dumps(told).encode(), {"Content-Type": "application/json"}, body)
        elif head == f"/{hub.repository}" and revision in (hub.commit, "v1", "main") and (hub.folder / name).is_file():
            content = (hub.folder / name).read_bytes()
            if body:
                hub.sent.append(name)
            tag = hashlib.sha256(content).hexdigest()
            self._send(content, {"ETag": f'"{tag}"', "X-Repo-Commit": hub.commit}, body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Nothing: pytest has no use for the requests."""


@pytest.fixture
def hub(layouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The streaming layout in a hub on this machine, and an empty cache."""
    from huggingface_hub import constants

    (tmp_path / "published").mkdir()
    shutil.copytree(layouts / "streaming", tmp_path / "published", dirs_exist_ok=True)
    (tmp_path / "published" / "gemma3_12b").mkdir()
    (tmp_path / "published" / "gemma3_12b" / "model.safetensors").write_bytes(b"not asked for")
    server = Hub(tmp_path / "published", "somebody/SANA-WM_streaming")
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


NEEDED = ["ltx2_causal_vae/config.json", "ltx2_causal_vae/diffusion_pytorch_model.safetensors", "sana_dit/model.pt"]


def test_from_the_hub_to_the_cache_and_offline(hub: Hub, layouts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    files = plan(hub.repository, variant="distilled")
    assert files == [(f"{hub.repository}/{name}", (hub.folder / name).stat().st_size) for name in NEEDED]
    assert hub.sent == []
    model = load(hub.repository, layouts, "streaming", revision="v1")
    assert hub.sent == NEEDED
    assert model.fingerprint == load(layouts / "streaming", layouts, "streaming").fingerprint
    assert plan(hub.repository, variant="distilled") == []
    load(hub.repository, layouts, "streaming")
    assert hub.sent == NEEDED
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert plan(hub.repository, variant="distilled", revision="v1") == []
    for revision in ("v1", hub.commit):
        again = load(hub.repository, layouts, "streaming", revision=revision)
        assert again.fingerprint == model.fingerprint
    assert hub.sent == NEEDED


def test_a_name_that_the_hub_does_not_know(hub: Hub, layouts: Path) -> None:
    with pytest.raises(BundleError, match=r"somebody/else is not on the Hub, .*check the name and the revision"):
        load("somebody/else", layouts, "streaming")


@pytest.mark.parametrize("how", ["offline", "no server"])
def test_with_nothing_cached_and_no_hub_the_remedy_is_told(
    tmp_path: Path, layouts: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    why = "HF_HUB_OFFLINE is set" if how == "offline" else "Connection refused"
    for call in (plan, load):
        with pytest.raises(BundleError, match=rf"not in the cache .*{why}.*connect once without HF_HUB_OFFLINE"):
            if call is plan:
                plan("somebody/SANA-WM_streaming", variant="distilled")
            else:
                load("somebody/SANA-WM_streaming", layouts, "streaming")
    assert not (tmp_path / "cache").exists()
