"""Tiny text encoders of random weights: a tokenizer of whole words, Gemma 2, Gemma 3 and LTX-2's connectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedTokenizerFast,
)

from sanawm_env.text import PromptEmbedding

INSTRUCTION = "\n".join(["Describe what is seen .", "Do not move .", "User Prompt : "])
PROMPTS = ["a long hall with a red door", "  grass ", ""]
WORDS = f"{PROMPTS[0]} {PROMPTS[1]} {INSTRUCTION} stone sky kitchen chairs".split()
POSITIONS = 24
REFINER_POSITIONS = 32
SIZES: dict[str, Any] = {
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


def make_gemma2(kind: type = Gemma2ForCausalLM, **changes: Any) -> Any:
    torch.manual_seed(1)
    return kind(Gemma2Config(**(SIZES | changes))).eval()


def make_gemma3(kind: str = "text", **changes: Any) -> Any:
    torch.manual_seed(2)
    sizes = SIZES | changes
    if kind == "text":
        return Gemma3TextModel(Gemma3TextConfig(**sizes)).eval()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    whole = Gemma3Config(text_config=sizes, vision_config=vision, mm_tokens_per_image=4)
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


def save_encoder(folder: Path, encoder: Any) -> Path:
    """An encoder and its tokenizer in one folder, as a release has them; returns the folder."""
    encoder.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def same(a: PromptEmbedding, b: PromptEmbedding) -> bool:
    return torch.equal(a.hidden, b.hidden) and torch.equal(a.mask, b.mask)
