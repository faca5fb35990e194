"""The public layouts of SANA-WM checkpoints: which files a checkpoint is read from (spec rollout.md 1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sanawm_env import bundle
from sanawm_env.errors import BundleError, ConfigError, nearest
from sanawm_env.hub import Files, below, open_files, revision_in
from sanawm_env.model.checkpoint import listed
from sanawm_env.model.public_keys import Variant

STREAMING_WEIGHTS = "sana_dit/model.pt"
ORIGINAL_CONFIG = "config.yaml"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
WHOLE_WEIGHTS = "diffusion_pytorch_model.safetensors"
AUTOENCODERS = ("vae", "ltx2_causal_vae")
HUB_AUTOENCODER = {
    "teacher": "Efficient-Large-Model/SANA-WM_bidirectional",
    "distilled": "Efficient-Large-Model/SANA-WM_streaming",
    "bidirectional": "Efficient-Large-Model/SANA-WM_bidirectional",
}
LAYOUTS = (
    "dit/*.safetensors with config.yaml (original)",
    "transformer/*.safetensors (diffusers)",
    f"{STREAMING_WEIGHTS} (streaming)",
    f"{bundle.DESCRIPTION} (our own bundle)",
)

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Layout:
    """kind: of the four layouts. weights: files of the denoiser. config: what is known about it."""

    kind: Literal["original", "diffusers", "streaming", "bundle"]
    weights: tuple[str, ...]
    config: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """Everything that a checkpoint's loading reads."""

    variant: Variant
    place: Files
    layout: Layout
    autoencoder_place: Files
    autoencoder_config: str
    autoencoder_weights: tuple[str, ...]

    @property
    def needed(self) -> list[tuple[Files, str]]:
        """Every file, the small ones first, so that what they can say is said before a long download."""
        if self.layout.kind == "bundle":
            return [(self.place, name) for name in (*self.layout.config, *self.layout.weights)]
        return [
            *((self.place, name) for name in self.layout.config),
            (self.autoencoder_place, self.autoencoder_config),
            *((self.autoencoder_place, name) for name in self.autoencoder_weights),
            *((self.place, name) for name in self.layout.weights),
        ]


def choose(source: str | Path, variant: Variant, revision: str | None, autoencoder: str | Path | None) -> Chosen:
    """Finds what a checkpoint is read from; arguments and errors as in `pretrained.from_pretrained`.

    Lists files only: nothing is downloaded, nor read but a folder's or a repository's names.
    """
    if variant not in get_args(Variant):
        raise ConfigError(f"variant is {variant!r}; {nearest(str(variant), get_args(Variant))}")
    place = open_files(source, revision)
    layout = _layout(place)
    if layout.kind == "bundle":
        if autoencoder is not None:
            raise ConfigError(
                f"autoencoder is {str(autoencoder)!r}, but {place.name} is a bundle with its own; drop it."
            )
        return Chosen(variant, place, layout, place, bundle.DESCRIPTION, ())
    if layout.kind == "streaming" and variant != "distilled":
        raise ConfigError(f"variant is {variant!r}, but {place.name} holds the streaming model; pass 'distilled'.")
    home = place
    if autoencoder is not None:
        home = open_files(autoencoder, revision_in(autoencoder, source, revision))
    # A folder given as the autoencoder may be the autoencoder's own.
    folders = AUTOENCODERS if autoencoder is None else (*AUTOENCODERS, "")
    for folder in folders if variant != "distilled" else ("ltx2_causal_vae", *folders):
        config, weights = below(folder, "config.json"), weights_in(home, folder)
        if config in home.sizes and weights:
            return Chosen(variant, place, layout, home, config, weights)
    raise BundleError(
        f"{home.name} holds no autoencoder (config.json and *.safetensors in one of {', '.join(AUTOENCODERS)}); pass "
        f"autoencoder={HUB_AUTOENCODER[variant]!r}, or a folder that holds one."
    )


def _layout(place: Files) -> Layout:
    if bundle.DESCRIPTION in place.sizes:
        return Layout("bundle", tuple(_safetensors_in(place, "")), (bundle.DESCRIPTION,))
    if STREAMING_WEIGHTS in place.sizes:
        return Layout("streaming", (STREAMING_WEIGHTS,), _those_of(place, ORIGINAL_CONFIG))
    if weights := weights_in(place, "transformer"):
        return Layout("diffusers", weights, _those_of(place, "transformer/config.json", SCHEDULER_CONFIG))
    if weights := weights_in(place, "dit"):
        if ORIGINAL_CONFIG not in place.sizes:
            raise BundleError(f"{place.name} has weights in dit/ but no {ORIGINAL_CONFIG}; take it from the original.")
        return Layout("original", weights, (ORIGINAL_CONFIG,))
    raise BundleError(
        f"{place.name} is no SANA-WM checkpoint: allowed is {'; '.join(LAYOUTS)}; found are "
        f"{listed(sorted(place.sizes)) or 'no files'}. Give the folder that holds one, or connect to the Hub once if "
        "its download was cut short."
    )


def _those_of(place: Files, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in place.sizes)


def _safetensors_in(place: Files, folder: str) -> list[str]:
    return [name for name in place.directly_in(folder) if name.endswith(".safetensors")]


def weights_in(place: Files, folder: str) -> tuple[str, ...]:
    """The weight files of a folder: diffusers' whole or sharded ones, else all. BundleError names a missing shard."""
    names = _safetensors_in(place, folder)
    if below(folder, WHOLE_WEIGHTS) in names:
        return (below(folder, WHOLE_WEIGHTS),)
    shards = [name for name in names if _SHARD.fullmatch(name)]
    # Copies in other number formats carry their format before the shard's number.
    plain = [name for name in shards if name.startswith(below(folder, WHOLE_WEIGHTS).replace(".safetensors", "-"))]
    for name in plain or shards:
        match = _SHARD.fullmatch(name)
        assert match is not None
        wanted = (f"{match[1]}-{index:05d}-of-{match[3]}.safetensors" for index in range(1, int(match[3]) + 1))
        missing = [shard for shard in wanted if shard not in names]
        if missing:
            raise BundleError(
                f"{place.name} lacks {len(missing)} of {int(match[3])} weight files ({listed(missing)}); "
                "copy or download them again."
            )
    return tuple(plain or shards or names)
