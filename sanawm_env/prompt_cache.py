"""Prompt embeddings kept on disk, so that a text encoder is loaded once for each new prompt."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor
from tqdm import tqdm

from sanawm_env.errors import StorageError
from sanawm_env.text import PromptEmbedding, PromptRecipe, TextEncoder, checked_prompts, joined


class PromptCache:
    """Prompt embeddings on disk: one safetensors file a prompt, named by everything that decides its content.

    folder: None takes sanawm-env/prompts below XDG_CACHE_HOME (~/.cache where that is unset or relative). Entries are
    written whole or not at all, so processes may share a folder; one whose SHA-256 does not fit is never returned.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder).expanduser()

    def get_or_encode(
        self, prompts: list[str], load_encoder: Callable[[], TextEncoder], *, recipe: PromptRecipe
    ) -> PromptEmbedding:
        """The prompts' embedding on the CPU, [B, L, C] and [B, L], from disk where it is there.

        load_encoder: called at most once, and only if an entry is missing or damaged (a warning names that one); what
        it returns is dropped, and CUDA memory handed back, before this returns. Each entry is written as soon as it is
        known, so interrupted work goes on from there. StorageError: a folder that cannot be read or written, found
        before the encoder is loaded; other errors as in `encode_stage1` and `encode_refiner`.
        """
        wanted = list(dict.fromkeys(checked_prompts(prompts)))
        found = {prompt: entry for prompt in wanted if (entry := self._read(recipe, prompt)) is not None}
        if missing := [prompt for prompt in wanted if prompt not in found]:
            self._prepare()
            try:
                found |= self._encode(missing, load_encoder(), recipe)
            finally:
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return joined([found[prompt] for prompt in prompts])

    def path(self, prompt: str, recipe: PromptRecipe) -> Path:
        """Where this prompt's entry is, or would be."""
        return self.folder / f"{recipe.key(prompt)}.safetensors"

    def _encode(self, prompts: list[str], text: TextEncoder, recipe: PromptRecipe) -> dict[str, tuple[Tensor, Tensor]]:
        encoded = {}
        for prompt in tqdm(prompts, unit="prompt", desc="encoding prompts", disable=None):
            embedding = recipe.encode(text, [prompt]).to("cpu")
            encoded[prompt] = (embedding.hidden, embedding.mask)
            self._write(recipe, prompt, *encoded[prompt])
        return encoded

    def _read(self, recipe: PromptRecipe, prompt: str) -> tuple[Tensor, Tensor] | None:
        path = self.path(prompt, recipe)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"prompt cache {path} cannot be read ({error}); choose another folder.") from error
        try:
            entry = tensors_from_bytes(content)
            hidden, mask, digest = entry["hidden"], entry["mask"], entry["digest"]
            if bytes(digest.tolist()) != _digest(recipe.key(prompt), hidden, mask):
                raise ValueError("its SHA-256 does not fit")
        except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"prompt cache entry {path} is damaged ({reason}); it is encoded again.", stacklevel=3)
            return None
        return hidden, mask

    def _prepare(self) -> None:
        """Makes the folder and tries to write there: finding out after minutes of loading would be late."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".probe."):
                pass
        except OSError as error:
            raise StorageError(
                f"prompt cache {self.folder} cannot be written ({error}); choose another folder, or set XDG_CACHE_HOME."
            ) from error

    def _write(self, recipe: PromptRecipe, prompt: str, hidden: Tensor, mask: Tensor) -> None:
        target = self.path(prompt, recipe)
        digest = torch.tensor(list(_digest(recipe.key(prompt), hidden, mask)), dtype=torch.uint8)
        content = tensors_to_bytes({"hidden": hidden.contiguous(), "mask": mask.contiguous(), "digest": digest})
        partial: Path | None = None
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".partial.", delete=False) as file:
                partial = Path(file.name)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.chmod(0o644)
            partial.replace(target)
        except BaseException as error:
            if partial is not None:
                partial.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise StorageError(
                f"prompt cache {target} cannot be written ({error}); choose a folder with space."
            ) from error


def default_folder() -> Path:
    """sanawm-env/prompts in the user's cache folder: XDG_CACHE_HOME where that is an absolute path, else ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "sanawm-env" / "prompts"


def _digest(key: str, hidden: Tensor, mask: Tensor) -> bytes:
    digest = hashlib.sha256(key.encode())
    for tensor in (hidden, mask):
        digest.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
