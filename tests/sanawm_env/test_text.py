"""Text encoding against diffusers' pipelines, with tiny Gemmas of random weights; the cache and what may go wrong."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.sana_wm.pipeline_sana_wm import DEFAULT_CHI_PROMPT, SanaWMPipeline
from diffusers.pipelines.sana_wm.refiner import SanaWMLTX2Refiner
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2Model,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedTokenizerFast,
)

from sanawm_env.errors import BackendError, BundleError, ConfigError, MissingExtraError, StorageError
from sanawm_env.text import (
    PromptCache,
    PromptEmbedding,
    PromptRecipe,
    TextEncoder,
    default_folder,
    encode_negative,
    encode_refiner,
    encode_stage1,
    encoder_fingerprint,
    find_encoder,
    load_encoder,
    read_instruction,
    tokenizer_fingerprint,
)

INSTRUCTION = "\n".join(["Describe what is seen .", "Do not move .", "User Prompt : "])
PROMPTS = ["a long hall with a red door", "  grass ", ""]
LONG = " ".join(["a", "red", "door"] * 60)
WORDS = f"{PROMPTS[0]} {PROMPTS[1]} {INSTRUCTION} stone sky".split()
POSITIONS = 24
REFINER_POSITIONS = 32
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "sliding_window": 8,
}
REFINER_KINDS = ["text", "vision"]


def make_tokenizer(side: str = "left") -> PreTrainedTokenizerFast:
    """Whole words, <bos> before each text as Gemma has it, padding on the given side."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        padding_side=side,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def make_gemma2(kind: type = Gemma2ForCausalLM) -> Any:
    torch.manual_seed(1)
    return kind(Gemma2Config(**SIZES)).eval()


