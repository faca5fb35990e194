"""Text encoding against diffusers' pipelines, with tiny Gemmas of random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.sana_wm.pipeline_sana_wm import DEFAULT_CHI_PROMPT, SanaWMPipeline
from diffusers.pipelines.sana_wm.refiner import SanaWMLTX2Refiner
from tests.tiny_text import (
    INSTRUCTION,
    POSITIONS,
    PROMPTS,
    REFINER_KINDS,
    REFINER_POSITIONS,
    make_connectors,
    make_gemma2,
    make_gemma3,
    make_tokenizer,
    same,
)
from transformers import Gemma2ForCausalLM, Gemma2Model

from sanawm_env.errors import ConfigError
from sanawm_env.text import PromptRecipe, TextEncoder, encode_negative, encode_refiner, encode_stage1
from sanawm_env.text_encoder import read_instruction

LONG = " ".join(["a", "red", "door"] * 60)


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


def test_the_module_imports_without_transformers() -> None:
    script = "import sys; sys.modules['transformers'] = None; import sanawm_env.text"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_an_embedding_moves_with_its_dtype(tokenizer: Any, gemma2: Any) -> None:
    here = encode_negative(tokenizer, gemma2, ["a"], POSITIONS)
    there = here.to("cpu", torch.bfloat16)
    assert there.hidden.dtype == torch.bfloat16
    assert torch.equal(there.mask, here.mask)
    assert here.to("cpu").hidden.dtype == torch.float32
