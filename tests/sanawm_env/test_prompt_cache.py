"""Prompt embeddings on disk: what is found again, what never is, and several processes at once."""

from __future__ import annotations

import gc
import multiprocessing
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_text import (
    INSTRUCTION,
    POSITIONS,
    PROMPTS,
    REFINER_POSITIONS,
    make_connectors,
    make_gemma2,
    make_gemma3,
    make_tokenizer,
    same,
)

from sanawm_env.errors import BackendError, StorageError
from sanawm_env.prompt_cache import PromptCache, default_folder
from sanawm_env.text import PromptRecipe, TextEncoder, encode_refiner, encode_stage1


def recipe(**changes: Any) -> PromptRecipe:
    given: dict[str, Any] = {
        "kind": "stage1",
        "encoder": "e",
        "tokenizer": "t",
        "dtype": torch.float32,
        "instruction": INSTRUCTION,
        "positions": POSITIONS,
    }
    return PromptRecipe(**(given | changes))


class Loader:
    """Loads a fresh tiny encoder; counts how often, and knows which of them are still alive."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.loaded: list[weakref.ref[Any]] = []

    def __call__(self) -> TextEncoder:
        model = make_gemma2()
        self.loaded.append(weakref.ref(model))
        return TextEncoder(tokenizer=self.tokenizer, model=model)


@pytest.fixture
def loader(tokenizer: Any) -> Loader:
    return Loader(tokenizer)


def test_a_hit_loads_nothing_and_the_encoder_is_dropped(
    tmp_path: Path, loader: Loader, tokenizer: Any, gemma2: Any
) -> None:
    cache = PromptCache(tmp_path / "new" / "folder")
    asked = [*PROMPTS, PROMPTS[0]]
    first = cache.get_or_encode(asked, loader, recipe=recipe())
    assert len(loader.loaded) == 1
    assert loader.loaded[0]() is None
    assert same(first, encode_stage1(tokenizer, gemma2, asked, INSTRUCTION, POSITIONS))
    assert len(list(cache.folder.iterdir())) == len(PROMPTS)
    assert same(first, PromptCache(cache.folder).get_or_encode(asked, loader, recipe=recipe()))
    assert len(loader.loaded) == 1
    more = cache.get_or_encode(["sky", PROMPTS[0]], loader, recipe=recipe())
    assert len(loader.loaded) == 2
    assert torch.equal(more.hidden[1], first.hidden[0])


@pytest.mark.parametrize(
    "change",
    [
        {"instruction": INSTRUCTION + "a "},
        {"encoder": "e2"},
        {"tokenizer": "t2"},
        {"positions": POSITIONS + 1},
        {"kind": "negative", "instruction": ""},
        {"instruction": ""},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_decides_an_embedding_is_in_its_key(
    tmp_path: Path, loader: Loader, change: dict[str, Any]
) -> None:
    cache = PromptCache(tmp_path)
    cache.get_or_encode(["a hall"], loader, recipe=recipe())
    cache.get_or_encode(["a hall"], loader, recipe=recipe(**change))
    assert len(loader.loaded) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_instruction_and_prompt_do_not_run_together(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    assert cache.path("b", recipe(instruction="a")) != cache.path("", recipe(instruction="ab"))
    assert cache.path("b", recipe(dtype=torch.bfloat16)) != cache.path("b", recipe())


def test_bf16_and_the_refiner_come_back_as_they_were(tmp_path: Path, tokenizer: Any, connectors: Any) -> None:
    text = TextEncoder(tokenizer=tokenizer, model=make_gemma3().bfloat16(), connectors=make_connectors().bfloat16())
    asked = recipe(kind="refiner", dtype=torch.bfloat16, instruction="", positions=REFINER_POSITIONS)
    first = PromptCache(tmp_path).get_or_encode(PROMPTS, lambda: text, recipe=asked)
    again = PromptCache(tmp_path).get_or_encode(PROMPTS, lambda: pytest.fail("loaded"), recipe=asked)
    assert first.hidden.dtype == again.hidden.dtype == torch.bfloat16
    assert same(first, again)
    assert same(first, encode_refiner(tokenizer, text.model, text.connectors, PROMPTS, REFINER_POSITIONS))


def test_a_damaged_entry_is_never_returned(tmp_path: Path, loader: Loader) -> None:
    """Every cut and every flipped byte is found; the entry is then encoded again and good from there on."""
    cache = PromptCache(tmp_path)
    good = cache.get_or_encode(["a hall"], loader, recipe=recipe())
    path = cache.path("a hall", recipe())
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    flips = [*range(0, header, 3), *range(header, len(content), 131), len(content) - 1]
    damaged = [content[:i] + bytes([content[i] ^ 0x11]) + content[i + 1 :] for i in flips]
    damaged += [content[:cut] for cut in (0, 1, 7, 8, 50, header, len(content) - 1)]
    for case in damaged:
        path.write_bytes(case)
        with pytest.warns(UserWarning, match="damaged .*encoded again"):
            assert cache._read(recipe(), "a hall") is None
    path.write_bytes(damaged[-1])
    with pytest.warns(UserWarning, match=f"{path} is damaged"):
        again = cache.get_or_encode(["a hall"], loader, recipe=recipe())
    assert same(again, good)
    assert path.read_bytes() == content
    assert len(loader.loaded) == 2


def test_an_entry_under_another_name_is_damaged(tmp_path: Path, loader: Loader) -> None:
    cache = PromptCache(tmp_path)
    cache.get_or_encode(["a hall"], loader, recipe=recipe())
    cache.path("a hall", recipe()).rename(cache.path("a door", recipe()))
    with pytest.warns(UserWarning, match="SHA-256 does not fit"):
        cache.get_or_encode(["a door"], loader, recipe=recipe())
    assert len(loader.loaded) == 2


def _write_often(folder: Path, prompt: str, times: int) -> None:
    encoder = TextEncoder(tokenizer=make_tokenizer(), model=make_gemma2())
    cache = PromptCache(folder)
    entry = cache.get_or_encode([prompt], lambda: encoder, recipe=recipe())
    for _ in range(times):
        cache._write(recipe(), prompt, entry.hidden, entry.mask)


def test_two_processes_may_write_one_entry(tmp_path: Path, tokenizer: Any, gemma2: Any) -> None:
    expected = encode_stage1(tokenizer, gemma2, ["a hall"], INSTRUCTION, POSITIONS)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(tmp_path, "a hall", 200)) for _ in range(2)]
    for writer in writers:
        writer.start()
    cache = PromptCache(tmp_path)
    reads = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(writer.is_alive() for writer in writers):
            entry = cache._read(recipe(), "a hall")
            if entry is not None:
                reads += 1
                assert torch.equal(entry[0], expected.hidden)
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert reads > 0
    assert same(cache.get_or_encode(["a hall"], lambda: pytest.fail("loaded"), recipe=recipe()), expected)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_work_that_stops_half_way_goes_on_from_there(tmp_path: Path, loader: Loader) -> None:
    def interrupted() -> TextEncoder:
        text = loader()
        calls = iter(range(10))

        def stop(*_: Any) -> None:
            if next(calls) == 1:
                raise KeyboardInterrupt

        text.model.get_decoder().register_forward_pre_hook(stop)
        return text

    cache = PromptCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_encode(["a", "red", "door"], interrupted, recipe=recipe())
    assert [path.name for path in tmp_path.iterdir()] == [cache.path("a", recipe()).name]
    cache.get_or_encode(["a", "red", "door"], loader, recipe=recipe())
    gc.collect()
    assert [reference() for reference in loader.loaded[1:]] == [None]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_used_is_named_before_loading(tmp_path: Path, loader: Loader) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/prompts.* cannot be (read|written).*choose another folder"):
        PromptCache(tmp_path / "file" / "prompts").get_or_encode(["a"], loader, recipe=recipe())
    cache = PromptCache(tmp_path)
    cache.path("a", recipe()).mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        cache.get_or_encode(["a"], loader, recipe=recipe())
    assert loader.loaded == []


def test_the_default_folder_honours_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert PromptCache().folder == default_folder() == tmp_path / "sanawm-env" / "prompts"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("relative/path", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert PromptCache().folder == tmp_path / "home" / ".cache" / "sanawm-env" / "prompts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert PromptCache().folder == tmp_path / "home" / ".cache" / "sanawm-env" / "prompts"


def test_an_embedding_that_is_not_finite_is_refused_and_not_kept(tokenizer: Any, tmp_path: Path) -> None:
    broken = make_gemma2()
    broken.model.norm.weight.data[0] = float("nan")
    cache = PromptCache(tmp_path)
    with pytest.raises(BackendError, match="holds NaN or infinity"):
        cache.get_or_encode(["a"], lambda: TextEncoder(tokenizer=tokenizer, model=broken), recipe=recipe())
    assert list(tmp_path.iterdir()) == []
