"""The released SANA-WM checkpoints: what would be downloaded; loaded, with every weight checked; converted.

Nothing is built before every name and shape of the weights fits (spec rollout.md 1; key tables in spec dit.md 2).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanawm_env import bundle
from sanawm_env.adapters import Adapter, adapted, find_adapter
from sanawm_env.errors import BundleError, ConfigError
from sanawm_env.hub import missing, open_files
from sanawm_env.layouts import HUB_AUTOENCODER, ORIGINAL_CONFIG, SCHEDULER_CONFIG, Chosen, choose, weights_in
from sanawm_env.model.autoencoder import AutoencoderConfig
from sanawm_env.model.checkpoint import (
    StoredWeights,
    differences,
    listed,
    open_pickled,
    open_safetensors,
    shapes_of,
)
from sanawm_env.model.config import DenoiserConfig, WorldConfig
from sanawm_env.model.lora import merging, read_lora
from sanawm_env.model.offload import Offload
from sanawm_env.model.public_keys import (
    STREAMING_ENTRY,
    Variant,
    autoencoder_config,
    autoencoder_names,
    caption_length,
    denoiser_config,
    denoiser_names,
)
from sanawm_env.placement import Placement, Precision, place
from sanawm_env.probe import check_camera
from sanawm_env.released import SIZE, world_config
from sanawm_env.world import WorldModel

SHARD_BYTES = 2 * 2**30


def from_pretrained(
    source: str | Path,
    *,
    variant: Variant,
    revision: str | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    offload: Offload | None = None,
    captured: bool | None = None,
    autoencoder: str | Path | None = None,
    size: tuple[int, int] = SIZE,
    adapter: Adapter | Mapping[str, Any] | str | Path | None = None,
) -> WorldModel:
    """The world model of a released checkpoint; every call reads it anew.

    source: a Hub id such as "Efficient-Large-Model/SANA-WM_streaming", or a folder in one of the public layouts
    (`layouts.LAYOUTS`). variant: what its weights were trained as. revision: branch, tag or commit of a Hub id. device,
    precision, offload, captured: of `bundle.load`. autoencoder: where the autoencoder comes from, for a source that has
    none (the chunk-causal teacher) or in place of its own: a Hub id, a folder with one inside, or its own folder. size:
    height and width of frames in pixels; the released weights are trained for 704x1280. A bundle of ours has both of
    its own. adapter: low-rank weights that `sanawm train adapt` has left (a file, an `Adapter`, or a mapping of its
    fields), added on loading, before anything is quantised. What is missing is downloaded; `plan` tells it beforehand.
    BundleError: nothing is found, or tensors are missing, unexpected, of a wrong shape or not finite, or the adapter is
    of another model. Spec rollout.md 1 and 4, dit.md 1 and 2.
    """
    placement = place(device, precision, offload, captured=captured)
    chosen, added = choose(source, variant, revision, autoencoder), find_adapter(adapter)
    if chosen.layout.kind == "bundle":
        plain = _our_bundle(chosen, device, precision, size, offload, captured)
        return plain if added is None else adapted(plain, added)
    return _build(chosen, placement, size, added)


def plan(
    source: str | Path, *, variant: Variant, revision: str | None = None, autoencoder: str | Path | None = None
) -> list[tuple[str, int]]:
    """What `from_pretrained` with these arguments would download: names ("organisation/name/file") and bytes.

    Empty for folders and for what is in the Hub's cache already. Downloads nothing itself.
    """
    return missing(choose(source, variant, revision, autoencoder).needed)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    variant: Variant,
    revision: str | None = None,
    autoencoder: str | Path | None = None,
    size: tuple[int, int] = SIZE,
    adapter: Adapter | Mapping[str, Any] | str | Path | None = None,
    replace: bool = False,
) -> Path:
    """Writes a released checkpoint as a bundle in bf16, which `bundle.load` reads; returns its folder.

    The arguments are those of `from_pretrained`. replace: whether a bundle in `target` may be replaced. The bundle is
    there whole or not at all. BundleError when something is in `target` already, or as `from_pretrained`.
    """
    bundle.check_target(target, replace)
    chosen = choose(source, variant, revision, autoencoder)
    if chosen.layout.kind == "bundle":
        raise BundleError(f"{chosen.place.name} is a bundle already; load it with sanawm_env.load, or copy its folder.")
    model = _build(chosen, place("cpu", "bf16"), size, added := find_adapter(adapter))
    provenance = {
        "source": chosen.place.name,
        "commit": chosen.place.commit,
        "variant": variant,
        "autoencoder": {"source": chosen.autoencoder_place.name, "commit": chosen.autoencoder_place.commit},
        "weights_sha256": model.fingerprint,
    }
    if added is not None:
        provenance["adapter"] = {"scale": str(added.scale), **added.base}
    licence = f"that of {chosen.place.name} and of {chosen.autoencoder_place.name}; read both before passing this on"
    return bundle.save(target, model, provenance, bits=16, replace=replace, shard_bytes=SHARD_BYTES, licence=licence)


def open_saved(folder: Path) -> tuple[dict[str, Any], StoredWeights]:
    """config.json and weights of a module as diffusers saves it in a folder. BundleError: one is missing or damaged."""
    place = open_files(folder)
    weights = weights_in(place, "")
    if "config.json" not in place.sizes or not weights:
        raise BundleError(
            f"{folder} holds {listed(sorted(place.sizes)) or 'no files'}, expected config.json and *.safetensors; copy "
            "or download it again."
        )
    return _read_mapping(place.path("config.json")), open_safetensors(place.path(name) for name in weights)


def _our_bundle(
    chosen: Chosen,
    device: torch.device | str | None,
    precision: Precision,
    size: tuple[int, int],
    offload: Offload | None,
    captured: bool | None,
) -> WorldModel:
    paths = [place.path(name) for place, name in chosen.needed]
    model = bundle.load(paths[0].parent, device=device, precision=precision, offload=offload, captured=captured)
    config = model.config
    if config.variant != chosen.variant:
        raise ConfigError(
            f"variant is {chosen.variant!r}, but {chosen.place.name} is a bundle of a {config.variant} model; "
            f"pass {config.variant!r}."
        )
    if tuple(size) not in (SIZE, (config.height, config.width)):
        raise ConfigError(
            f"size is {size}, but {chosen.place.name} is a bundle of {config.height}x{config.width} frames; drop it, "
            "or convert the checkpoint again with this size."
        )
    return model


def _build(chosen: Chosen, placement: Placement, size: tuple[int, int], adapter: Adapter | None = None) -> WorldModel:
    told = _told(chosen)
    read_config = autoencoder_config(_read_mapping(chosen.autoencoder_place.path(chosen.autoencoder_config)))
    if chosen.variant == "distilled" and not read_config.decoder_causal:
        raise BundleError(
            f"the autoencoder of {chosen.autoencoder_place.name} looks ahead (decoder_causal is false), but a "
            f"distilled model decodes as a stream; pass autoencoder={HUB_AUTOENCODER['distilled']!r}."
        )
    encoded = open_safetensors(chosen.autoencoder_place.path(name) for name in chosen.autoencoder_weights)
    paths = [chosen.place.path(name) for name in chosen.layout.weights]
    if chosen.layout.kind == "streaming":
        raw = open_pickled(paths[0], STREAMING_ENTRY)
    else:
        raw = open_safetensors(paths)
    stored = {
        "denoiser": raw.renamed(denoiser_names(raw.shapes)),
        "autoencoder": encoded.renamed(autoencoder_names(encoded.shapes)),
    }
    denoiser = denoiser_config(
        stored["denoiser"].shapes, told, variant=chosen.variant, length=caption_length(raw.shapes)
    )
    config = _world_config(chosen, denoiser, read_config, told, size)
    parts = bundle.empty_parts(config)
    wrong = {part: differences(shapes_of(module), stored[part].shapes) for part, module in parts.items()}
    if any(wrong.values()):
        said = "; ".join(f"{part}: {problem}" for part, problem in wrong.items() if problem)
        raise BundleError(
            f"the weights of {chosen.place.name} do not fit: {said}. Nothing was loaded; download the checkpoint "
            "again, with the config files that belong to it."
        )
    inspected = _Inspected(config, stored)
    readers = dict(inspected.readers)
    if adapter is not None:
        adapter.check_name(config.name)
        tensors, plain = read_lora(adapter.path), readers["denoiser"]
        readers["denoiser"] = merging(parts["denoiser"], plain, tensors, placement.device, adapter.scale)
    model = bundle.assemble(config, parts, readers, placement, "")
    if inspected.not_finite:
        raise BundleError(
            f"{len(inspected.not_finite)} tensors of {chosen.place.name} hold NaN or infinity "
            f"({listed(inspected.not_finite)}), allowed are finite numbers; download the checkpoint again."
        )
    model.fingerprint = inspected.fingerprint
    if adapter is not None:
        adapter.check_fingerprint(config.name, model.fingerprint)
        model.fingerprint = adapter.fingerprint(model.fingerprint)
    check_camera(model)
    return model


class _Inspected:
    """Readers that look at every tensor that passes: whether it is finite, and what the fingerprint makes of it.

    The fingerprint is SHA-256 over configuration, names and values as stored, so that it does not depend on files,
    precision or device.
    """

    def __init__(self, config: WorldConfig, stored: Mapping[str, StoredWeights]) -> None:
        self._digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
        self.not_finite: list[str] = []
        self.readers = {part: self._reader(part, weights) for part, weights in stored.items()}

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()

    def _reader(self, part: str, weights: StoredWeights) -> Callable[[str], Tensor]:
        def read(name: str) -> Tensor:
            x = weights.read(name)
            if not bool(torch.isfinite(x).all()):
                self.not_finite.append(f"{part}.{name}")
            self._digest.update(f"{part}.{name} {x.dtype} {tuple(x.shape)}".encode())
            self._digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
            return x

        return read


def _world_config(
    chosen: Chosen,
    denoiser: DenoiserConfig,
    autoencoder: AutoencoderConfig,
    told: Mapping[str, Any],
    size: tuple[int, int],
) -> WorldConfig:
    if autoencoder.latent_channels != denoiser.in_channels:
        raise BundleError(
            f"the autoencoder of {chosen.autoencoder_place.name} has {autoencoder.latent_channels} latent channels, "
            f"the denoiser of {chosen.place.name} reads {denoiser.in_channels}; pass the one it was trained with."
        )
    if denoiser.plucker_channels != 6 * autoencoder.temporal_stride:
        raise BundleError(
            f"the denoiser of {chosen.place.name} reads {denoiser.plucker_channels} ray channels, expected 6 for each "
            f"of the {autoencoder.temporal_stride} frames of a latent; pass the autoencoder that it was trained with."
        )
    shift = told.get("inference_flow_shift")
    return world_config(chosen.variant, denoiser, autoencoder, size, None if shift is None else float(shift))


def _told(chosen: Chosen) -> dict[str, Any]:
    """Settings of the config files that matter, in one mapping. ConfigError when they are of another variant."""
    place, told = chosen.place, dict[str, Any]()
    for name in chosen.layout.config:
        content = _read_mapping(place.path(name))
        if name == ORIGINAL_CONFIG:
            for section, wanted in (("scheduler", ("inference_flow_shift", "pred_sigma")), ("text_encoder", None)):
                group = _section(content, section, place.name)
                told |= {key: value for key, value in group.items() if wanted is None or key in wanted}
            told |= _section(content, "model", place.name)
        elif name == SCHEDULER_CONFIG:
            told |= {"inference_flow_shift": content["shift"]} if "shift" in content else {}
        else:
            told |= content
    _check_variant(chosen, str(told.get("camctrl_type", "")))
    return told


def _check_variant(chosen: Chosen, attention: str) -> None:
    # The streaming config names the bidirectional attention too and ignores it (spec dit.md 1.2).
    if chosen.layout.kind != "original":
        return
    written = "teacher" if attention.startswith("ChunkCausal") else "bidirectional"
    if attention and chosen.variant != written:
        raise ConfigError(
            f"variant is {chosen.variant!r}, but {ORIGINAL_CONFIG} of {chosen.place.name} describes a {written} model "
            f"(camctrl_type {attention}); pass {written!r}."
        )


def _section(content: Mapping[str, Any], name: str, place: str) -> dict[str, Any]:
    group = content.get(name, {})
    if not isinstance(group, dict):
        raise BundleError(f"{ORIGINAL_CONFIG} of {place}: {name} is {group!r:.80}, expected a group of settings.")
    return group


def _read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds one group of settings."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{path} cannot be read ({reason:.200}); copy or download it again.") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds {content!r:.80}, expected a group of settings; copy or download it again.")
    return content
