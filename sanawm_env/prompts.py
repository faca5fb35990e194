"""From prompts to the text that worlds carry: one reader for everything that a model reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from sanawm_env.prompt_cache import PromptCache
from sanawm_env.text import PromptRecipe, TextEncoder
from sanawm_env.text_encoder import (
    encoder_fingerprint,
    find_encoder,
    load_encoder,
    read_instruction,
    tokenizer_fingerprint,
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """How prompts become one of the texts: what decides the embedding, and how to load what computes it."""

    recipe: PromptRecipe
    load: Callable[[], TextEncoder]


@dataclass(frozen=True, kw_only=True)
class PromptReader:
    """Prompts to the tensors of `WorldState.text`, through a cache on disk; encoders are loaded only for what it lacks.

    denoiser, refiner: sources of the texts that the two read, None for one that reads none. negative: that of the text
    which guidance moves away from, None for a model without guidance.
    """

    cache: PromptCache
    denoiser: Source | None = None
    refiner: Source | None = None
    negative: Source | None = None

    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        """hidden [B, L, C] and mask [B, L] for the denoiser, refiner_hidden and refiner_mask for the refiner."""
        text: dict[str, Tensor] = {}
        for prefix, source in (("", self.denoiser), ("refiner_", self.refiner)):
            if source is not None:
                read = self.cache.get_or_encode(prompts, source.load, recipe=source.recipe)
                text |= {f"{prefix}hidden": read.hidden, f"{prefix}mask": read.mask}
        return text

    def read_negative(self, worlds: int) -> tuple[Tensor, Tensor] | None:
        """hidden [B, L, C] and mask [B, L] of the empty prompt that guidance moves away from; None without guidance."""
        if self.negative is None:
            return None
        read = self.cache.get_or_encode([""] * worlds, self.negative.load, recipe=self.negative.recipe)
        return read.hidden, read.mask


def negative_source(denoiser: Source) -> Source:
    """What guidance moves away from, read by the encoder of the denoiser's text, without its instruction."""
    return replace(denoiser, recipe=replace(denoiser.recipe, kind="negative", instruction=""))


def stage1_source(
    encoder: str | Path,
    checkpoint: str | Path | None,
    *,
    positions: int,
    revision: str | None = None,
    device: str | None = None,
) -> Source:
    """The denoiser's text: Gemma 2 in bf16, with the instruction of the checkpoint (spec rollout.md 3.1).

    encoder: its folder or Hub id, downloaded here and not later. checkpoint: of `read_instruction`. positions: text
    positions of the model.
    """
    folder = find_encoder(encoder, revision)
    recipe = PromptRecipe(
        kind="stage1",
        encoder=encoder_fingerprint(folder),
        tokenizer=tokenizer_fingerprint(folder),
        instruction=read_instruction(checkpoint),
        positions=positions,
    )
    return Source(recipe=recipe, load=lambda: load_encoder(folder, device=device))


def refiner_source(
    encoder: str | Path,
    connectors: str | Path,
    *,
    positions: int,
    revision: str | None = None,
    device: str | None = None,
) -> Source:
    """The refiner's text: Gemma 3 in bf16 through LTX-2's connectors (spec rollout.md 3.2); arguments as above."""
    folder = find_encoder(encoder, revision)
    recipe = PromptRecipe(
        kind="refiner",
        encoder=encoder_fingerprint(folder, connectors),
        tokenizer=tokenizer_fingerprint(folder),
        positions=positions,
    )
    return Source(recipe=recipe, load=lambda: load_encoder(folder, device=device, connectors=connectors))
