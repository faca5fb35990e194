"""Text for the denoiser and the refiner: prompts in, embeddings out, kept on disk so that an encoder is loaded once.

Spec rollout.md 3. Stage 1 reads the last hidden state of Gemma 2, the refiner all hidden states of Gemma 3 through
LTX-2's connectors. Each prompt runs alone, so an embedding does not depend on the prompts that came with it. B counts
prompts, L token positions, C channels.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor
from tqdm import tqdm

from sanawm_env.bundle import find_device
from sanawm_env.errors import BackendError, BundleError, ConfigError, MissingExtraError, StorageError, nearest

POSITIONS = 300
REFINER_POSITIONS = 1024
ENCODERS = ("gemma2", "gemma3", "gemma3_text")
DTYPES = (torch.bfloat16, torch.float32)

FORMAT = "sanawm-prompt-1"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# A fingerprint reads files up to BLOCKS * BLOCK_BYTES whole, and that many evenly spaced blocks of larger ones.
BLOCKS = 256
BLOCK_BYTES = 4096

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
        _check_dtype(self.dtype)
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
    whole = _last_hidden(tokenizer, encoder, [instruction + prompt for prompt in _checked(prompts)], length)
    return PromptEmbedding(hidden=whole.hidden[:, kept], mask=whole.mask[:, kept])


def encode_negative(tokenizer: Any, encoder: Any, prompts: list[str], positions: int = POSITIONS) -> PromptEmbedding:
    """Prompts for the denoiser without an instruction, as the negative branch of guidance reads them ([""] by custom).

    Shapes and errors as in `encode_stage1`; spec rollout.md 3.1.
    """
    _check_positions(positions)
    return _last_hidden(tokenizer, encoder, _checked(prompts), positions)


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
    for prompt in _checked(prompts):
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
    return _joined(rows)


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
        wanted = list(dict.fromkeys(_checked(prompts)))
        found = {prompt: entry for prompt in wanted if (entry := self._read(recipe, prompt)) is not None}
        if missing := [prompt for prompt in wanted if prompt not in found]:
            self._prepare()
            try:
                found |= self._encode(missing, load_encoder(), recipe)
            finally:
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return _joined([found[prompt] for prompt in prompts])

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

    folder_or_hub_id, revision: see `find_encoder`. device: see `bundle.find_device`. dtype: bf16 or fp32 (fp16
    overflows in Gemma). tokenizer: its folder where that is another one, as in diffusers' layout. connectors: that of
    LTX-2's connectors, for the refiner. Only safetensors are read, and of a Gemma with vision only the text part is
    kept. MissingExtraError without transformers; ConfigError: a dtype or device not allowed; BundleError: an encoder
    that is missing, damaged, incomplete or no Gemma 2 or 3.
    """
    transformers = _transformers()
    _check_dtype(dtype)
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

    revision: branch, tag or commit of a Hub repository. Offline mode is honoured. ConfigError: a revision for a folder;
    BundleError: neither a folder nor a repository that can be had.
    """
    folder = Path(folder_or_hub_id).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision is {revision!r} but {folder} is a folder; allowed is None there.")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES]
        name = str(folder_or_hub_id)
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise BundleError(
            f"text encoder {str(folder_or_hub_id)!r} is no folder and cannot be had from the Hub ({error}); give the "
            "folder of a Gemma, or go online (unset HF_HUB_OFFLINE) and check name, revision and access."
        ) from error


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


def _last_hidden(tokenizer: Any, encoder: Any, texts: list[str], length: int) -> PromptEmbedding:
    rows = []
    for text in texts:
        states, mask = _run(tokenizer, encoder, text, length, "right", all_layers=False)
        rows.append((states[-1], mask.bool()))
    return _joined(rows)


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


def _joined(rows: Iterable[tuple[Tensor, Tensor]]) -> PromptEmbedding:
    hidden, mask = (torch.cat(parts) for parts in zip(*rows))
    if not bool(torch.isfinite(hidden).all()):
        raise BackendError(
            f"the text embedding in {hidden.dtype} holds NaN or infinity, allowed are finite numbers; "
            "use bf16 or fp32 and check the encoder's weights."
        )
    return PromptEmbedding(hidden=hidden, mask=mask)


def _checked(prompts: Any) -> list[str]:
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


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype}, allowed are {' and '.join(map(str, DTYPES))} (fp16 overflows in Gemma).")


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


def _digest(key: str, hidden: Tensor, mask: Tensor) -> bytes:
    digest = hashlib.sha256(key.encode())
    for tensor in (hidden, mask):
        digest.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
