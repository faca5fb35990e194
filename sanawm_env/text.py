"""Text for the denoiser and the refiner: prompts in, embeddings out.

Spec rollout.md 3. Stage 1 reads the last hidden state of Gemma 2, the refiner all hidden states of Gemma 3 through
LTX-2's connectors. Each prompt runs alone, so an embedding does not depend on the prompts that came with it. B counts
prompts, L token positions, C channels.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sanawm_env.errors import BackendError, ConfigError, nearest

POSITIONS = 300
REFINER_POSITIONS = 1024
DTYPES = (torch.bfloat16, torch.float32)
# Goes into the key of every embedding, so that those of another making are not found.
FORMAT = "sanawm-prompt-1"

Kind = Literal["stage1", "negative", "refiner"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class PromptEmbedding:
    """B encoded prompts. hidden: [B, L, C] in the encoder's dtype. mask: [B, L] bool, True = attend."""

    hidden: Tensor
    mask: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PromptEmbedding:
        """The same on a device; dtype: of `hidden`, None keeps it."""
        return PromptEmbedding(hidden=self.hidden.to(device, dtype), mask=self.mask.to(device))


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A tokenizer, its Gemma decoder and, for the refiner, LTX-2's connectors."""

    tokenizer: Any
    model: Any
    connectors: Any = None


@dataclass(frozen=True, kw_only=True)
class PromptRecipe:
    """All that decides a prompt's embedding, known before anything is loaded.

    kind: "stage1" (with the instruction), "negative" (without) or "refiner". encoder, tokenizer: fingerprints, see
    `encoder_fingerprint` and `tokenizer_fingerprint`. dtype: in which the encoder runs. instruction: stage 1 only, see
    `read_instruction`. positions: L, None for the released 300 (refiner: 1024). ConfigError for a value not allowed.
    """

    kind: Kind
    encoder: str
    tokenizer: str
    dtype: torch.dtype = torch.bfloat16
    instruction: str = ""
    positions: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind is {self.kind!r}; {nearest(str(self.kind), KINDS)}")
        _check_instruction(self.instruction)
        if self.kind != "stage1" and self.instruction:
            raise ConfigError(f"kind {self.kind!r} has instruction {self.instruction[:40]!r}; only 'stage1' reads one.")
        check_dtype(self.dtype)
        if self.positions is None:
            object.__setattr__(self, "positions", REFINER_POSITIONS if self.kind == "refiner" else POSITIONS)
        _check_positions(self.length)

    @property
    def length(self) -> int:
        """Token positions of the embedding."""
        assert self.positions is not None
        return self.positions

    def encode(self, text: TextEncoder, prompts: list[str]) -> PromptEmbedding:
        """The prompts' embedding. ConfigError where the encoder runs in another dtype or lacks the connectors."""
        if text.model.dtype != self.dtype:
            raise ConfigError(
                f"the encoder runs in {text.model.dtype}, the recipe says {self.dtype}; "
                f"load_encoder(..., dtype={self.dtype}), or change the recipe."
            )
        if self.kind == "stage1":
            return encode_stage1(text.tokenizer, text.model, prompts, self.instruction, self.length)
        if self.kind == "negative":
            return encode_negative(text.tokenizer, text.model, prompts, self.length)
        if text.connectors is None:
            raise ConfigError(
                "the refiner's text needs LTX-2's connectors, given is None; load_encoder(connectors=...)."
            )
        return encode_refiner(text.tokenizer, text.model, text.connectors, prompts, self.length)

    def key(self, prompt: str) -> str:
        """Name of this prompt's cache entry: SHA-256 of the recipe and the prompt, as hexadecimals."""
        parts = [FORMAT, self.encoder, self.tokenizer, str(self.dtype)]
        parts += [self.instruction, prompt, str(self.length), self.kind]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def encode_stage1(
    tokenizer: Any, encoder: Any, prompts: list[str], instruction: str, positions: int = POSITIONS
) -> PromptEmbedding:
    """Prompts for the denoiser (spec rollout.md 3.1): hidden [B, positions, C], on the encoder's device.

    The instruction stands before each prompt; kept are the first token and the last positions - 1 of the padded text,
    so that a caption has its place whatever the instruction's length. Padding goes to the right, whatever the tokenizer
    prefers. An empty instruction is none. A prompt too long is cut at the right, with a warning. encoder: any Gemma of
    transformers. ConfigError: no prompts, or a value not allowed; BackendError: an embedding that is not finite.
    """
    _check_positions(positions)
    _check_instruction(instruction)
    if not instruction:
        return encode_negative(tokenizer, encoder, prompts, positions)
    length = len(tokenizer.encode(instruction)) + positions - 2
    kept = [0, *range(length - positions + 1, length)]
    whole = _last_hidden(tokenizer, encoder, [instruction + prompt for prompt in checked_prompts(prompts)], length)
    return PromptEmbedding(hidden=whole.hidden[:, kept], mask=whole.mask[:, kept])


