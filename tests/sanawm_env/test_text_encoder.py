"""Text encoders on disk: found in a folder or the Hub's cache, fingerprinted, loaded; the instruction they read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_text import (
    INSTRUCTION,
    POSITIONS,
    PROMPTS,
    REFINER_KINDS,
    REFINER_POSITIONS,
    SIZES,
    make_gemma3,
    same,
    save_encoder,
)
from transformers import Gemma2Config, Gemma2Model

from sanawm_env.errors import BundleError, ConfigError, MissingExtraError
from sanawm_env.text import encode_refiner, encode_stage1
from sanawm_env.text_encoder import (
    encoder_fingerprint,
    find_encoder,
    load_encoder,
    read_instruction,
    tokenizer_fingerprint,
)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"need transformers.*pip install 'sanawm-env\[sana\]'"):
        load_encoder(tmp_path)
    with pytest.raises(MissingExtraError, match="sana"):
        read_instruction(tmp_path)


# The instruction


def test_the_instruction_comes_from_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("text_encoder:\n  chi_prompt:\n    - 'Look ''here'':'\n    - \"User Prompt: \"\n")
    assert read_instruction(tmp_path) == read_instruction(path) == "Look 'here':\nUser Prompt: "
    path.write_text("text_encoder:\n  chi_prompt:\n")
    assert read_instruction(path) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text_encoder: {}", "KeyError: 'chi_prompt'"),
        ("a: [", "tells no text_encoder.chi_prompt"),
        ("", "TypeError"),
        ("text_encoder: {chi_prompt: [1]}", r"chi_prompt is '\[1\]', allowed is a list of lines"),
        ("text_encoder: {chi_prompt: {a: b}}", "allowed is a list of lines"),
        (None, "neither config.yaml nor model_index.json"),
    ],
)
def test_a_checkpoint_without_instruction_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(BundleError, match=message):
        read_instruction(tmp_path)


# Loading


def test_gemma2_comes_back_from_its_folder(tmp_path: Path, gemma2: Any, tokenizer: Any) -> None:
    text = load_encoder(save_encoder(tmp_path, gemma2), device="cpu", dtype=torch.float32)
    ours = encode_stage1(text.tokenizer, text.model, PROMPTS, INSTRUCTION, POSITIONS)
    assert same(ours, encode_stage1(tokenizer, gemma2, PROMPTS, INSTRUCTION, POSITIONS))
    assert load_encoder(tmp_path, device="cpu").model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", REFINER_KINDS)
def test_gemma3_comes_back_with_connectors_and_without_vision(
    tmp_path: Path, tokenizer: Any, connectors: Any, kind: str
) -> None:
    encoder = make_gemma3(kind)
    encoder.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    connectors.save_pretrained(tmp_path / "connectors")
    text = load_encoder(
        tmp_path / "text_encoder",
        device="cpu",
        dtype=torch.float32,
        tokenizer=tmp_path / "tokenizer",
        connectors=tmp_path / "connectors",
    )
    assert not any("vision" in name for name, _ in text.model.named_parameters())
    ours = encode_refiner(text.tokenizer, text.model, text.connectors, PROMPTS, REFINER_POSITIONS)
    assert same(ours, encode_refiner(tokenizer, encoder, connectors, PROMPTS, REFINER_POSITIONS))


def test_what_cannot_be_loaded_is_named(tmp_path: Path, gemma2: Any) -> None:
    folder = save_encoder(tmp_path / "encoder", gemma2)
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        load_encoder(folder, device="tpu")
    with pytest.raises(ConfigError, match=r"dtype is torch\.float16"):
        load_encoder(folder, device="cpu", dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"revision is 'main', but .* is a folder"):
        load_encoder(folder, "main", device="cpu")
    with pytest.raises(BundleError, match="nowhere' is neither a folder nor a Hub id"):
        load_encoder(tmp_path / "nowhere", device="cpu")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4, "layer_types": None}))
    with pytest.raises(BundleError, match=r"lacks 1\d weights, layers.3.* among them; download it again"):
        load_encoder(folder, device="cpu")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(BundleError, match="type 'gpt2', allowed are gemma2, gemma3"):
        load_encoder(folder, device="cpu")
    (folder / "config.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be loaded"):
        load_encoder(folder, device="cpu")
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match="cannot be loaded"):
        load_encoder(folder, device="cpu")


def test_a_hub_repository_is_found_offline(tmp_path: Path, gemma2: Any) -> None:
    """A Hub cache as it lies on disk, read by a process that may not go online."""
    commit = "0123456789" * 4
    repository = tmp_path / "models--someone--gemma"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = save_encoder(repository / "snapshots" / commit, gemma2)
    script = (
        "from sanawm_env.text_encoder import find_encoder\n"
        "from sanawm_env.errors import BundleError\n"
        "print(find_encoder('someone/gemma'))\n"
        "try: find_encoder('someone/else')\n"
        "except BundleError as error: print(error)\n"
    )
    offline = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    told = subprocess.run(
        [sys.executable, "-c", script], env=offline, check=True, capture_output=True, text=True, timeout=120
    ).stdout.splitlines()
    assert told[0] == str(folder)
    assert told[1].startswith("someone/else (revision 'main') is not in the cache")
    assert find_encoder(folder) == folder


def test_fingerprints_tell_encoders_apart(tmp_path: Path, gemma2: Any, connectors: Any) -> None:
    first = save_encoder(tmp_path / "first", gemma2)
    again = save_encoder(tmp_path / "again", gemma2)
    assert encoder_fingerprint(first) == encoder_fingerprint(again)
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(again)
    torch.manual_seed(9)
    other = save_encoder(tmp_path / "other", Gemma2Model(Gemma2Config(**SIZES)))
    assert encoder_fingerprint(other) != encoder_fingerprint(first)
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(first)
    connectors.save_pretrained(tmp_path / "connectors")
    assert encoder_fingerprint(first, tmp_path / "connectors") != encoder_fingerprint(first)
    content = (again / "tokenizer.json").read_text()
    (again / "tokenizer.json").write_text(content.replace('"hall"', '"cave"'))
    assert tokenizer_fingerprint(again) != tokenizer_fingerprint(first)
    with pytest.raises(BundleError, match="is no tokenizer"):
        tokenizer_fingerprint(tmp_path / "connectors")
    with pytest.raises(BundleError, match="is no encoder"):
        encoder_fingerprint(tmp_path)


def test_the_fingerprint_of_large_weights_reads_every_part(tmp_path: Path) -> None:
    size = 3_000_001
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(size))
    plain = encoder_fingerprint(tmp_path)
    for start in (0, size // 2, size - 16_384):
        changed = bytearray(size)
        changed[start : start + 16_384] = b"\1" * 16_384
        weights.write_bytes(changed)
        assert encoder_fingerprint(tmp_path) != plain, start
    weights.write_bytes(bytes(size - 1))
    assert encoder_fingerprint(tmp_path) != plain
    weights.write_bytes(bytes(size - 1) + b"\1")
    assert encoder_fingerprint(tmp_path) != plain
