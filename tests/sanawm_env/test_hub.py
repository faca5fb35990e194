"""Checkpoints and encoders from a hub on this machine: listed, downloaded once, found offline, at one revision."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.local_hub import Hub, serving
from tests.public_layouts import SIZE, load, original_config, write_release

from sanawm_env.errors import BundleError
from sanawm_env.pretrained import plan
from sanawm_env.sana_wm import open_sana_wm


@pytest.fixture
def hub(layouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The streaming layout in a hub on this machine, and an empty cache."""
    published = Path(shutil.copytree(layouts / "streaming", tmp_path / "published"))
    (published / "gemma3_12b").mkdir()
    (published / "gemma3_12b" / "model.safetensors").write_bytes(b"not asked for")
    with serving(published, "somebody/SANA-WM_streaming", tmp_path / "cache", monkeypatch) as server:
        yield server


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The streaming release with its refiner; the denoiser's text encoder lies at its top level."""
    published = write_release(tmp_path / "published")
    shutil.copytree(published / "gemma2", published, dirs_exist_ok=True)
    with serving(published, "somebody/SANA-WM_streaming", tmp_path / "cache", monkeypatch) as server:
        yield server


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


def test_all_that_is_downloaded_is_told_before_and_of_one_revision(
    whole: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, Any] = {"refiner": True, "revision": "v1", "device": "cpu", "precision": "fp32", "size": SIZE}
    # An encoder and an autoencoder of the same repository are of the same revision.
    told |= {"text_encoder": whole.repository, "autoencoder": whole.repository}
    model, prompts = open_sana_wm(whole.repository, prompt_cache=tmp_path / "prompts", **told)
    assert model.refiner is not None and prompts is not None
    assert whole.asked == {"v1", whole.commit}
    announced = [line.split()[1] for line in capsys.readouterr().err.splitlines() if line.startswith("downloading")]
    # Both tokenizers are the same file, which is sent once.
    sent = [f"{whole.repository}/{name}" for name in whole.sent]
    assert sent == [name for name in announced if name in sent] and len(announced) - len(sent) == 2
    parts = {name.rpartition("/")[0] for name in whole.sent}
    refiner = {"refiner_diffusers/transformer", "refiner_diffusers/connectors", "gemma3_12b"}
    assert parts == {"", "sana_dit", "ltx2_causal_vae"} | refiner


def test_another_repository_is_read_at_its_newest(whole: Hub, layouts: Path) -> None:
    plan(layouts / "teacher", variant="teacher", autoencoder=whole.repository)
    assert whole.asked == {"main"}


def test_the_instruction_is_that_of_the_repository(whole: Hub, tmp_path: Path) -> None:
    (whole.folder / "config.yaml").write_text(original_config(""))
    told: dict[str, Any] = {"text_encoder": whole.folder / "gemma2", "device": "cpu", "size": SIZE}
    _, prompts = open_sana_wm(whole.repository, prompt_cache=tmp_path / "prompts", **told)
    assert prompts is not None and prompts.denoiser is not None
    assert prompts.denoiser.recipe.instruction == "User Prompt: "
