"""Text encoders of the released checkpoints: found, told apart by fingerprints, loaded; and what instructs them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sanawm_env.errors import BundleError, MissingExtraError
from sanawm_env.hub import TOKENIZER_FILES, open_files
from sanawm_env.placement import find_device
from sanawm_env.text import TextEncoder, check_dtype

ENCODERS = ("gemma2", "gemma3", "gemma3_text")
# A fingerprint reads files up to BLOCKS * BLOCK_BYTES whole, and that many evenly spaced blocks of larger ones.
BLOCKS = 256
BLOCK_BYTES = 4096


def load_encoder(
    folder_or_hub_id: str | Path,
    revision: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    tokenizer: str | Path | None = None,
    connectors: str | Path | None = None,
) -> TextEncoder:
    """A Gemma 2 or Gemma 3 text encoder with its tokenizer, through transformers (extra `sana`).

    folder_or_hub_id, revision: see `find_encoder`. device: see `placement.find_device`. dtype: bf16 or fp32 (fp16
    overflows in Gemma). tokenizer: its folder where that is another one, as in diffusers' layout. connectors: that of
    LTX-2's connectors, for the refiner. Only safetensors are read, and of a Gemma with vision only the text part is
    kept. MissingExtraError without transformers; ConfigError: a dtype or device not allowed; BundleError: an encoder
    that is missing, damaged, incomplete or no Gemma 2 or 3.
    """
    transformers = _transformers()
    check_dtype(dtype)
    target = find_device(device)
    folder = find_encoder(folder_or_hub_id, revision)
    try:
        kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if kind not in ENCODERS:
            raise BundleError(f"{folder} holds a model of type {kind!r}, allowed are {', '.join(ENCODERS)}.")
        words = transformers.AutoTokenizer.from_pretrained(
            folder if tokenizer is None else Path(tokenizer).expanduser(), local_files_only=True
        )
        model, report = transformers.AutoModel.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        _check_complete(folder, report)
        joined = None if connectors is None else _load_connectors(Path(connectors).expanduser(), dtype)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"text encoder {folder} cannot be loaded ({error}); download it again.") from error
    return TextEncoder(
        tokenizer=words,
        model=model.get_decoder().eval().to(target),
        connectors=None if joined is None else joined.eval().to(target),
    )


def find_encoder(folder_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The folder of an encoder: the given one, or a Hub repository's top level, downloaded if it is not there yet.

    revision: branch, tag or commit of a Hub repository. Errors as in `hub.open_files`; BundleError also where there is
    no model.
    """
    return open_files(folder_or_hub_id, revision).fetch_model()


def encoder_fingerprint(folder: str | Path, connectors: str | Path | None = None) -> str:
    """SHA-256 of an encoder's configuration and weights and, for the refiner, of its connectors', as hexadecimals.

    Weights are sampled: size and 256 evenly spaced blocks of 4 KiB a file, which takes no time and sees every other
    training of the same network, but not one changed number. BundleError: a folder without either.
    """
    folders = [Path(folder).expanduser()] + ([] if connectors is None else [Path(connectors).expanduser()])
    digest = hashlib.sha256()
    for place in folders:
        weights = sorted(place.glob("*.safetensors"))
        if not weights or not (place / "config.json").is_file():
            raise BundleError(f"{place} is no encoder: it lacks config.json or *.safetensors; download it again.")
        digest.update(_sampled([place / "config.json", *weights]))
    return digest.hexdigest()


def tokenizer_fingerprint(folder: str | Path) -> str:
    """SHA-256 of a tokenizer's files, read whole, as hexadecimals.

    BundleError: a folder with neither tokenizer.json nor tokenizer.model.
    """
    place = Path(folder).expanduser()
    files = [place / name for name in TOKENIZER_FILES if (place / name).is_file()]
    if not {"tokenizer.json", "tokenizer.model"} & {file.name for file in files}:
        raise BundleError(f"{place} is no tokenizer: it has neither tokenizer.json nor tokenizer.model.")
    return _sampled(files, blocks=None).hex()


def read_instruction(checkpoint: str | Path | None) -> str:
    """The instruction that stands before each prompt of stage 1, as its checkpoint says it (spec rollout.md 3.1).

    checkpoint: a folder with config.yaml (or such a file itself), whose text_encoder.chi_prompt holds the lines; or a
    folder of diffusers' layout (model_index.json), where it is diffusers' own (extra `sana`), as it is for None.
    BundleError: neither, or a config.yaml without those lines; MissingExtraError.
    """
    if checkpoint is None:
        return _usual_instruction()
    given = Path(checkpoint).expanduser()
    path = given / "config.yaml" if given.is_dir() else given
    if path.is_file():
        return "\n".join(_instruction_lines(path))
    if not (given / "model_index.json").is_file():
        raise BundleError(f"{given} tells no instruction: it holds neither config.yaml nor model_index.json.")
    return _usual_instruction()


def _usual_instruction() -> str:
    _transformers()
    from diffusers.pipelines.sana_wm.pipeline_sana_wm import DEFAULT_CHI_PROMPT

    return "\n".join(DEFAULT_CHI_PROMPT)


def _instruction_lines(path: Path) -> list[str]:
    import yaml

    try:
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))["text_encoder"]["chi_prompt"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BundleError(f"{path} tells no text_encoder.chi_prompt ({reason}); give the checkpoint's own.") from error
    lines = [lines] if isinstance(lines, str) else lines or []
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise BundleError(f"{path}: text_encoder.chi_prompt is {str(lines)[:80]!r}, allowed is a list of lines.")
    return lines


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"text encoders need transformers, which cannot be imported ({error}); pip install 'sanawm-env[sana]'."
        ) from error
    return transformers


def _load_connectors(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    loaded, report = LTX2TextConnectors.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    _check_complete(folder, report)
    return loaded


def _check_complete(folder: Path, report: dict[str, Any]) -> None:
    """Both libraries start what a file lacks with random numbers, and only warn."""
    lacking = [str(name) for name in (*report["missing_keys"], *report["mismatched_keys"])]
    if lacking:
        raise BundleError(f"{folder} lacks {len(lacking)} weights, {sorted(lacking)[0]} among them; download it again.")


def _sampled(files: Iterable[Path], blocks: int | None = BLOCKS) -> bytes:
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(json.dumps([path.name, size]).encode())
                for start in _block_starts(size, blocks):
                    file.seek(start)
                    digest.update(file.read(BLOCK_BYTES))
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error}); download it again.") from error
    return digest.digest()


def _block_starts(size: int, blocks: int | None) -> Iterable[int]:
    if blocks is None or size <= blocks * BLOCK_BYTES:
        return range(0, size, BLOCK_BYTES)
    return (i * (size - BLOCK_BYTES) // (blocks - 1) for i in range(blocks))