def encode_negative(tokenizer: Any, encoder: Any, prompts: list[str], positions: int = POSITIONS) -> PromptEmbedding:
    """Prompts for the denoiser without an instruction, as the negative branch of guidance reads them ([""] by custom).

    Shapes and errors as in `encode_stage1`; spec rollout.md 3.1.
    """
    _check_positions(positions)
    return _last_hidden(tokenizer, encoder, checked_prompts(prompts), positions)


def encode_refiner(
    tokenizer: Any, encoder: Any, connectors: Any, prompts: list[str], positions: int = REFINER_POSITIONS
) -> PromptEmbedding:
    """Prompts for the refiner (spec rollout.md 3.2): hidden [B, positions, C] in the connectors' dtype.

    Prompts are stripped and padded to the left. The connectors take the hidden states of all layers as they are, bring
    each layer to zero mean and range 8 over its valid tokens, and fill the padding with learnt registers: their mask,
    which is returned, is True everywhere. connectors: diffusers' LTX2TextConnectors. ConfigError: no prompts, a
    connector of another encoder, positions that the registers do not divide; BackendError: an embedding that is not
    finite.
    """
    _check_positions(positions)
    registers = connectors.config.video_connector_num_learnable_registers
    if registers and positions % registers:
        raise ConfigError(f"positions is {positions}, allowed are multiples of the connectors' {registers} registers.")
    rows = []
    for prompt in checked_prompts(prompts):
        states, mask = _run(tokenizer, encoder, prompt.strip(), positions, "left", all_layers=True)
        stacked = torch.stack(states, dim=-1)
        expected = (connectors.config.caption_channels, connectors.config.text_proj_in_factor)
        if stacked.shape[2:] != expected:
            raise ConfigError(
                f"the encoder gives {stacked.shape[3]} hidden states of {stacked.shape[2]} channels, the connectors "
                f"read {expected[1]} of {expected[0]}; load the connectors and the encoder of one refiner."
            )
        with torch.no_grad():
            hidden, _, valid = connectors(stacked.to(connectors.dtype), mask)
        rows.append((hidden, valid.bool()))
    return joined(rows)


def _last_hidden(tokenizer: Any, encoder: Any, texts: list[str], length: int) -> PromptEmbedding:
    rows = []
    for text in texts:
        states, mask = _run(tokenizer, encoder, text, length, "right", all_layers=False)
        rows.append((states[-1], mask.bool()))
    return joined(rows)


def _run(
    tokenizer: Any, encoder: Any, text: str, length: int, side: str, *, all_layers: bool
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Hidden states [1, length, C], of all layers or the last one, and the mask [1, length], of one padded text."""
    seen = len(tokenizer(text, verbose=False).input_ids)
    if seen > length:
        warnings.warn(
            f"prompt ...{text[-60:]!r} has {seen} tokens (an instruction included), read are {length}; shorten it.",
            stacklevel=4,
        )
    tokens = tokenizer(
        [text], padding="max_length", padding_side=side, max_length=length, truncation=True, return_tensors="pt"
    ).to(encoder.device)
    with torch.no_grad():
        output = encoder.get_decoder()(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            output_hidden_states=all_layers,
            use_cache=False,
        )
    states = output.hidden_states if all_layers else (output.last_hidden_state,)
    return states, tokens.attention_mask


def joined(rows: Iterable[tuple[Tensor, Tensor]]) -> PromptEmbedding:
    """One embedding of rows of hidden states and masks. BackendError where one holds NaN or infinity."""
    hidden, mask = (torch.cat(parts) for parts in zip(*rows))
    if not bool(torch.isfinite(hidden).all()):
        raise BackendError(
            f"the text embedding in {hidden.dtype} holds NaN or infinity, allowed are finite numbers; "
            "use bf16 or fp32 and check the encoder's weights."
        )
    return PromptEmbedding(hidden=hidden, mask=mask)


def checked_prompts(prompts: Any) -> list[str]:
    """The prompts. ConfigError for anything but a list of at least one str."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(
            f'prompts is {str(prompts)[:80]!r}, allowed is a list of at least one str; [""] is empty text.'
        )
    return list(prompts)


def _check_instruction(instruction: Any) -> None:
    if not isinstance(instruction, str):
        kind = type(instruction).__name__
        raise ConfigError(f"instruction is a {kind}, allowed is one str; join its lines, as read_instruction does.")


def _check_positions(positions: int) -> None:
    if not isinstance(positions, int) or positions < 2:
        raise ConfigError(f"positions is {positions!r}, allowed is a whole number >= 2; released are 300 and 1024.")


def check_dtype(dtype: torch.dtype) -> None:
    """ConfigError for a dtype in which Gemma does not run."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype}, allowed are {' and '.join(map(str, DTYPES))} (fp16 overflows in Gemma).")