def make_gemma3(kind: str = "text") -> Any:
    torch.manual_seed(2)
    if kind == "text":
        return Gemma3TextModel(Gemma3TextConfig(**SIZES)).eval()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    whole = Gemma3Config(text_config=SIZES, vision_config=vision, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(whole).eval()


def make_connectors(**changes: Any) -> LTX2TextConnectors:
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"caption_channels": 32, "text_proj_in_factor": 4, "rope_type": "split"}
    for stream in ("video", "audio"):
        sizes |= {
            f"{stream}_connector_num_attention_heads": 2,
            f"{stream}_connector_attention_head_dim": 16,
            f"{stream}_connector_num_layers": 2,
            f"{stream}_connector_num_learnable_registers": 8,
        }
    return LTX2TextConnectors(**(sizes | changes)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def gemma2() -> Any:
    return make_gemma2()


@pytest.fixture(scope="module")
def connectors() -> LTX2TextConnectors:
    return make_connectors()


@torch.no_grad()
def diffusers_stage1(tokenizer: Any, encoder: Any, prompt: str, instruction: str) -> tuple[torch.Tensor, ...]:
    pipeline = SanaWMPipeline(tokenizer, encoder, None, None, None)
    return pipeline.encode_prompt(
        prompt,
        prompt,
        device=torch.device("cpu"),
        max_sequence_length=POSITIONS,
        chi_prompt=instruction.split("\n") if instruction else None,
    )


@torch.no_grad()
def diffusers_refiner(tokenizer: Any, encoder: Any, connectors: Any, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    refiner = SanaWMLTX2Refiner(None, connectors, tokenizer, encoder, None, text_max_sequence_length=REFINER_POSITIONS)
    return refiner._encode_prompt(prompt, device=torch.device("cpu"), dtype=connectors.dtype)


def same(a: PromptEmbedding, b: PromptEmbedding) -> bool:
    return torch.equal(a.hidden, b.hidden) and torch.equal(a.mask, b.mask)


# Stage 1


@pytest.mark.parametrize("instruction", [INSTRUCTION, ""])
@pytest.mark.parametrize("prompt", [*PROMPTS, LONG])
@pytest.mark.filterwarnings("ignore:prompt .* tokens")
def test_stage1_equals_diffusers(tokenizer: Any, gemma2: Any, prompt: str, instruction: str) -> None:
    ours = encode_stage1(tokenizer, gemma2, [prompt], instruction, POSITIONS)
    plain = encode_negative(tokenizer, gemma2, [prompt], POSITIONS)
    hidden, mask, negative, negative_mask = diffusers_stage1(tokenizer, gemma2, prompt, instruction)
    torch.testing.assert_close(ours.hidden, hidden[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(plain.hidden, negative[:, 0], rtol=0, atol=1e-5)
    assert torch.equal(ours.mask, mask.bool())
    assert torch.equal(plain.mask, negative_mask.bool())


def test_stage1_with_diffusers_own_instruction_and_positions(tokenizer: Any, gemma2: Any, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    instruction = read_instruction(tmp_path)
    ours = encode_stage1(tokenizer, gemma2, ["a red door"], instruction)
    with torch.no_grad():
        pipeline = SanaWMPipeline(tokenizer, gemma2, None, None, None)
        hidden, mask, negative, _ = pipeline.encode_prompt(
            "a red door", device=torch.device("cpu"), chi_prompt=DEFAULT_CHI_PROMPT
        )
    assert ours.hidden.shape == (1, 300, 32)
    torch.testing.assert_close(ours.hidden, hidden[:, 0], rtol=0, atol=1e-5)
    assert torch.equal(ours.mask, mask.bool())
    none = encode_negative(tokenizer, gemma2, [""])
    torch.testing.assert_close(none.hidden, negative[:, 0], rtol=0, atol=1e-5)
    assert none.mask.sum() == 1  # <bos> alone


def test_kept_are_the_first_token_and_the_last_positions(tokenizer: Any, gemma2: Any) -> None:
    """With padding only right, the caption's tokens stand where the instruction ends, one token of it in front."""
    ours = encode_stage1(tokenizer, gemma2, ["a red door"], INSTRUCTION, POSITIONS)
    ids = tokenizer(INSTRUCTION + "a red door", return_tensors="pt").input_ids
    with torch.no_grad():
        states = gemma2.model(input_ids=ids).last_hidden_state[0]
    expected = torch.cat([states[:1], states[-4:]])
    torch.testing.assert_close(ours.hidden[0, :5], expected, rtol=0, atol=1e-5)
    assert ours.mask[0].tolist() == [True] * 5 + [False] * (POSITIONS - 5)


def test_a_long_prompt_is_cut_at_the_right_with_a_warning(tokenizer: Any, gemma2: Any) -> None:
    words, before = LONG.split(), len(tokenizer(INSTRUCTION).input_ids)
    read = " ".join(words[: POSITIONS - 2])
    fits = encode_stage1(tokenizer, gemma2, [read], INSTRUCTION, POSITIONS)
    with pytest.warns(UserWarning, match=f"has {len(words) + before} tokens.*read are {POSITIONS + before - 2}"):
        cut = encode_stage1(tokenizer, gemma2, [LONG], INSTRUCTION, POSITIONS)
    assert fits.mask.all()
    assert same(cut, fits)
    with pytest.warns(UserWarning, match=f"has {len(words) + 1} tokens.*read are {POSITIONS}"):
        plain = encode_negative(tokenizer, gemma2, [LONG], POSITIONS)
    assert same(plain, encode_negative(tokenizer, gemma2, [" ".join(words[: POSITIONS - 1])], POSITIONS))


@pytest.mark.parametrize("kind", [Gemma2ForCausalLM, Gemma2Model])
def test_padding_side_and_company_do_not_matter(gemma2: Any, kind: type) -> None:
    left, right = make_tokenizer("left"), make_tokenizer("right")
    encoder = make_gemma2(kind)
    encoder.load_state_dict((gemma2 if kind is Gemma2ForCausalLM else gemma2.model).state_dict())
    together = encode_stage1(left, encoder, PROMPTS, INSTRUCTION, POSITIONS)
    assert same(together, encode_stage1(right, gemma2, PROMPTS, INSTRUCTION, POSITIONS))
    assert left.padding_side == "left"
    for row, prompt in enumerate(PROMPTS):
        alone = encode_stage1(left, encoder, [prompt], INSTRUCTION, POSITIONS)
        assert torch.equal(alone.hidden[0], together.hidden[row])
        assert torch.equal(alone.mask[0], together.mask[row])
    assert not torch.equal(together.hidden[0], together.hidden[2])
    assert not together.hidden.requires_grad


# Refiner


@pytest.mark.parametrize("kind", REFINER_KINDS)
@pytest.mark.parametrize("prompt", [*PROMPTS, LONG])
@pytest.mark.filterwarnings("ignore:prompt .* tokens")
def test_refiner_equals_diffusers(tokenizer: Any, connectors: Any, kind: str, prompt: str) -> None:
    encoder = make_gemma3(kind)
    ours = encode_refiner(tokenizer, encoder, connectors, [prompt], REFINER_POSITIONS)
    hidden, mask = diffusers_refiner(tokenizer, encoder, connectors, prompt)
    assert ours.hidden.shape == (1, REFINER_POSITIONS, 32)
    torch.testing.assert_close(ours.hidden, hidden, rtol=0, atol=1e-5)
    assert torch.equal(ours.mask, mask.bool())


def test_refiner_in_bf16_is_as_near_to_fp32_as_diffusers(tokenizer: Any, connectors: Any) -> None:
    encoder = make_gemma3()
    exact = encode_refiner(tokenizer, encoder, connectors, PROMPTS[:1], REFINER_POSITIONS).hidden
    encoder, rough = encoder.bfloat16(), make_connectors().bfloat16()
    ours = encode_refiner(tokenizer, encoder, rough, PROMPTS[:1], REFINER_POSITIONS).hidden
    theirs, _ = diffusers_refiner(tokenizer, encoder, rough, PROMPTS[0])
    assert ours.dtype == torch.bfloat16
    error, reference = ((x.float() - exact).norm() / exact.norm() for x in (ours, theirs))
    assert error < 0.03
    assert error < 1.5 * reference


def test_refiner_strips_and_does_not_care_for_side_or_company(connectors: Any) -> None:
    encoder = make_gemma3()
    both = encode_refiner(make_tokenizer("right"), encoder, connectors, ["  a red door\n", "sky"], REFINER_POSITIONS)
    alone = encode_refiner(make_tokenizer("left"), encoder, connectors, ["a red door"], REFINER_POSITIONS)
    assert torch.equal(both.hidden[:1], alone.hidden)
    assert not torch.equal(both.hidden[0], both.hidden[1])
    assert both.mask.all()


def test_refiner_refuses_what_does_not_fit(tokenizer: Any, gemma2: Any, connectors: Any) -> None:
    with pytest.raises(ConfigError, match="positions is 30, allowed are multiples of the connectors' 8 registers"):
        encode_refiner(tokenizer, gemma2, connectors, ["a"], 30)
    with pytest.raises(ConfigError, match="gives 4 hidden states of 32 channels, the connectors read 5 of 32"):
        encode_refiner(tokenizer, gemma2, make_connectors(text_proj_in_factor=5), ["a"], REFINER_POSITIONS)


# Wrong values


def test_wrong_values_are_named(tokenizer: Any, gemma2: Any) -> None:
    with pytest.raises(ConfigError, match="prompts is 'a hall', allowed is a list"):
        encode_negative(tokenizer, gemma2, "a hall")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"prompts is '\[\]'"):
        encode_stage1(tokenizer, gemma2, [], INSTRUCTION)
    with pytest.raises(ConfigError, match="positions is 1,"):
        encode_stage1(tokenizer, gemma2, ["a"], INSTRUCTION, 1)
    with pytest.raises(ConfigError, match="instruction is a list, allowed is one str"):
        encode_stage1(tokenizer, gemma2, ["a"], ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'stage1'"):
        PromptRecipe(kind="stage", encoder="", tokenizer="")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'negative' has instruction 'x'; only 'stage1'"):
        PromptRecipe(kind="negative", encoder="", tokenizer="", instruction="x")
    with pytest.raises(ConfigError, match=r"dtype is torch.float16, allowed are torch.bfloat16 and torch.float32"):
        PromptRecipe(kind="negative", encoder="", tokenizer="", dtype=torch.float16)
    needs = PromptRecipe(kind="refiner", encoder="", tokenizer="", dtype=torch.float32)
    assert needs.length == 1024
    with pytest.raises(ConfigError, match=r"needs LTX-2's connectors.*load_encoder\(connectors="):
        needs.encode(TextEncoder(tokenizer=tokenizer, model=gemma2), ["a"])
    with pytest.raises(ConfigError, match=r"runs in torch.float32, the recipe says torch.bfloat16"):
        PromptRecipe(kind="negative", encoder="", tokenizer="").encode(
            TextEncoder(tokenizer=tokenizer, model=gemma2), ["a"]
        )


def test_an_embedding_that_is_not_finite_is_refused_and_not_kept(tokenizer: Any, tmp_path: Path) -> None:
    broken = make_gemma2()
    broken.model.norm.weight.data[0] = float("nan")
    cache = PromptCache(tmp_path)
    with pytest.raises(BackendError, match="holds NaN or infinity"):
        cache.get_or_encode(["a"], lambda: TextEncoder(tokenizer=tokenizer, model=broken), recipe=recipe())
    assert list(tmp_path.iterdir()) == []


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"need transformers.*pip install 'sanawm-env\[sana\]'"):
        load_encoder(tmp_path)
    with pytest.raises(MissingExtraError, match="sana"):
        read_instruction(tmp_path)


def test_the_module_imports_without_transformers() -> None:
    script = "import sys; sys.modules['transformers'] = None; import sanawm_env.text"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


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


def save_encoder(folder: Path, encoder: Any) -> Path:
    encoder.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


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
    with pytest.raises(ConfigError, match=r"revision is 'main' but .* is a folder"):
        load_encoder(folder, "main", device="cpu")
    with pytest.raises(BundleError, match="is no folder and cannot be had"):
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
        "from sanawm_env.text import find_encoder\n"
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
    assert told[1].startswith("text encoder 'someone/else' is no folder and cannot be had from the Hub")
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


# The cache


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


def test_an_embedding_moves_with_its_dtype(tokenizer: Any, gemma2: Any) -> None:
    here = encode_negative(tokenizer, gemma2, ["a"], POSITIONS)
    there = here.to("cpu", torch.bfloat16)
    assert there.hidden.dtype == torch.bfloat16
    assert torch.equal(there.mask, here.mask)
    assert here.to("cpu").hidden.dtype == torch.float32
